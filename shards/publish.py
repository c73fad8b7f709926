"""Commit records, the manifest and the dataset card: what makes written shards a dataset."""

import json
import re
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from shards import format, storage
from shards.writer import parquet_bytes

MANIFEST_JSON, MANIFEST_PARQUET, CARD = "manifest.json", "manifest.parquet", "README.md"

_READERS = 16  # commit records read at a time: on an object store the wait is latency


def write_commit(root: str, row: int, record: dict) -> bool:
    """Write a row's commit record; the first one wins. Returns whether this was it.

    `record` has at least `row` and `shards`: {granularity: what `ShardWriter.close` returned, or None}.
    """
    return storage.create_once(storage.join(root, format.commit_path(row)), format.canonical_json(record))


def committed_rows(root: str) -> list[int]:
    """Row numbers that have a commit record, ascending."""
    names = storage.list_dir(storage.join(root, "commits"), ".json")
    return sorted(int(name[:-5]) for name in names if re.fullmatch(r"\d+\.json", name))


def read_commits(root: str) -> list[dict]:
    """All commit records, by row."""
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda row: _read_commit(root, row), committed_rows(root)))


def build_manifest(root: str, config_digest: str, plan_digest: str, frames: dict, versions: dict) -> dict:
    """Write manifest.parquet, the card and last manifest.json from the commit records alone; returns the manifest.

    `frames` is what a reader may want to know of the stored frames (their number, short side, format); `versions`
    those of the software that shapes the bytes.
    """
    table = manifest_table(_committed_shards(read_commits(root)))
    manifest = {
        "format": format.FORMAT,
        "version": format.VERSION,
        "digest": content_digest(table),
        "plan_digest": plan_digest,
        "config_digest": config_digest,
        "frames": frames,
        "counts": counts(table),
        "versions": versions,
    }
    storage.write_bytes_atomic(storage.join(root, MANIFEST_PARQUET), parquet_bytes(table))
    storage.write_bytes_atomic(storage.join(root, CARD), _card(manifest).encode())
    document = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    storage.write_bytes_atomic(storage.join(root, MANIFEST_JSON), document.encode())
    return manifest


def manifest_table(shards: list[dict]) -> pa.Table:
    """Shards as lines of manifest.parquet."""
    return pa.Table.from_pylist(shards, schema=format.MANIFEST_SCHEMA)


def content_digest(manifest: pa.Table) -> str:
    """Digest of a dataset's bytes: over the sorted (path, sha256) of its tars."""
    return format.digest(sorted(zip(manifest["path"].to_pylist(), manifest["sha256"].to_pylist())))


def counts(manifest: pa.Table) -> dict:
    """{split: {granularity: {samples, shards, bytes, duration_ms}}} of a manifest table."""
    total = defaultdict(lambda: defaultdict(lambda: dict(samples=0, shards=0, bytes=0, duration_ms=0)))
    for shard in manifest.to_pylist():
        cell = total[shard["split"]][shard["granularity"]]
        cell["shards"] += 1
        for field in ("samples", "bytes", "duration_ms"):
            cell[field] += shard[field]
    return {split: dict(cells) for split, cells in total.items()}


def _read_commit(root: str, row: int) -> dict:
    return json.loads(storage.read_bytes(storage.join(root, format.commit_path(row))))


def _committed_shards(commits: list[dict]) -> list[dict]:
    shards = []
    for record in commits:
        for granularity in format.GRANULARITIES:
            if shard := record["shards"].get(granularity):
                split = shard["path"].split("/")[0]
                shards.append({**shard, "split": split, "granularity": granularity, "row": record["row"]})
    return shards


def _card(manifest: dict) -> str:
    lines = [
        "# Multi-grained video-text pairs",
        "",
        f"A `{format.FORMAT}` dataset, version {format.VERSION}, content digest `{manifest['digest'][:16]}`.",
        "",
        "| split | granularity | samples | shards | hours | MB |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for split, cells in sorted(manifest["counts"].items()):
        for granularity, cell in cells.items():
            hours, megabytes = cell["duration_ms"] / 3_600_000, cell["bytes"] / 1e6
            lines.append(
                f"| {split} | {granularity} | {cell['samples']:,} | {cell['shards']:,} | {hours:,.2f} | {megabytes:,.1f} |"
            )
    return "\n".join(lines) + _CARD_BODY


_CARD_BODY = """

Each tar is a plain WebDataset shard; its `.parquet` sibling lists the samples with their byte offsets, and the
clips that failed. `manifest.parquet` lists the tars that count: read those, not a glob.

- `short`: a clip's frames (`000.jpg` ...) and its caption (`txt`).
- `long`: frames of several clips of one source, their joined captions (`txt`) and the summary (`summary.txt`).
- `image`: a clip's middle frame (`jpg`) and its caption (`txt`).

```python
import webdataset
samples = webdataset.WebDataset("train/short/00000.tar", shardshuffle=False).decode("pil").to_tuple("000.jpg", "txt")
```

`gexia shards validate DIR` checks every byte; `gexia shards report DIR` draws `report.html`.
"""
