"""Where each sample lies: offsets of the shards' samples, loaded shard by shard when first needed."""

import faulthandler
import logging
import threading
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue

import numpy as np

from shards import format, storage
from shards.errors import DatasetError, UserError
from shards.reader import Dataset, Shard, index_tar
from trainer.tars import Tar, is_store_failure, try_again

logger = logging.getLogger(__name__)

_THREADS = 16  # sidecars and sizes asked for at once: each is one small request


class Index:
    """Byte spans of samples of a list of shards; shards and samples are numbered from 0.

    first: number of the first shard among those of all indexes, which is how windows name their tars. patience: seconds
    without an answer from the store, after which UserError ends the run.
    """

    def __init__(self, shards: list[tuple[Dataset, Shard]], first: int = 0, patience: float = 300.0):
        self.shards, self.first, self._patience = shards, first, patience
        self.tars = [Tar(dataset.shard_url(shard), shard.bytes, shard.sha256) for dataset, shard in shards]
        self._spans: dict[int, tuple[np.ndarray, int]] = {}  # shard -> [offsets, sizes] of its samples, and their unit

    def spans(self, shards: np.ndarray, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(offset, size) in the tar of samples given as (shard, index inside it), int64 arrays of one length.

        A sample that the shard's index does not have, or has outside the tar, gets size 0.
        """
        self._load(np.unique(shards))
        offsets, sizes = np.zeros(len(shards), np.int64), np.zeros(len(shards), np.int64)
        for shard in np.unique(shards):
            spans, unit = self._spans[int(shard)]
            rows = np.flatnonzero((shards == shard) & (samples < spans.shape[1]))
            offsets[rows], sizes[rows] = spans[:, samples[rows]].astype(np.int64) * unit
        return offsets, sizes

    def check_sizes(self) -> None:
        """Warn of tars whose size is not the manifest's; their unreadable samples will be replaced and counted."""
        sizes = _at_once(lambda number: _size(self.tars[number]), range(len(self.tars)), self._patience, self._name)
        for number, tar in enumerate(self.tars):
            if sizes[number] != tar.length:
                logger.warning("%s: %s bytes, the manifest says %d", tar.url, sizes[number], tar.length)

    def _load(self, shards: np.ndarray) -> None:
        missing = [int(shard) for shard in shards if int(shard) not in self._spans]
        self._spans.update(_at_once(self._read, missing, self._patience, self._name))

    def _name(self, number: int) -> str:
        return self.tars[number].url

    def _read(self, number: int) -> tuple[np.ndarray, int]:
        dataset, shard = self.shards[number]
        try:
            table = _sidecar(dataset, shard)
            table = table.filter(np.equal(table["status"].to_numpy(zero_copy_only=False), "ok"))
        except DatasetError as error:
            logger.warning("%s; its tar is scanned instead", error)
            table = self._scan(number)
        if len(table) != shard.samples:
            logger.warning("%s: %d samples, the manifest says %d", self.tars[number].url, len(table), shard.samples)
        offsets, sizes = (table[name].to_numpy() for name in ("offset", "size"))
        inside = (offsets >= 0) & (sizes >= 0) & (sizes <= self.tars[number].length - offsets)
        return _packed(np.where(inside, [offsets, sizes], 0).astype(np.int64))

    def _scan(self, number: int):
        try:
            return try_again(lambda: index_tar(self.tars[number].url, partial=True))
        except DatasetError as error:
            if is_store_failure(error):  # an index without samples would leave the shard out for the rest of the run
                raise UserError(str(error)) from None
            logger.warning("%s; its samples are replaced", error)
            return format.SIDECAR_SCHEMA.empty_table()


def _sidecar(dataset: Dataset, shard: Shard):
    """DatasetError where it is missing or damaged, UserError where the store keeps failing."""
    try:
        return try_again(lambda: dataset.sidecar(shard))
    except DatasetError as error:
        if not is_store_failure(error):
            raise
    url = storage.join(dataset.url, format.sidecar_path(shard.path))
    try:
        storage.read_bytes(url)
    except OSError as error:
        raise UserError(f"{url}: {error}; go on when the store answers again") from None
    return dataset.sidecar(shard)  # its bytes come: Arrow raises OSError of damaged ones too


def _packed(spans: np.ndarray) -> tuple[np.ndarray, int]:
    """Numbers of bytes and their unit: tar blocks in half the memory, unless some are none, as in a damaged index."""
    if (spans % format.TAR_BLOCK).any() or spans.max(initial=0) >= format.TAR_BLOCK << 32:
        return spans, 1
    return (spans // format.TAR_BLOCK).astype(np.uint32), format.TAR_BLOCK


def _size(tar: Tar) -> int | None:
    try:
        return storage.size(tar.url)
    except OSError:
        return None


def _at_once(work: Callable[[int], object], items: Iterable[int], patience: float, name: Callable[[int], str]) -> dict:
    """{item: work(item)}, by threads that nobody waits for: one that hangs must not keep the process from ending."""
    asked, answers, left = SimpleQueue(), SimpleQueue(), set(items)
    for item in left:
        asked.put(item)

    def serve():
        while True:
            try:
                item = asked.get_nowait()
            except Empty:
                return
            try:
                answers.put((item, work(item), None))
            except BaseException as error:
                answers.put((item, None, error))

    for _ in range(min(_THREADS, len(left))):
        threading.Thread(target=serve, daemon=True).start()
    found = {}
    while left:
        try:
            item, found[item], error = answers.get(timeout=patience)
        except Empty:
            faulthandler.dump_traceback(all_threads=True)
            raise UserError(
                f"no answer for {patience:.0f} s (loader.stall_seconds) about {', '.join(sorted(map(name, left))[:3])}"
            ) from None
        if error:
            raise error
        left.remove(item)
    return found
