"""When a row is done: it has a commit record, and the files that the record names are the ones that lie there.

On an object store nothing keeps a second run from the same dataset. Both take any row; the first record of a row wins,
and a writer does not replace a tar of a committed row (`ShardWriter.close`). What is left is a writer that looked just
before the record came: it meets the record in its next stage, and a record that does not fit its files is withdrawn,
so that the row is made again.
"""

import hashlib
import json

from gex_pipeline.errors import Transient
from shards import format, publish, storage


def receipt_url(root: str, row: int) -> str:
    """Where extraction stores what it made of a row."""
    return storage.join(root, "commits", f"{row:05d}.extract.json")


def is_done(root: str, row: int) -> bool:
    """Whether a row needs no more work. A record that does not fit its files is withdrawn."""
    try:
        record = json.loads(storage.read_bytes(storage.join(root, format.commit_path(row))))
    except FileNotFoundError:
        return False
    if _intact(root, record["shards"]):
        return True
    withdraw(root, row)
    return False


def write(root: str, row: int, record: dict) -> dict:
    """Commit a row, and return the record that counts: this one, or another run's that was first.

    Raises Transient where the row's files are not those of its record: another run is at work on it.
    """
    if not _intact(root, record["shards"]):
        storage.delete(receipt_url(root, row))
        raise Transient(f"row {row}: another run replaced its tars")
    if not publish.write_commit(root, row, record) and not is_done(root, row):
        raise Transient(f"row {row}: another run committed other tars")
    return json.loads(storage.read_bytes(storage.join(root, format.commit_path(row))))


def withdraw(root: str, row: int) -> None:
    """Open a row again."""
    storage.delete(receipt_url(root, row))
    storage.delete(storage.join(root, format.commit_path(row)))


def _intact(root: str, shards: dict) -> bool:
    """Whether the tars have the recorded sizes and the sidecars, which list every sample, the recorded bytes."""
    try:
        return all(
            storage.size(storage.join(root, shard["path"])) == shard["bytes"]
            and _sha256(storage.join(root, format.sidecar_path(shard["path"]))) == shard["sidecar_sha256"]
            for shard in shards.values()
            if shard
        )
    except FileNotFoundError:
        return False


def _sha256(url: str) -> str:
    return hashlib.sha256(storage.read_bytes(url)).hexdigest()
