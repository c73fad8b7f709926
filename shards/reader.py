"""Datasets, shards and samples, read from local paths and fsspec URLs."""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

import pyarrow as pa
import pyarrow.parquet as pq

from shards import format, publish, storage, tar
from shards.errors import DatasetError
from shards.tar import TarError, parse_members

logger = logging.getLogger(__name__)

__all__ = [
    "Dataset", "DatasetError", "Shard", "TarError",
    "group_samples", "index_tar", "iter_shard", "open_dataset", "parse_members",
]  # fmt: skip

INDEX_SCHEMA = pa.schema([("key", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("members", pa.int32())])
# Metadata of an index: a digest of the members' names and sizes and of the texts, and the first sample's extensions.
CONTENT, EXTENSIONS = b"gexia.content", b"gexia.extensions"


@dataclass(frozen=True)
class Shard:
    """A line of the manifest. `path` is relative to the dataset; `bytes`, `samples` and digests are the tar's."""

    split: str
    granularity: str
    row: int
    path: str
    samples: int
    bytes: int
    duration_ms: int
    sha256: str
    sidecar_sha256: str


@dataclass(frozen=True)
class Dataset:
    """A published dataset: `manifest` is manifest.json, `shards` the lines of manifest.parquet."""

    url: str
    manifest: dict
    shards: list[Shard]

    def select(self, split: str | None = None, granularity: str | None = None) -> list[Shard]:
        """Shards of a split and a granularity (None: any), by row."""
        return [s for s in self.shards if split in (None, s.split) and granularity in (None, s.granularity)]

    def shard_url(self, shard: Shard) -> str:
        return storage.join(self.url, shard.path)

    def sidecar(self, shard: Shard) -> pa.Table:
        """The shard's sidecar (`format.SIDECAR_SCHEMA`)."""
        return read_parquet(storage.join(self.url, format.sidecar_path(shard.path)), format.SIDECAR_SCHEMA)

    def read_sample(self, shard: Shard, line: dict) -> dict[str, memoryview]:
        """Members of one sample by its line of the sidecar, as {extension: bytes}: one ranged read."""
        url = self.shard_url(shard)
        try:
            samples = dict(group_samples(parse_members(storage.read_range(url, line["offset"], line["size"]))))
            return samples[line["key"]]
        except (OSError, EOFError, KeyError, TarError) as error:
            raise DatasetError(f"{url}: sample {line['key']} is not where the sidecar says: {_line(error)}") from None

    @contextmanager
    def using(self, shard: Shard, line: dict) -> Iterator[dict[str, memoryview]]:
        """`read_sample`, for code that takes the members to be as the format says; DatasetError where they are not."""
        members = self.read_sample(shard, line)
        try:
            yield members
        except (LookupError, TypeError, ValueError, AttributeError, OSError) as error:
            wrong = f"it has no {_line(error)}" if isinstance(error, KeyError) else _line(error)
            where = f"{self.shard_url(shard)}: sample {line['key']}"
            raise DatasetError(f"{where} is damaged: {wrong}; `gexia shards validate {self.url}` says all") from None


def open_dataset(url: str) -> Dataset:
    """Read the manifest of a published dataset; DatasetError where there is none that this version understands."""
    where = storage.join(url, publish.MANIFEST_JSON)
    try:
        manifest = json.loads(storage.read_bytes(where))
    except (FileNotFoundError, NotADirectoryError):
        raise DatasetError(f"{url}: no published dataset here ({publish.MANIFEST_JSON} is missing)") from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{where}: cannot read the manifest: {_line(error)}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != format.FORMAT:
        raise DatasetError(f"{where}: not the manifest of a {format.FORMAT} dataset")
    if manifest.get("version") != format.VERSION:
        found = manifest.get("version")
        raise DatasetError(f"{where}: format version {found}, this gexia reads version {format.VERSION}")
    for name, kind in (("digest", str), ("plan_digest", str), ("counts", dict)):
        if not isinstance(manifest.get(name), kind):
            raise DatasetError(f"{where}: damaged, it has no {name}; run the job that published the dataset again")
    table = read_parquet(storage.join(url, publish.MANIFEST_PARQUET), format.MANIFEST_SCHEMA)
    return Dataset(url, manifest, [Shard(**line) for line in table.to_pylist()])


def group_samples(members: Iterable[tuple[str, object]]) -> Iterator[tuple[str, dict]]:
    """Adjacent (name, bytes) members that share a WebDataset key -> (key, {extension: bytes})."""
    named = ((tar.split_name(name), data) for name, data in members)
    keyed = ((split, data) for split, data in named if split is not None)
    for key, group in groupby(keyed, key=lambda item: item[0][0]):
        yield key, {split[1]: data for split, data in group}


def iter_shard(url: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Samples of any WebDataset tar as (key, {extension: bytes}), one sample in memory at a time."""
    try:
        with storage.open_read(url) as file:
            yield from group_samples((member.name, member.data) for member in tar.scan(file))
    except (OSError, TarError) as error:
        raise _unreadable(url, error) from None


def index_tar(url: str, partial: bool = False) -> pa.Table:
    """Samples of any WebDataset tar by one scan of its headers and texts: key, offset, size (bytes), members.

    partial: of a damaged tar those before the damage, with a warning; otherwise DatasetError.
    The offsets mean what a sidecar's do: [offset, offset + size) holds exactly the sample's members.
    """
    lines, names, content = [], [], hashlib.sha256()
    try:
        with storage.open_read(url) as file:
            keyed = ((tar.split_name(m.name), m) for m in tar.scan(file, read=_is_text))
            for key, group in groupby(((s, m) for s, m in keyed if s is not None), key=lambda item: item[0][0]):
                splits, members = zip(*group)
                names = names or [extension for _, extension in splits]
                first, last = members[0].offset, members[-1].end
                lines.append({"key": key, "offset": first, "size": last - first, "members": len(members)})
                for member in members:
                    content.update(f"{member.name}\0{member.size}\0".encode() + (member.data or b""))
    except (OSError, TarError) as error:
        if not (partial and isinstance(error, TarError)):
            raise _unreadable(url, error) from None
        logger.warning("%s: %s; only the %d samples before that are used", url, _line(error), len(lines))
    table = pa.Table.from_pylist(lines, schema=INDEX_SCHEMA)
    return table.replace_schema_metadata({CONTENT: content.hexdigest(), EXTENSIONS: " ".join(names)})


def _unreadable(url: str, error: Exception) -> DatasetError:
    remote = isinstance(error, OSError) and storage.local_path(url) is None
    reason = _line(error).removeprefix(f"{url}: ") + ("; try again, or use a copy" if remote else "")
    return DatasetError(f"{url}: cannot read the tar: {reason}")


def _is_text(name: str) -> bool:
    return name.rpartition(".")[2].lower() in format.TEXTS


def read_parquet(url: str, schema: pa.Schema) -> pa.Table:
    """A parquet file of the format, as `schema`; DatasetError where it is missing, damaged or something else."""
    try:
        return parse_parquet(storage.read_bytes(url)).select(schema.names).cast(schema)
    except FileNotFoundError:
        raise DatasetError(f"{url}: missing") from None
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise DatasetError(f"{url}: cannot read it: {_line(error)}") from None


def parse_parquet(data: bytes) -> pa.Table:
    """A small parquet file's table, read on this thread alone.

    `pq.read_table` scans on Arrow's I/O threads even with use_threads=False; one that still holds Python's bytes as
    the interpreter ends aborts the process ("terminate called without an active exception", seen on busy machines).
    """
    return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
