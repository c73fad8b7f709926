"""How tests change one thing of a dataset and leave it whole in every other way."""

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from shards import format, publish, reader, tar
from shards.writer import parquet_bytes


def read_tar(path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as archive:
        return [(info.name, archive.extractfile(info).read()) for info in archive]


def rebuild(root: Path, path: str, change) -> None:
    """Write a tar's changed members back; sidecar and manifest agree with the result."""
    members = change(read_tar(root / path))
    out = io.BytesIO()
    for name, data in members:
        out.write(tar.header(name, len(data)) + data + bytes(tar.padded(len(data)) - len(data)))
    (root / path).write_bytes(out.getvalue() + tar.END)

    before = {line["key"]: line for line in read_sidecar(root, path)}
    index = reader.index_tar(str(root / path)).to_pylist()
    template = next(iter(before.values()))
    lines = []
    for place in index:
        names = [name for name, _ in members if name.startswith(place["key"] + ".")]
        frames = sum(name.endswith("jpg") for name in names)
        fields = before.get(place["key"]) or {**template, "sample_id": json_sample_id(members, place["key"], template)}
        lines.append({**fields, **place, "frames": frames})
    duration = sum(line["duration_ms"] for line in lines)
    edit_sidecar(root, path, lambda _: lines, samples=len(lines), duration_ms=duration, **tar_facts(root / path))


def json_sample_id(members, key, template):
    data = dict(members).get(f"{key}.json")
    return json.loads(data)["sample_id"] if data else template["sample_id"]


def tar_facts(path: Path) -> dict:
    return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": os.stat(path).st_size}


def read_sidecar(root: Path, path: str) -> list[dict]:
    return pq.read_table(root / format.sidecar_path(path)).to_pylist()


def edit_sidecar(root: Path, path: str, change, **manifest) -> None:
    data = parquet_bytes(pa.Table.from_pylist(change(read_sidecar(root, path)), schema=format.SIDECAR_SCHEMA))
    (root / format.sidecar_path(path)).write_bytes(data)
    edit_manifest(root, path, sidecar_sha256=hashlib.sha256(data).hexdigest(), **manifest)


def edit_manifest(root: Path, path: str, **changes) -> None:
    lines = pq.read_table(root / "manifest.parquet").to_pylist()
    seal_manifest(root, [{**line, **changes} if line["path"] == path else line for line in lines])


def seal_manifest(root: Path, lines: list[dict]) -> None:
    table = publish.manifest_table(lines)
    (root / "manifest.parquet").write_bytes(parquet_bytes(table))
    edit_manifest_json(root, digest=publish.content_digest(table), counts=publish.counts(table))


def edit_manifest_json(root: Path, **changes) -> None:
    manifest = json.loads((root / "manifest.json").read_text())
    (root / "manifest.json").write_text(json.dumps({**manifest, **changes}))


def replace(members, name, data):
    return [(n, data if n == name else d) for n, d in members]


def edit_json(members, name, _drop=(), **changes):
    fields = {**json.loads(dict(members)[name]), **changes}
    return replace(members, name, format.canonical_json({k: v for k, v in fields.items() if k not in _drop}))


def insert_after(members, name, member):
    at = [n for n, _ in members].index(name) + 1
    return [*members[:at], member, *members[at:]]
