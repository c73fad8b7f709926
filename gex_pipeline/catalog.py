"""Any input table of captioned clips -> the one clip schema.

Everything is column-wise (polars); rows that are no usable clip become ledger rows, each with its file and line.
Always: rows in = filtered + duplicates + ledger + clips.
"""

import json
import os
import re

import polars as pl
import polars_hash as plh
import pyarrow as pa

from gex_pipeline import formats, plan_files, probe
from gex_pipeline.benchmarks import videos
from gex_pipeline.clip_schema import CLIP_SCHEMA
from gex_pipeline.config import ExpandConfig, InputConfig
from gex_pipeline.formats.table import FILE, LINE
from gex_pipeline.times import milliseconds
from shards import storage
from shards.errors import UserError
from shards.format import LEDGER_SCHEMA, LICENSE_FIELDS, RESERVED_FIELDS

# The names a table's columns can have, or be mapped to through input.columns; all others pass through.
COLUMNS = ("clip_id", "source_id", "video", "start", "end", "caption", "duration", "order", "split", "captions")
COLUMNS += ("sentences",)
LISTS = ("captions", "sentences")
TEXTS = ("clip_id", "source_id", "video", "caption", "split", *LISTS)
# A clip of a classification or question set has no caption; these columns excuse it.
CAPTION_SUBSTITUTES = ("label", "labels", "target", "question", "questions")

SPLIT_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
# Folders of the published dataset that hold something else.
SPLIT_RESERVED = ("commits", "errors", "import", "plan", "summaries")

_ABSOLUTE = r"^(/|[A-Za-z][A-Za-z0-9+.-]*://)"
_CLIP_ID_DIGITS = 20


def load(config: ExpandConfig) -> tuple[pa.Table, pa.Table, dict[str, int]]:
    """The clips (CLIP_SCHEMA, in no order that means anything), the ledger of bad rows, and the counts of both.

    counts: rows_in, filtered, duplicates, ledger, clips. UserError for input that cannot be read or understood.
    """
    texts = {config.input.columns.get(name, name) for name in TEXTS}
    table = formats.read_all(config.input.path, config.input.format, texts)
    if table.bad and not table.frame.height:
        index, line, message = table.bad[0]
        raise UserError(f"input.path: no line can be read as a row; the first is {table.files[index]}:{line}: {message}")
    rows_in = table.frame.height + len(table.bad)
    kept = _filtered(table.frame, config.input.filter)
    filtered = table.frame.height - kept.height
    if config.input.format in formats.PUBLIC_SETS:
        kept = _found_by_id(kept, config.input)
    root = _root(table.files, config.input.video_root)
    rows = _with_problems(_clip_columns(_renamed(kept, config.input), table.files, config.input))
    ledger = _ledger(rows.filter(pl.col("kind").is_not_null()), table)
    good = rows.filter(pl.col("kind").is_null())
    clips = _without_duplicates(good.select(CLIP_SCHEMA.names), config.input)
    counts = {
        "rows_in": rows_in,
        "filtered": filtered,
        "duplicates": good.height - clips.height,
        "ledger": ledger.num_rows,
        "clips": clips.height,
    }
    if config.catalog.probe:
        planned = plan_files.durations(config.output.path)
        clips = probe.with_durations(clips, planned, lambda video: located(video, root), config.frames.timeout_seconds)
    return _to_arrow(clips), ledger, counts


def video_root(config: InputConfig) -> str:
    """The folder or URL that relative names of videos start from: input.video_root, or the tables' common folder."""
    return _root(formats.find(config.path) if config.video_root is None else [], config.video_root)


def located(video: str, root: str) -> str:
    """The path or URL of a clip's video. Names stay as they are in all that is stored: data may move to another folder."""
    return video if re.match(_ABSOLUTE, video) else storage.join(root, video)


def _filtered(frame: pl.DataFrame, expression: str | None) -> pl.DataFrame:
    if expression is None:
        return frame
    try:
        # SQL of polars: an expression over columns, with no way to run code or read files.
        return frame.filter(pl.sql_expr(expression))
    except (pl.exceptions.PolarsError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"input.filter: {expression!r} does not work on this table: {reason}") from None


def _found_by_id(frame: pl.DataFrame, config: InputConfig) -> pl.DataFrame:
    """The paths of videos that the table names by id."""
    if config.video_root is None:
        raise UserError(f"input.video_root is not set: {config.format} names its videos by id, found under this folder")
    found, _ = videos.resolve(frame, config.video_root, videos.index(videos.listing(config.video_root)))
    return videos.named_from(found, config.video_root)


def _renamed(frame: pl.DataFrame, config: InputConfig) -> pl.DataFrame:
    """The table under schema names, with only the columns that are used or pass through."""
    own = [name for name in frame.columns if name not in (FILE, LINE)]
    if not own:
        raise UserError(f"input.path: {config.path} has no rows")
    names = _names(own, config)
    for name, column in names.items():
        _check_column(name, column, frame.schema[column])
    return frame.select(*[pl.col(column).alias(name) for name, column in names.items()], FILE, LINE)


def _names(own: list[str], config: InputConfig) -> dict[str, str]:
    """Schema or passthrough name -> the table's column.

    A column whose name the mapping gives to another one is left out, unless it is mapped itself.
    """
    for name, column in config.columns.items():
        if column not in own:
            raise UserError(f"input.columns: {name}: the table has no column {column!r}; it has {', '.join(own)}")
        if name not in COLUMNS and name in RESERVED_FIELDS:
            raise UserError(f"input.columns: {name!r} is no catalog column; these are {', '.join(COLUMNS)}")
    names = {column: column for column in own if column not in config.columns.values()} | config.columns
    if "video" not in names:
        raise UserError(f"input.columns: no column 'video' in {', '.join(own)}; map it: --input.columns.video NAME")
    if config.passthrough is None:
        return names
    if unknown := [name for name in config.passthrough if name not in names]:
        raise UserError(f"input.passthrough: the table has no column {unknown[0]!r}; it has {', '.join(own)}")
    kept = {*COLUMNS, *CAPTION_SUBSTITUTES, *config.passthrough, *(n for n in names if n.lower() in LICENSE_FIELDS)}
    return {n: column for n, column in names.items() if n in kept}


def _check_column(name: str, column: str, dtype: pl.DataType) -> None:
    if name not in COLUMNS:
        if name in RESERVED_FIELDS:
            raise UserError(
                f"input.path: column {column!r} has a name that the dataset format uses itself; map it to another "
                f"(--input.columns.NEW_NAME {column}) or list the columns to keep in input.passthrough"
            )
        if _holds_bytes(dtype):
            raise UserError(
                f"input.path: column {column!r} holds bytes, which json cannot carry; list the columns to keep in "
                "input.passthrough"
            )
        return
    if name in LISTS and isinstance(dtype, (pl.List, pl.Array)):
        dtype = dtype.inner
    if dtype.is_nested() or dtype == pl.Binary:
        raise UserError(f"input.path: column {column!r} should hold {name}, and holds values of type {dtype}")


def _holds_bytes(dtype: pl.DataType) -> bool:
    if isinstance(dtype, pl.Struct):
        return any(_holds_bytes(field.dtype) for field in dtype.fields)
    return _holds_bytes(dtype.inner) if isinstance(dtype, (pl.List, pl.Array)) else dtype == pl.Binary


def _clip_columns(frame: pl.DataFrame, files: list[str], config: InputConfig) -> pl.DataFrame:
    """CLIP_SCHEMA's columns, FILE, LINE, and what the checks need: whether each given value could be read."""
    missing = [pl.lit(None, pl.String).alias(name) for name in COLUMNS if name not in frame.columns]
    substitutes = [pl.col(name).is_not_null() for name in CAPTION_SUBSTITUTES if name in frame.columns]
    further = [name for name in frame.columns if name not in (*COLUMNS, FILE, LINE)]
    homes = _homes(files, config.video_root)
    frame = frame.lazy().with_columns(missing).with_columns(_text("clip_id"), _text("source_id"), _text("video"))
    relative = ~pl.col("video").str.contains(_ABSOLUTE)
    home = pl.col(FILE).replace_strict(dict(enumerate(homes)), return_dtype=pl.String)
    frame = frame.with_columns(
        video=pl.when(relative).then(pl.concat_str(home, "video")).otherwise("video"),
        start_ms=milliseconds(frame.collect_schema(), "start"),
        end_ms=milliseconds(frame.collect_schema(), "end"),
        given_ms=milliseconds(frame.collect_schema(), "duration"),
        position=pl.col("order").cast(pl.Float64, strict=False),
        captions=_string_list(frame.collect_schema(), "captions"),
        sentences=_string_list(frame.collect_schema(), "sentences"),
        split=_text("split"),
        caption=_text("caption"),
        excused=pl.any_horizontal(substitutes) if substitutes else pl.lit(False),
        extra=_extra(frame.collect_schema(), further),
    )
    frame = frame.with_columns(
        caption=pl.coalesce("caption", _nonempty(pl.col("captions").list.first())),
        duration_ms=pl.coalesce(pl.col("end_ms") - pl.col("start_ms").fill_null(0), "given_ms"),
        source_id=pl.coalesce("source_id", "video"),
        clip_id=pl.coalesce("clip_id", _derived_id()),
    )
    return frame.collect()


def _root(files: list[str], video_root: str | None) -> str:
    if video_root is not None:
        return video_root if "://" in video_root else os.path.abspath(video_root)
    return os.path.commonprefix([file[: file.rfind("/") + 1] for file in files]).rsplit("/", 1)[0]


def _homes(files: list[str], video_root: str | None) -> list[str]:
    """Each table's folder as part of its videos' names ("" or "sub/"): equal paths in two folders are two videos."""
    if video_root is not None:
        return [""] * len(files)
    return [file[: file.rfind("/") + 1].removeprefix(f"{_root(files, None)}/") for file in files]


def _nonempty(text: pl.Expr) -> pl.Expr:
    return pl.when(text.str.strip_chars() != "").then(text)


def _text(name: str) -> pl.Expr:
    """A column as text, null where empty."""
    return _nonempty(pl.col(name).cast(pl.String, strict=False)).alias(name)


def _string_list(schema: pl.Schema, name: str) -> pl.Expr:
    """A list column, or text that holds a JSON list; other text is a list of one."""
    if isinstance(schema[name], (pl.List, pl.Array)):
        values = pl.col(name).cast(pl.List(pl.String), strict=False)
    else:
        values = _text(name).map_batches(_lists, return_dtype=pl.List(pl.String))
    return values.list.drop_nulls()


def _lists(texts: pl.Series) -> pl.Series:
    likely = texts.set(~texts.str.contains(r"(?s)^\s*\[.*\]\s*$"), None)
    try:
        listed = likely.str.json_decode(pl.List(pl.String))
    except pl.exceptions.ComputeError:
        listed = pl.Series(map(_as_list, likely), dtype=pl.String).str.json_decode(pl.List(pl.String))
    alone = pl.when(texts.is_not_null()).then(pl.concat_list(texts))
    return pl.select(pl.coalesce(listed, alone)).to_series()


def _as_list(text: str | None) -> str | None:
    """A JSON list as one of texts; None for what only looks like one: "[music] a man sings [loudly]"."""
    try:
        values = json.loads(text or "null")
    except (ValueError, RecursionError):
        return None
    return text and json.dumps([value if value is None or isinstance(value, str) else json.dumps(value) for value in values])


def _derived_id() -> pl.Expr:
    key = plh.concat_str(
        "video", *(pl.col(name).cast(pl.String).fill_null("") for name in ("start_ms", "end_ms")), separator="\n"
    )
    return key.chash.sha2_256().str.head(_CLIP_ID_DIGITS)


def _extra(schema: pl.Schema, names: list[str]) -> pl.Expr:
    """Further columns as one JSON object a row, names sorted, nulls left out."""
    fields = []
    for name in sorted(names):
        value = _json_ready(name, schema[name])
        pair = pl.struct(value.alias(name)).struct.json_encode()
        fields.append(pl.when(value.is_not_null()).then(pair.str.head(-1).str.tail(-1)))
    if not fields:
        return pl.lit("{}")
    return pl.concat_str(pl.lit("{"), pl.concat_str(fields, separator=",", ignore_nulls=True), pl.lit("}"))


def _json_ready(name: str, dtype: pl.DataType) -> pl.Expr:
    """A column in a type that JSON has: NaN is null, times of day and calendars are text."""
    column = pl.col(name)
    if dtype.is_float():
        return pl.when(column.is_finite()).then(column)
    if dtype.is_temporal() or dtype in (pl.Categorical, pl.Enum):
        return column.cast(pl.String)
    if dtype.is_decimal():
        return column.cast(pl.Float64)
    return column


def _with_problems(frame: pl.DataFrame) -> pl.DataFrame:
    """Adds kind and message, null for a usable clip."""

    def unread(name: str, value: str) -> pl.Expr:
        return _is_given(name, frame.schema[name]) & pl.col(value).is_null()

    def quoted(name: str) -> pl.Expr:
        return pl.format(f"{name} is not a time: {{}}", pl.col(name).cast(pl.String))

    start, end, given = pl.col("start_ms").fill_null(0), pl.col("end_ms"), pl.col("given_ms")
    split, order = pl.col("split"), pl.col("order").cast(pl.String)
    no_folder = ~split.str.contains(SPLIT_NAME) | split.is_in(SPLIT_RESERVED)
    no_text = pl.col("caption").is_null() & ~pl.col("excused")
    problems = [
        ("empty_video", pl.col("video").is_null(), pl.lit("video is empty")),
        ("bad_time", unread("start", "start_ms"), quoted("start")),
        ("bad_time", unread("end", "end_ms"), quoted("end")),
        ("bad_time", unread("duration", "given_ms"), quoted("duration")),
        ("negative_start", start < 0, pl.format("start is negative: {} ms", start)),
        ("end_before_start", end <= start, pl.format("end {} ms is not after start {} ms", end, start)),
        ("bad_time", end.is_null() & (given <= 0), pl.format("duration is not positive: {} ms", given)),
        ("bad_order", unread("order", "position"), pl.format("order is not a number: {}", order)),
        ("bad_split", no_folder, pl.format("split cannot name a folder of the dataset: {}", split)),
        ("empty_caption", no_text, pl.lit("caption is empty, and nothing stands in for it")),
    ]
    kind = pl.coalesce(pl.when(bad).then(pl.lit(kind)) for kind, bad, _ in problems)
    message = pl.coalesce(pl.when(bad).then(text) for _, bad, text in problems)
    return frame.with_columns(kind=kind, message=message).with_columns(order=pl.col("position"))


def _is_given(name: str, dtype: pl.DataType) -> pl.Expr:
    """Blank text and NaN are ways of writing null."""
    column = pl.col(name)
    if dtype == pl.String:
        column = pl.when(column.str.strip_chars() != "").then(column)
    return column.is_not_null() & (column.is_not_nan() if dtype.is_float() else pl.lit(True))


def _ledger(bad: pl.DataFrame, table: formats.Catalog) -> pa.Table:
    """Ledger rows of the bad rows and of the lines that are no rows."""
    rows = bad.select("clip_id", "source_id", "video", "kind", FILE, LINE, "message")
    unreadable = pl.DataFrame(table.bad, schema={FILE: pl.UInt32, LINE: pl.Int64, "message": pl.String}, orient="row")
    rows = pl.concat([rows, unreadable.with_columns(kind=pl.lit("bad_row"))], how="diagonal").sort(FILE, LINE)
    files = pl.Series("file", table.files)
    where = pl.format("{}:{}: {}", pl.lit(files).gather(pl.col(FILE)), LINE, "message")
    none = pl.lit(None, pl.String)
    ledger = rows.select("clip_id", "source_id", "video", "kind", stage=pl.lit("catalog"), message=where, decoder=none)
    return ledger.select(LEDGER_SCHEMA.names).to_arrow().cast(LEDGER_SCHEMA)


def _without_duplicates(clips: pl.DataFrame, config: InputConfig) -> pl.DataFrame:
    """One clip of each id; which one is a matter of content, not of the order of rows."""
    # Numbers are compared several times faster than ids; what a chance collision lets through is compared again.
    suspect = clips.select(plh.col("clip_id").nchash.xxh3_64().is_duplicated()).to_series()
    candidates = clips.filter(suspect)
    if config.duplicates == "refuse" and (ids := candidates.filter(pl.col("clip_id").is_duplicated())["clip_id"]).len():
        raise UserError(
            f"input.duplicates: {ids.n_unique():,} clip_ids stand for several rows each, {ids.min()!r} among them; make "
            "them unique, or set input.duplicates to drop"
        )
    by_content = [pl.col(n).list.join("\n") if n in LISTS else pl.col(n) for n in clips.columns]
    first = candidates.sort(by_content).unique("clip_id", keep="first", maintain_order=True)
    return pl.concat([clips.filter(~suspect), first])


def _to_arrow(clips: pl.DataFrame) -> pa.Table:
    # In one chunk: picking rows out of many chunks is several times slower.
    return clips.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest()).cast(CLIP_SCHEMA)
