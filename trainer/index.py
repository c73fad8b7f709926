"""Where each sample lies: offsets of the shards' samples, loaded shard by shard when first needed."""

import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from shards import format, storage
from shards.errors import DatasetError
from shards.reader import Dataset, Shard, index_tar
from trainer.tars import Tar

logger = logging.getLogger(__name__)

_THREADS = 16  # sidecars and sizes asked for at once: each is one small request


class Index:
    """Byte spans of samples of a list of shards; shards and samples are numbered from 0.

    first: number of the first shard among those of all indexes, which is how windows name their tars.
    """

    def __init__(self, shards: list[tuple[Dataset, Shard]], first: int = 0):
        self.shards, self.first = shards, first
        self.tars = [Tar(dataset.shard_url(shard), shard.bytes, shard.sha256) for dataset, shard in shards]
        self._spans: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def spans(self, shards: np.ndarray, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(offset, size) in the tar of samples given as (shard, index inside it), int64 arrays of one length.

        A sample that the shard's index does not have gets size 0.
        """
        self._load(np.unique(shards))
        offsets, sizes = np.zeros(len(shards), np.int64), np.zeros(len(shards), np.int64)
        for shard in np.unique(shards):
            starts, lengths = self._spans[int(shard)]
            rows = np.flatnonzero((shards == shard) & (samples < len(starts)))
            offsets[rows], sizes[rows] = starts[samples[rows]], lengths[samples[rows]]
        return offsets, sizes

    def check_sizes(self) -> None:
        """Warn of tars whose size is not the manifest's; their unreadable samples will be replaced and counted."""
        with ThreadPoolExecutor(_THREADS) as threads:
            for tar, size in zip(self.tars, threads.map(_size, self.tars)):
                if size != tar.length:
                    logger.warning("%s: %s bytes, the manifest says %d", tar.url, size, tar.length)

    def _load(self, shards: np.ndarray) -> None:
        missing = [int(shard) for shard in shards if int(shard) not in self._spans]
        if len(missing) == 1:
            self._spans[missing[0]] = self._read(missing[0])
        elif missing:
            with ThreadPoolExecutor(_THREADS) as threads:
                self._spans.update(zip(missing, threads.map(self._read, missing)))

    def _read(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        dataset, shard = self.shards[number]
        try:
            table = dataset.sidecar(shard)
            table = table.filter(np.equal(table["status"].to_numpy(zero_copy_only=False), "ok"))
        except DatasetError as error:
            logger.warning("%s; its tar is scanned instead", error)
            table = self._scan(number)
        if len(table) != shard.samples:
            logger.warning("%s: %d samples, the manifest says %d", self.tars[number].url, len(table), shard.samples)
        return table["offset"].to_numpy(), table["size"].to_numpy()

    def _scan(self, number: int):
        try:
            return index_tar(self.tars[number].url, partial=True)
        except DatasetError as error:
            logger.warning("%s; its samples are replaced", error)
            return format.SIDECAR_SCHEMA.empty_table()


def _size(tar: Tar) -> int | None:
    try:
        return storage.size(tar.url)
    except OSError:
        return None
