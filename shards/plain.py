"""Anybody's WebDataset tars as a dataset: those of img2dataset, video2dataset, open_clip, or ours without a manifest.

A URL is a folder, one tar, or several by wildcards (`*`) and braces (`{00000..00099}`). A tar belongs to the split and
granularity that folders on its path are named after; otherwise it is training data, and its first sample tells the
granularity: one picture is an image, a video or several pictures are short, with a summary they are long.

Each tar is indexed by one scan of its headers and texts. The index is kept beside the tar (TAR.index.parquet), or else
in the user's cache folder, and is made again when the tar changes, as its size and the time or tag of its store tell.

The dataset's digest is over the texts, and the names and sizes of all members: it is the same for a copy, and another
when a caption is corrected. Pictures that are replaced by others of the same sizes do not change it, so what goes by it
(a run that resumes, kept embeddings) does not notice them; pages of a cache do, where the store tells of a change.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import fsspec
import pyarrow as pa
from braceexpand import braceexpand
from tqdm import tqdm

from shards import format, publish, storage
from shards.errors import DatasetError
from shards.reader import CONTENT, EXTENSIONS, INDEX_SCHEMA, Dataset, Shard, index_tar, open_dataset, parse_parquet
from shards.writer import parquet_bytes

_THREADS = 16
_SPLITS = {"train": "train", "training": "train", "val": "val", "validation": "val", "test": "test"}
_WILDCARDS = set("*?[{")
_VERSION = b"gexia.version"  # of the tar that an index was made of
# What stores say of when a file was written, the surest first: S3, HTTP; GCS, Azure; Hugging Face; local paths, SFTP;
# S3, HTTP, Azure, GCS and WebDAV without tags; memory.
_WRITTEN = (
    "ETag", "etag", "blob_id", "mtime", "LastModified", "Last-Modified", "last_modified", "updated", "modified", "created"
)  # fmt: skip


@dataclass(frozen=True)
class PlainDataset(Dataset):
    """Tars without a manifest. `manifest` has a digest over their names, sizes and contents; a shard's `sha256` changes
    with its contents and whenever its store says that it was written."""

    indexes: dict[str, pa.Table] = field(repr=False, default_factory=dict)  # a shard's path -> INDEX_SCHEMA

    def sidecar(self, shard: Shard) -> pa.Table:
        index = self.indexes[shard.path]
        known = {name: index[name] for name in index.schema.names} | {"sample_id": index["key"]}
        known["status"] = pa.array(["ok"]).take(pa.array([0] * len(index), pa.int8()))
        columns = [known.get(entry.name, pa.nulls(len(index), entry.type)) for entry in format.SIDECAR_SCHEMA]
        return pa.table(columns, schema=format.SIDECAR_SCHEMA)


def open_data(url: str) -> Dataset:
    """A published dataset or, where there is none, the tars of a folder, a file or a pattern.

    Raises DatasetError where there is neither, or where an expansion is unfinished: its tars are not published yet.
    """
    try:
        if not url.endswith(".tar") and _begun(url):
            return open_dataset(url)
        pattern = bool(_WILDCARDS & set(url)) and not storage.exists(url)  # a folder may be named like one
        root, paths = _find(url, pattern)
    except (ImportError, OSError, ValueError) as error:
        raise DatasetError(f"{url}: cannot list its tars: {' '.join(str(error).split())}") from None
    if not paths:
        raise DatasetError(f"{url}: no published dataset here ({publish.MANIFEST_JSON} is missing), and no tar files")
    urls = [storage.join(root, path) for path in paths]
    with ThreadPoolExecutor(_THREADS) as threads:
        indexes = list(tqdm(threads.map(_index, urls), "index", len(urls), unit="tar", disable=None, leave=False))
    shards = [_shard(row, path, index) for row, (path, index) in enumerate(zip(paths, indexes))]
    if not any(shard.samples for shard in shards):
        raise DatasetError(f"{url}: no samples in its {len(paths)} tar files")
    content = [[s.path, s.bytes, index.schema.metadata[CONTENT].decode()] for s, index in zip(shards, indexes)]
    return PlainDataset(root, {"digest": format.digest(content)}, shards, dict(zip(paths, indexes)))


def _begun(url: str) -> bool:
    return any(storage.exists(storage.join(url, name)) for name in (publish.MANIFEST_JSON, "commits", "plan"))


def _find(url: str, pattern: bool) -> tuple[str, list[str]]:
    """A folder and the sorted paths of tars below it."""
    if not pattern and url.endswith(".tar"):
        root, _, name = url.rpartition("/")
        return root or ("/" if url.startswith("/") else "."), [name] * storage.exists(url)
    names: set[str] = set()
    for one in braceexpand(url) if pattern else [url]:
        fs, path = fsspec.core.url_to_fs(one)
        wild = pattern and _WILDCARDS & set(one)
        names.update(fs.glob(path) if wild else [path] if path.endswith(".tar") else fs.find(path))
    paths = sorted(name for name in names if name.endswith(".tar"))
    folder = "/".join(os.path.commonprefix([name.split("/")[:-1] for name in paths])) if pattern else path.rstrip("/")
    paths = [name for name in paths if "/." not in name.removeprefix(folder)]
    root = folder if storage.local_path(url) is not None else fs.unstrip_protocol(folder)
    return root, [path.removeprefix(folder).lstrip("/") for path in paths]


def _shard(row: int, path: str, index: pa.Table) -> Shard:
    facts = index.schema.metadata
    folders = path.split("/")[-2::-1]  # the nearest first
    split = next((_SPLITS[name] for name in folders if name in _SPLITS), "train")
    granularity = next((name for name in folders if name in format.GRANULARITIES), None)
    return Shard(
        split=split,
        granularity=granularity or _granularity(facts[EXTENSIONS].decode().split()),
        row=row,
        path=path,
        samples=len(index),
        bytes=int(facts[_VERSION].split()[0]),
        duration_ms=0,
        sha256=hashlib.sha256(facts[CONTENT] + facts[_VERSION]).hexdigest(),
        sidecar_sha256="",
    )


def _granularity(members: list[str]) -> str:
    if "summary.txt" in members:
        return format.LONG
    kinds = [name.rpartition(".")[2] for name in members]
    still = sum(kind in format.PICTURES for kind in kinds) == 1 and not format.VIDEOS.intersection(kinds)
    return format.IMAGE if still else format.SHORT


def _index(url: str) -> pa.Table:
    """The tar's index with what else is known of it as metadata, from where it is kept or by a scan."""
    size, written = _version(url)
    version = f"{size} {written}".encode()
    # Where nothing tells that a tar has changed, its index is not kept.
    places = [f"{url}.index.parquet", _cache_path(url)] if written else []
    for place in places:
        try:
            table = parse_parquet(storage.read_bytes(place))
            facts = table.schema.metadata or {}
            if facts.get(_VERSION) == version and CONTENT in facts and table.schema.equals(INDEX_SCHEMA):
                return table
        except (OSError, pa.ArrowException):
            pass
    table = index_tar(url, partial=True)
    table = table.replace_schema_metadata({**table.schema.metadata, _VERSION: version})
    for place in places:
        try:
            storage.write_bytes_atomic(place, parquet_bytes(table))
            break
        except (OSError, NotImplementedError):
            continue
    return table


def _version(url: str) -> tuple[int, str]:
    """The tar's bytes, and what its store says of when they were written ("" where it does not)."""
    fs, path = fsspec.core.url_to_fs(url)
    try:
        facts = fs.info(path)
    except OSError as error:
        raise DatasetError(f"{url}: cannot read the tar: {' '.join(str(error).split())}") from None
    if facts["size"] is None:
        raise DatasetError(f"{url}: the server does not say how long the tar is; copy it to a disk or an object store")
    return facts["size"], str(next((facts[name] for name in _WRITTEN if facts.get(name)), ""))


def _cache_path(url: str) -> str:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = storage.local_path(url)
    name = hashlib.sha256((url if path is None else os.path.abspath(path)).encode()).hexdigest()[:24]
    return os.path.join(home, "gexia", "indexes", f"{name}.parquet")
