"""CSV and TSV with a header line. A line with too many or too few fields, or that is not UTF-8, costs that line."""

import csv
import io
from collections.abc import Collection, Iterator

import polars as pl

from gex_pipeline.formats.table import LINE, Table, open_table
from shards.errors import UserError


def read_csv(url: str) -> Table:
    return _read(url, ",")


def read_tsv(url: str) -> Table:
    return _read(url, "\t")


def _read(url: str, separator: str) -> Table:
    with open_table(url) as file:
        data = file.read().removeprefix(b"\xef\xbb\xbf")
    if not data.strip():
        raise UserError(f"{url}: empty; its first line must name the columns")
    try:
        # Every field as text: a reader that guesses types turns the id 007 into 7.
        frame = pl.read_csv(io.BytesIO(data), separator=separator, infer_schema=False)
    except pl.exceptions.PolarsError:
        table = _read_rows(data, separator, url)
    else:
        # A quoted field may span lines, and a blank line reads as a row of nulls.
        spanned = sum((pl.col(name).str.count_matches("\n", literal=True).fill_null(0) for name in frame.columns), pl.lit(0))
        line = pl.int_range(2, pl.len() + 2, dtype=pl.Int64) + spanned.cast(pl.Int64).cum_sum()
        named = ~pl.all_horizontal(pl.col(frame.columns).is_null())
        table = Table(frame.with_columns(line.alias(LINE)).filter(named))
    return Table(table.frame, table.bad, untyped=True)


def _read_rows(data: bytes, separator: str, url: str) -> Table:
    """The slow way, which knows which lines are bad."""
    reader = csv.reader(io.StringIO(data.decode(errors="surrogateescape"), newline=""), delimiter=separator)
    records = _records(reader, url)
    header = [name.encode(errors="surrogateescape").decode(errors="replace") for name in next(records)]
    # The names that polars gives to columns of one name.
    before = [header[:i].count(name) for i, name in enumerate(header)]
    names = [f"{name}_duplicated_{count - 1}" if count else name for name, count in zip(header, before)]
    good, numbers, bad = [], [], []
    for row in records:
        text = separator.join(row)
        if not row:
            continue
        if len(row) != len(header):
            bad.append((reader.line_num, f"{len(row)} fields under a header of {len(header)}"))
        elif not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
            bad.append((reader.line_num, "not UTF-8"))
        else:
            good.append([field or None for field in row])
            numbers.append(reader.line_num)
    frame = pl.DataFrame(good, schema={name: pl.String for name in names}, orient="row")
    return Table(frame.with_columns(pl.Series(LINE, numbers, pl.Int64)), bad)


def _records(reader, url: str) -> Iterator[list[str]]:
    end = 0
    try:
        for row in reader:
            end = reader.line_num
            yield row
    except csv.Error as error:
        raise UserError(f"{url}: line {end + 1}: {error}; is a quote there not closed?") from None


def with_numbers(frame: pl.DataFrame, texts: Collection[str]) -> pl.DataFrame:
    """Columns that are numbers throughout become numbers, but for `texts`: the ids 1.1 and 1.10 are two.

    One with a leading zero, which a number loses, stays text too.
    """
    return frame.with_columns(_number(frame[name]) for name in frame.columns if name != LINE and name not in texts)


def _number(column: pl.Series) -> pl.Series:
    known = column.drop_nulls()
    if known.is_empty() or known.str.contains(r"^[+-]?0\d").any():
        return column
    for dtype in (pl.Int64, pl.Float64):
        if known.cast(dtype, strict=False).null_count() == 0:
            return column.cast(dtype)
    return column
