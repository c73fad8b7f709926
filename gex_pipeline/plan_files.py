"""The plan on storage: parquet parts of whole rows, their table, and `plan.json`, which is written last."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from gex_pipeline.clip_schema import CLIP_SCHEMA
from shards import scratch, storage
from shards.errors import DatasetError, UserError
from shards.format import canonical_json, digest
from shards.reader import parse_parquet

VERSION = 1
PART_CLIPS = 1 << 17  # about this many clips a part: some 20 MB
GROUP_CLIPS = 1 << 13  # about this many clips a parquet row group: what reading one row costs
LAYOUT_SCHEMA = pa.schema(
    [
        ("row", pa.int32()),
        ("split", pa.large_string()),
        ("group", pa.int32()),  # number within the row
        ("long", pa.bool_()),  # the group has at least min_clips clips, and one of them a caption
        ("position", pa.int32()),  # within the group
    ]
)
PLAN_SCHEMA = pa.schema([*LAYOUT_SCHEMA, *(field for field in CLIP_SCHEMA if field.name != "split")])
# Ids and texts are unique: a dictionary of them is only work.
_DICTIONARY = ["row", "split", "group", "position", "source_id", "video"]


@dataclass
class Plan:
    """Clips and their places, in memory.

    clips: the catalog. index: its lines in the plan's order, uint32 [clips]. layout: row, group, long, position of each,
    in that order. rows: row, split, clips, groups, long of each row. target: clips a row should have.
    """

    clips: pl.DataFrame
    index: np.ndarray
    layout: pl.DataFrame
    rows: pl.DataFrame
    target: int

    @property
    def counts(self) -> dict[str, int]:
        sums = self.rows.select(pl.col("clips", "groups", "long").cast(pl.Int64).sum()).row(0, named=True)
        return {"rows": self.rows.height, **sums}


def write(plan: Plan, root: str) -> dict:
    """Write the plan under `root`/plan; returns what plan.json says: digest, rows, clips, groups, long, target, parts.

    The same plan may be written again. UserError if a different one is there already.
    """
    rows_per_part = max(1, PART_CLIPS // plan.target)
    names = [f"part-{part:05d}.parquet" for part in range(-(-plan.rows.height // rows_per_part))]
    known = _known_parts(root)
    if known is not None and set(known) != set(names):
        raise _other_plan(root)

    def write_part(part: int) -> dict:
        rows = plan.rows.slice(part * rows_per_part, rows_per_part)
        sha256 = _write_part(plan, rows, storage.join(root, "plan", names[part]), known and known[names[part]])
        return {"path": names[part], "rows": rows.height, "clips": int(rows["clips"].sum()), "sha256": sha256}

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(write_part, range(len(names))))
    storage.write_bytes_atomic(storage.join(root, "plan", "rows.parquet"), _rows_table(plan, names, rows_per_part))
    record = {"version": VERSION, "target": plan.target, "rows_per_part": rows_per_part, **plan.counts, "parts": parts}
    record["digest"] = digest(record)
    storage.write_bytes_atomic(storage.join(root, "plan", "plan.json"), canonical_json(record) + b"\n")
    return record


def read(root: str) -> tuple[dict, pa.Table]:
    """plan.json, and the table of rows: row, split, clips, groups, long, part."""
    record = _read_record(root)
    return record, parse_parquet(storage.read_bytes(storage.join(root, "plan", "rows.parquet")))


def read_row(root: str, row: int) -> pa.Table:
    """The clips of one row (PLAN_SCHEMA), sorted by (group, position). One small read, however large the plan."""
    record = _read_record(root)
    if not 0 <= row < record["rows"]:
        raise DatasetError(f"{root}: the plan has rows 0 to {record['rows'] - 1}, not {row}")
    part = record["parts"][row // record["rows_per_part"]]["path"]
    with storage.open_read(storage.join(root, "plan", part)) as file:
        parquet = pq.ParquetFile(file)
        spans = (parquet.metadata.row_group(i).column(0).statistics for i in range(parquet.num_row_groups))
        group = next(i for i, span in enumerate(spans) if span.min <= row <= span.max)
        table = parquet.read_row_group(group, use_threads=False)
    rows = table["row"].to_numpy()
    first, end = np.searchsorted(rows, [row, row + 1])
    return table.slice(first, end - first)


def durations(root: str) -> pl.DataFrame:
    """clip_id and duration_ms of every clip of the plan under `root`; no line where no whole plan is there."""
    lines = [PLAN_SCHEMA.empty_table().select(["clip_id", "duration_ms"])]
    for name in _known_parts(root) or ():
        # A part that was lost or damaged is written again.
        with suppress(FileNotFoundError, pa.ArrowInvalid), storage.open_read(storage.join(root, "plan", name)) as file:
            lines.append(pq.read_table(file, columns=lines[0].column_names))
    return pl.from_arrow(pa.concat_tables(lines))


def _read_record(root: str) -> dict:
    path = storage.join(root, "plan", "plan.json")
    try:
        record = json.loads(storage.read_bytes(path))
    except FileNotFoundError:
        raise DatasetError(f"{path}: no plan here") from None
    except ValueError as error:
        raise DatasetError(f"{path}: not a plan: {error}") from None
    if record.get("version") != VERSION:
        raise DatasetError(f"{path}: plan version {record.get('version')}; this program reads version {VERSION}")
    return record


def _known_parts(root: str) -> dict[str, str] | None:
    """sha256 of each part of a plan that is already there whole."""
    if not storage.exists(storage.join(root, "plan", "plan.json")):
        return None
    return {part["path"]: part["sha256"] for part in _read_record(root)["parts"]}


def _write_part(plan: Plan, rows: pl.DataFrame, url: str, known_sha256: str | None) -> str:
    """Write the part that holds `rows` and return its sha256, which must be `known_sha256` if that is given."""
    local = storage.local_path(url)
    with ExitStack() as stack:
        if local is not None:
            os.makedirs(os.path.dirname(local), exist_ok=True)
            temporary = storage.temporary_name(local)
            stack.callback(storage.delete, temporary)
        else:
            temporary = os.path.join(stack.enter_context(scratch.folder()), "part.parquet")
        _encode(plan, rows, temporary)
        with open(temporary, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if known_sha256 not in (None, sha256):
            raise _other_plan(url)
        storage.publish_file(temporary, url)
    return sha256


def _encode(plan: Plan, rows: pl.DataFrame, path: str) -> None:
    rows_per_group = max(1, GROUP_CLIPS // plan.target)
    clips = _clips(plan, rows)
    begin = 0
    with pq.ParquetWriter(path, PLAN_SCHEMA, compression="zstd", compression_level=1, use_dictionary=_DICTIONARY) as writer:
        for group in rows["clips"].cast(pl.Int64).to_frame().iter_slices(rows_per_group):
            size = group.to_series().sum()
            writer.write_table(clips.slice(begin, size), row_group_size=size)
            begin += size


def _clips(plan: Plan, rows: pl.DataFrame) -> pa.Table:
    """The clips of consecutive rows, PLAN_SCHEMA, in one chunk: how a table is chunked would show in the file's bytes."""
    first, end = np.searchsorted(plan.layout["row"].to_numpy(), [rows["row"][0], rows["row"][-1] + 1])
    clips = plan.clips.drop("split")[pl.Series(plan.index[first:end])]
    split = rows.select(pl.col("split").repeat_by("clips").explode())
    frame = pl.concat([plan.layout[first:end], split, clips], how="horizontal").select(PLAN_SCHEMA.names)
    return frame.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest()).cast(PLAN_SCHEMA)


def _rows_table(plan: Plan, names: list[str], rows_per_part: int) -> bytes:
    parts = pl.Series("part", names, pl.String).gather(plan.rows["row"] // rows_per_part)
    sink = pa.BufferOutputStream()
    pq.write_table(plan.rows.with_columns(parts).to_arrow(compat_level=pl.CompatLevel.oldest()), sink)
    return sink.getvalue().to_pybytes()


def _other_plan(where: str) -> UserError:
    return UserError(
        f"output.path: {where} holds the plan of another catalog or other settings; choose an empty folder, or give the "
        "same input again"
    )
