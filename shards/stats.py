"""What a dataset holds, in numbers: from its sidecars and its error ledger, without reading a tar."""

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow.compute as pc

from shards import format, storage
from shards.reader import Dataset, Shard, read_parquet

_READERS = 16  # files read at a time: on an object store the wait is latency


@dataclass
class Group:
    """The samples of one split and granularity. `seconds` of video and `words` of the txt member are float64 and
    int64, one a sample."""

    split: str
    granularity: str
    samples: int = 0
    failed: int = 0
    shards: int = 0
    bytes: int = 0
    seconds: np.ndarray = field(default_factory=lambda: np.empty(0))
    words: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    def cells(self) -> list[str]:
        """What every table of groups begins with: split, granularity, samples, failed, shards, megabytes."""
        counts = (f"{count:,}" for count in (self.samples, self.failed, self.shards))
        return [self.split, self.granularity, *counts, f"{self.bytes / 1e6:,.1f}"]


@dataclass
class Failure:
    """Ledger entries of one stage and kind, with the first one's clip and message."""

    stage: str
    kind: str
    count: int
    clip_id: str
    message: str


def collect(dataset: Dataset, split: str | None = None, granularity: str | None = None) -> list[Group]:
    """A Group for each split and granularity, in the order of the manifest."""
    groups: dict[tuple[str, str], list] = defaultdict(list)
    shards = dataset.select(split, granularity)
    with ThreadPoolExecutor(_READERS) as pool:
        for shard, columns in zip(shards, pool.map(lambda shard: _columns(dataset, shard), shards)):
            groups[shard.split, shard.granularity].append((shard, columns))
    return [_group(*name, parts) for name, parts in groups.items()]


def failures(dataset: Dataset) -> list[Failure]:
    """The ledger's entries by stage and kind, the most frequent first."""
    urls = [storage.join(dataset.url, "errors", name) for name in storage.list_dir(f"{dataset.url}/errors", ".parquet")]
    found: dict[tuple[str, str], Failure] = {}
    with ThreadPoolExecutor(_READERS) as pool:
        for table in pool.map(lambda url: read_parquet(url, format.LEDGER_SCHEMA), urls):
            for line in table.to_pylist():
                kind = line["stage"], line["kind"]
                failure = found.setdefault(kind, Failure(*kind, 0, line["clip_id"], line["message"]))
                failure.count += 1
    return sorted(found.values(), key=lambda failure: (-failure.count, failure.stage, failure.kind))


def _columns(dataset: Dataset, shard: Shard) -> tuple[int, np.ndarray, np.ndarray]:
    table = dataset.sidecar(shard)
    ok = table.filter(pc.equal(table["status"], "ok"))
    milliseconds, words = (pc.fill_null(ok[name], 0).to_numpy() for name in ("duration_ms", "words"))
    return len(table) - len(ok), milliseconds, words


def _group(split: str, granularity: str, parts: list) -> Group:
    return Group(
        split,
        granularity,
        samples=sum(shard.samples for shard, _ in parts),
        failed=sum(failed for _, (failed, _, _) in parts),
        shards=len(parts),
        bytes=sum(shard.bytes for shard, _ in parts),
        seconds=np.concatenate([milliseconds for _, (_, milliseconds, _) in parts]) / 1000,
        words=np.concatenate([words for _, (_, _, words) in parts]),
    )
