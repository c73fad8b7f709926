"""JSON lines: one object a line. A malformed line costs that line."""

import io
import json

import polars as pl

from gex_pipeline.formats.table import LINE, Table, open_table
from shards.errors import UserError

CHUNK_BYTES = 64 << 20


def read(url: str) -> Table:
    """Read the file in chunks of whole lines; only a chunk that holds a bad line is looked at line by line."""
    frames, bad, line = [], [], 1
    with open_table(url) as file:
        while chunk := file.read(CHUNK_BYTES):
            chunk += file.readline()
            table = _read_chunk(chunk.removeprefix(b"\xef\xbb\xbf") if line == 1 else chunk, line, url)
            frames.append(table.frame)
            bad += table.bad
            line += chunk.count(b"\n")
    try:
        return Table(pl.concat(frames, how="diagonal_relaxed") if frames else _empty(), bad)
    except pl.exceptions.PolarsError:
        raise UserError(f"{url}: a field is an object in one line and a plain value in another") from None


def _read_chunk(chunk: bytes, first_line: int, url: str) -> Table:
    lines = chunk.count(b"\n") + (not chunk.endswith(b"\n"))
    try:
        frame = pl.read_ndjson(io.BytesIO(chunk), infer_schema_length=None)
    except pl.exceptions.PolarsError:
        frame = None
    if frame is not None and frame.height == lines:
        return Table(frame.with_columns(pl.int_range(first_line, first_line + lines, dtype=pl.Int64).alias(LINE)))
    return _read_lines(chunk.split(b"\n"), first_line, url)


def _read_lines(lines: list[bytes], first_line: int, url: str) -> Table:
    """The slow way, which knows which lines are bad. Blank lines are no rows; NaN, which JSON has not, is null."""
    good, numbers, bad = [], [], []
    for number, line in enumerate(lines, first_line):
        if not line.strip():
            continue
        constants = []
        try:
            row = json.loads(line, parse_constant=constants.append)
            if not isinstance(row, dict):
                raise ValueError("not a JSON object")
        except (ValueError, RecursionError) as error:
            bad.append((number, f"not JSON: {error}"))
        else:
            good.append(json.dumps(row).encode() if constants else line)
            numbers.append(number)
    if not good:
        return Table(_empty(), bad)
    try:
        frame = pl.read_ndjson(io.BytesIO(b"\n".join(good)), infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        raise UserError(
            f"{url}: lines {numbers[0]}-{numbers[-1]}: a field changes its type from line to line: {str(error).splitlines()[0]}"
        ) from None
    return Table(frame.with_columns(pl.Series(LINE, numbers, pl.Int64)), bad)


def _empty() -> pl.DataFrame:
    return pl.DataFrame(schema={LINE: pl.Int64})
