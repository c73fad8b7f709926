"""Commit records, the manifest and the dataset card: what makes written shards a dataset."""

import json
import re
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from shards import card, format, storage
from shards.writer import parquet_bytes

MANIFEST_JSON, MANIFEST_PARQUET = "manifest.json", "manifest.parquet"

_READERS = 16  # commit records read at a time: on an object store the wait is latency


def write_commit(root: str, row: int, record: dict) -> bool:
    """Write a row's commit record; the first one wins. Returns whether this was it.

    `record` has at least `row` and `shards`: {granularity: what `ShardWriter.close` returned, or None}, and
    `licenses`: {licence, or "": clips} where they are known.
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
    commits = read_commits(root)
    table = manifest_table(_committed_shards(commits))
    manifest = {
        "format": format.FORMAT,
        "version": format.VERSION,
        "digest": content_digest(table),
        "plan_digest": plan_digest,
        "config_digest": config_digest,
        "frames": frames,
        "counts": counts(table),
        "licenses": _licenses(commits),
        "versions": versions,
    }
    storage.write_bytes_atomic(storage.join(root, MANIFEST_PARQUET), parquet_bytes(table))
    text = card.render(manifest, table["path"].to_pylist())
    storage.write_bytes_atomic(storage.join(root, card.CARD), text.encode())
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


def _licenses(commits: list[dict]) -> dict[str, int]:
    """Licence -> clips ("": not stated); empty where no clip has one."""
    total = Counter()
    for record in commits:
        total.update(record.get("licenses", {}))
    return dict(total) if any(total) else {}


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
