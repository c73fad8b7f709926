"""Readers of input tables: one small module a format, each turning one file into one `Table`."""

import lzma
import os
import zlib
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import fsspec
import polars as pl

from gex_pipeline.formats import delimited, jsonl, parquet, public_sets, video2dataset
from gex_pipeline.formats.table import FILE, Table
from shards.errors import UserError

READERS: dict[str, Callable[[str], Table]] = {
    "jsonl": jsonl.read,
    "csv": delimited.read_csv,
    "tsv": delimited.read_tsv,
    "parquet": parquet.read,
    "video2dataset": video2dataset.read,
}
# Sets with files of their own, whose videos are named by id and looked up under input.video_root.
PUBLIC_SETS: dict[str, Callable[[str], Table]] = {
    "activitynet": public_sets.read_timed_sentences,
    "youcook2": public_sets.read_timed_sentences,
    "internvid": lambda url: public_sets.internvid(_reader(url, "auto")(url), url),
    "webvid": lambda url: public_sets.webvid(_reader(url, "auto")(url), url),
}
_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".tar": "video2dataset",
}
_READERS = 16  # files read at a time: on an object store the wait is latency
_COMPRESSION = (".gz", ".bz2", ".xz", ".zst")


@dataclass
class Catalog:
    """All input tables as one.

    frame: the tables' columns under their own names, with FILE (index into `files`) and LINE.
    bad: (file index, line, message) of each line that is no row.
    """

    files: list[str]
    frame: pl.DataFrame
    bad: list[tuple[int, int, str]]


def read_all(path: str, format: str, texts: Collection[str]) -> Catalog:
    """Read every table that `path` (file, glob or fsspec URL) names; `texts` are columns that stay text where they are.

    UserError where none can be read.
    """
    files = find(path)
    with ThreadPoolExecutor(_READERS) as pool:
        tables = list(pool.map(lambda file: _read(file, format, texts), files))
    frames = [table.frame.with_columns(pl.lit(i, pl.UInt32).alias(FILE)) for i, table in enumerate(tables)]
    try:
        frame = pl.concat(frames, how="diagonal_relaxed")
    except pl.exceptions.PolarsError as error:
        raise UserError(f"input.path: the tables of {path} do not fit together: {_first_line(error)}") from None
    bad = [(i, line, message) for i, table in enumerate(tables) for line, message in table.bad]
    return Catalog(files, frame, bad)


def find(path: str) -> list[str]:
    """Sorted absolute paths or URLs of the tables that `path` names."""
    if not path:
        raise UserError("input.path is not set: name the table of clips, e.g. --input.path clips.jsonl")
    try:
        fs, pattern = fsspec.core.url_to_fs(path)
        found = fs.glob(pattern, detail=True) if any(c in pattern for c in "*?[") else {pattern: fs.info(pattern)}
    except FileNotFoundError:
        found = {}
    except Exception as error:  # stores have error classes of their own
        raise UserError(f"input.path: cannot read {path}: {_first_line(error)}") from None
    if not found:
        raise UserError(f"input.path: no file {path}")
    if any(info["type"] == "directory" for info in found.values()):
        raise UserError(f"input.path: {path} is a folder; name its tables, e.g. {path.rstrip('/')}/*.parquet")
    if "file" in fs.protocol or "local" in fs.protocol:
        return sorted(os.path.abspath(file) for file in found)
    return sorted(fs.unstrip_protocol(file) for file in found)


def _read(file: str, format: str, texts: Collection[str]) -> Table:
    try:
        table = _reader(file, format)(file)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:  # the last three: damaged compression
        raise UserError(f"input.path: cannot read {file}: {_first_line(error)}") from None
    return replace(table, frame=delimited.with_numbers(table.frame, texts)) if table.untyped else table


def _reader(file: str, format: str) -> Callable[[str], Table]:
    name = file.lower()
    for suffix in _COMPRESSION:
        name = name.removesuffix(suffix)
    format = _SUFFIXES.get(os.path.splitext(name)[1], format) if format == "auto" else format
    if format == "auto":
        raise UserError(f"{file}: its name does not tell the format; set input.format to one of {', '.join(READERS)}")
    return (READERS | PUBLIC_SETS)[format]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
