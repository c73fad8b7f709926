"""Fields of the samples' json, read without their frames; and samples held out of a split."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from shards import storage, tar
from shards.errors import DatasetError, UserError
from shards.format import IMPORT_RECORD, TAR_BLOCK
from shards.reader import Dataset, Shard
from trainer.order import derive_key

_FIRST_READ = 8192  # bytes: json comes first in a sample, and few are longer
_THREADS = 16


def read_fields(dataset: Dataset, split: str | None, granularity: str, names: tuple[str, ...]) -> list[dict]:
    """Of every sample of a split, in order: those of the fields that its json has. None: of all splits, and of the
    classes that `gexia import` wrote beside the dataset, whose videos may be missing."""
    places, record = [], storage.join(dataset.url, IMPORT_RECORD)
    classes = json.loads(storage.read_bytes(record)).get("classes", []) if split is None and storage.exists(record) else []
    for shard in dataset.select(split, granularity):
        lines = _ok(dataset.sidecar(shard)).select(["offset", "size"]).to_pylist()
        places += [(dataset.shard_url(shard), line["offset"], line["size"]) for line in lines]
    with ThreadPoolExecutor(_THREADS) as threads:
        found = [*threads.map(lambda place: _read_json(*place), places), *classes]
        return [{name: meta[name] for name in names if meta.get(name) is not None} for meta in found]


def _read_json(url: str, offset: int, size: int) -> dict:
    """The json of the sample at [offset, offset + size) of a tar; {} where it has none."""
    try:
        data = storage.read_range(url, offset, min(size, _FIRST_READ))
        if data[:100].rstrip(b"\0").endswith(b".json"):  # the first member's header
            size = TAR_BLOCK + tar.padded(int(data[124:135], 8))
        if size > len(data):
            data = storage.read_range(url, offset, size)
        found = [bytes(value) for name, value in tar.parse_members(data[:size]) if name.endswith(".json")]
        return json.loads(found[0]) if found else {}
    except (OSError, EOFError, ValueError) as error:
        raise DatasetError(f"{url}: no sample at byte {offset}: {' '.join(str(error).split())}") from None


@dataclass(frozen=True)
class Subset(Dataset):
    """A dataset of which only some sources are there; its shards count their samples without the others."""

    whole: Dataset
    sources: frozenset[str]

    def sidecar(self, shard: Shard) -> pa.Table:
        table = self.whole.sidecar(shard)
        return table.filter(pc.is_in(table["source_id"], pa.array(self.sources, pa.string())))


def hold_out(dataset: Dataset, split: str, share: float) -> tuple[Dataset, Dataset]:
    """(the rest, the held out): a split in two, no source in both. Held out are the sources whose hashes are smallest,
    so that another order of shards, or a few videos more, change little.

    Raises UserError where one of the two would be empty.
    """
    sources = {source for shard in dataset.select(split) for source in _ok(dataset.sidecar(shard))["source_id"].to_pylist()}
    ordered = sorted(sources, key=lambda source: (derive_key("held out", source), source))
    count = math.ceil(share * len(ordered))
    if not 0 < count < len(ordered):
        raise UserError(f"{dataset.url}: {split} has {len(ordered)} sources, too few to hold some out; see splits")
    return _subset(dataset, split, ordered[count:]), _subset(dataset, split, ordered[:count])


def _subset(dataset: Dataset, split: str, sources: list[str]) -> Subset:
    subset = Subset(dataset.url, dataset.manifest, [], dataset, frozenset(sources))
    counted = [(shard, len(_ok(subset.sidecar(shard)))) for shard in dataset.select(split)]
    return replace(subset, shards=[replace(shard, samples=count) for shard, count in counted if count])


def _ok(sidecar: pa.Table) -> pa.Table:
    return sidecar.filter(pc.equal(sidecar["status"], "ok"))
