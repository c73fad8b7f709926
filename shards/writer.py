"""Samples in, one tar and its sidecar out: the same bytes for the same samples, and nothing visible until whole."""

import hashlib
import io
import os
from contextlib import ExitStack, suppress

import pyarrow as pa
import pyarrow.parquet as pq

from shards import format, scratch, storage, tar


class ShardWriter:
    """Writes one row's tar of one granularity. A context manager: left by an exception, it leaves nothing behind.

    `root` is the dataset (path or fsspec URL). The tar grows under a temporary name beside its final one; for a
    remote root in `work_dir` (default: the system's temporary folder). Memory is bounded by the sidecar's lines.
    """

    def __init__(self, root: str, split: str, granularity: str, row: int, work_dir: str | None = None):
        self.split, self.granularity, self.row = split, granularity, row
        self.path = format.shard_path(split, granularity, row)
        self._root, self._url = root, storage.join(root, self.path)
        self._sidecar_url = storage.join(root, format.sidecar_path(self.path))
        self._scratch = ExitStack()
        self._temporary = self._temporary_path(work_dir)
        self._file = open(self._temporary, "xb")
        self._sha256 = hashlib.sha256()
        self._offset = 0
        self._samples = 0
        self._lines: list[dict] = []

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._discard()

    def add(
        self,
        *,
        sample_id: str,
        source_id: str,
        clip_ids: list[str],
        meta: dict,
        texts: dict[str, str],
        frames: list[bytes] | bytes,
        duration_ms: int,
        decoder: str,
    ) -> str:
        """Append a sample and return its key.

        `meta` is every field of the json that is not an argument here, `frame_ms` (one per frame) and `sentences`
        among them; `texts` maps the granularity's text views to their texts; `frames` are JPEG files, or one MP4 file.
        ValueError for a sample that the format forbids.
        """
        key = format.sample_key(self.row, self._samples)
        fields = {
            **meta,
            "key": key,
            "sample_id": sample_id,
            "granularity": self.granularity,
            "split": self.split,
            "source_id": source_id,
            "duration_ms": duration_ms,
        }
        if self.granularity != format.LONG:
            fields["decoder"] = decoder
        missing = format.json_fields(self.granularity) - fields.keys()
        if missing:
            raise ValueError(f"sample {sample_id}: json lacks {', '.join(sorted(missing))}")
        count = len(meta["frame_ms"])
        if not frames or not count or (isinstance(frames, list) and len(frames) != count):
            raise ValueError(f"sample {sample_id}: {len(frames)} frames for {count} timestamps")
        unknown = texts.keys() - format.TEXT_VIEWS[self.granularity].keys()
        if unknown:
            views = ", ".join(format.TEXT_VIEWS[self.granularity])
            raise ValueError(f"sample {sample_id}: texts {', '.join(sorted(unknown))}, a {self.granularity} sample has {views}")
        members = {"json": format.canonical_json(fields), **format.text_fields(self.granularity, texts)}
        members.update(format.frame_fields(self.granularity, frames))

        start = self._offset
        for extension, data in members.items():
            self._write_member(f"{key}.{extension}", data)
        self._samples += 1
        self._lines.append(
            {
                "key": key,
                "sample_id": sample_id,
                "status": "ok",
                "source_id": source_id,
                "clip_ids": clip_ids,
                "offset": start,
                "size": self._offset - start,
                "members": len(members),
                "frames": count,
                "duration_ms": duration_ms,
                "words": len(members.get("txt", b"").decode().split()),
                "decoder": decoder,
            }
        )
        return key

    def fail(self, *, sample_id: str, source_id: str, clip_ids: list[str], kind: str, error: str) -> None:
        """Record a sample that could not be made: a line in the sidecar, nothing in the tar."""
        line = {"sample_id": sample_id, "status": "failed", "kind": kind, "error": " ".join(error.split())}
        self._lines.append({**line, "source_id": source_id, "clip_ids": clip_ids})

    def close(self) -> dict | None:
        """Verify and publish: the tar, then its sidecar. Returns what the commit record says of the shard, or None
        when no sample succeeded; then what an earlier attempt at the row left there goes. FileExistsError where the row
        has a commit record by now: its tars are never replaced."""
        self._write(tar.END)
        self._file.close()
        self._verify()
        if storage.exists(storage.join(self._root, format.commit_path(self.row))):
            raise FileExistsError(f"{self._url}: its row was committed meanwhile")
        if not self._samples:
            storage.delete(self._sidecar_url)
            storage.delete(self._url)
            self._discard()
            return None
        sidecar = parquet_bytes(pa.Table.from_pylist(self._lines, schema=format.SIDECAR_SCHEMA))
        storage.publish_file(self._temporary, self._url)
        storage.write_bytes_atomic(self._sidecar_url, sidecar)
        return {
            "path": self.path,
            "samples": self._samples,
            "bytes": self._offset,
            "sha256": self._sha256.hexdigest(),
            "sidecar_sha256": hashlib.sha256(sidecar).hexdigest(),
            "duration_ms": sum(line.get("duration_ms") or 0 for line in self._lines),
        }

    def _temporary_path(self, work_dir: str | None) -> str:
        local = storage.local_path(self._url)
        if local is None:
            folder = work_dir or self._scratch.enter_context(scratch.folder())
            local = os.path.join(folder, f"{self.granularity}-{self.row:05d}.tar")
        os.makedirs(os.path.dirname(local), exist_ok=True)
        return storage.temporary_name(local)

    def _write_member(self, name: str, data: bytes) -> None:
        self._write(tar.header(name, len(data)))
        self._write(data)
        self._write(bytes(tar.padded(len(data)) - len(data)))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._offset += len(data)

    def _verify(self) -> None:
        """What lies on disk is what was written: a full disk or a torn write must not become a shard."""
        sha256 = hashlib.sha256()
        with open(self._temporary, "rb") as file:
            while block := file.read(1 << 20):
                sha256.update(block)
        if sha256.digest() != self._sha256.digest():
            raise OSError(f"{self._temporary}: the bytes on disk are not the bytes that were written")

    def _discard(self) -> None:
        try:
            self._file.close()  # flushes: fails again on a full disk
        finally:
            with suppress(FileNotFoundError):
                os.unlink(self._temporary)
            self._scratch.close()


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as a parquet file: the same bytes for the same table and pyarrow version."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
