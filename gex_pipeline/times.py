"""Times as people write them -> integer milliseconds."""

import polars as pl

# [HH:]MM:SS[.fraction]; InternVid writes 00:01:02.345, subtitles a comma.
_CLOCK = r"^(-)?(?:(\d+):)?(\d+):([0-5]?\d(?:[.,]\d*)?)$"
_MAX_SECONDS = 1e9  # 31 years: more is no time, and would not survive the arithmetic below


def milliseconds(schema: pl.Schema, name: str) -> pl.Expr:
    """Column `name` in milliseconds: seconds as numbers or text, clock times, durations; null where it cannot be read.

    A time is read to the microsecond and then rounded half to even, so 13.9996 s is 14000 ms and 1.0015 s is 1002 ms
    although its nearest double lies under 1001.5 ms.
    """
    seconds = _seconds(pl.col(name), schema[name])
    micros = pl.when(seconds.is_finite() & (seconds.abs() < _MAX_SECONDS)).then((seconds * 1e6).round()).cast(pl.Int64)
    whole, rest = micros // 1000, micros % 1000
    up = (rest > 500) | ((rest == 500) & (whole % 2 == 1))
    return whole + up.cast(pl.Int64)


def _seconds(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if dtype == pl.String:
        return _read(column)
    if dtype == pl.Duration:
        return column.dt.total_microseconds() / 1e6
    if dtype == pl.Time:
        return column.cast(pl.Int64) / 1e9
    if dtype.is_temporal():  # a date is no time in a video
        return pl.lit(None, pl.Float64)
    return column.cast(pl.Float64, strict=False)


def _read(text: pl.Expr) -> pl.Expr:
    text = text.str.strip_chars()
    sign, hours, minutes, seconds = (text.str.extract(_CLOCK, i) for i in range(1, 5))
    clock = hours.fill_null("0").cast(pl.Float64) * 3600 + minutes.cast(pl.Float64) * 60
    clock = clock + seconds.str.replace(",", ".", literal=True).cast(pl.Float64)
    return pl.coalesce(text.cast(pl.Float64, strict=False), pl.when(sign.is_null()).then(clock).otherwise(-clock))
