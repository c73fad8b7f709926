"""The work of a batch, as data and as functions of it: what both the main process and its workers import."""

import ctypes
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from trainer.decode import Decoded, Recipe, SampleError, decode_sample
from trainer.tars import Tars

_PUNCH_HOLE = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_PAGE = os.sysconf("SC_PAGE_SIZE")
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class ByteStore:
    """Sample bytes that processes share: an anonymous file in memory, which is gone with its last process.

    Regions are given out one after the other and never again; a freed one gives its memory back as a hole.
    """

    def __init__(self, fd: int | None = None):
        self.fd = os.memfd_create("gexia-windows") if fd is None else fd
        self._end = 0

    def allocate(self, size: int) -> int:
        base = self._end
        self._end += -(-size // _PAGE) * _PAGE
        return base

    def free(self, base: int, size: int) -> None:
        if size and self.fd >= 0 and _libc.fallocate(self.fd, _PUNCH_HOLE, base, -(-size // _PAGE) * _PAGE):
            raise OSError(ctypes.get_errno(), "cannot free a window's memory")

    def write(self, at: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self.fd, view, at)
            view, at = view[written:], at + written

    def read(self, at: int, size: int) -> bytes:
        return os.pread(self.fd, size, at)

    def close(self) -> None:
        """May be called again, and `free` after it: the number may be another file's by then."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


@dataclass
class Window:
    """The samples of a lane's window, in the order they are drawn; or those of one evaluation batch.

    base: where its bytes start in the store. places: where each sample's bytes lie after that, shard by shard, so that
    neighbours in a tar are neighbours here and come with one read.
    """

    epoch: int
    shards: np.ndarray  # int [n]: numbers of tars
    offsets: np.ndarray  # int64 [n]: in the tar
    sizes: np.ndarray  # int64 [n]: 0 where the index has no such sample
    base: int = 0
    failed: dict[int, tuple[str, str]] = field(default_factory=dict)  # draw -> (kind, message): cannot be used

    def __post_init__(self):
        order = np.lexsort((self.offsets, self.shards))
        self.places = np.empty_like(self.sizes)
        self.places[order] = np.cumsum(self.sizes[order]) - self.sizes[order]

    @property
    def nbytes(self) -> int:
        return int(self.sizes.sum())


def read_window(
    window: Window,
    tars: Tars,
    store: ByteStore,
    skip: dict[int, tuple[str, str]] | None = None,
    watch: Callable[[int], None] = lambda shard: None,
) -> dict[int, tuple[str, str]]:
    """Fetch a window's bytes, a run of neighbours with one read; returns samples that failed: {draw: (kind, message)}.

    skip: shards not to be touched, and why. watch: is told the shard before each read.
    """
    failed = {int(i): ("bad_index", "the shard's index does not have it") for i in np.flatnonzero(window.sizes == 0)}
    for run in _runs(window):
        shard = int(window.shards[run[0]])
        watch(shard)
        try:
            if skip and shard in skip:
                failed.update(dict.fromkeys(run, skip[shard]))
            else:
                _read_run(window, run, tars, store)
        except (OSError, EOFError):
            # Something in the run cannot be read: find out what, and keep the rest.
            for draw in run:
                watch(shard)
                try:
                    _read_run(window, [draw], tars, store)
                except EOFError as error:
                    failed[draw] = ("truncated", str(error))
                except OSError as error:
                    failed[draw] = ("unreadable", str(error))
    return failed


def _runs(window: Window) -> list[list[int]]:
    """Draws of the window in runs of neighbours in one tar."""
    runs, end = [], None
    for draw in np.argsort(window.places, kind="stable"):
        draw = int(draw)
        if window.sizes[draw] == 0:
            continue
        start = (int(window.shards[draw]), int(window.offsets[draw]))
        if start == end:
            runs[-1].append(draw)
        else:
            runs.append([draw])
        end = (start[0], start[1] + int(window.sizes[draw]))
    return runs


def _read_run(window: Window, run: list[int], tars: Tars, store: ByteStore) -> None:
    first = run[0]
    size = int(window.sizes[run].sum())
    data = tars.read(int(window.shards[first]), int(window.offsets[first]), size)
    store.write(window.base + int(window.places[first]), data)


@dataclass
class Failure:
    """Why a sample could not be used."""

    kind: str
    shard: int
    message: str


@dataclass
class Row:
    """Outcome of a batch's row. failure: of the row's own sample, if it was replaced or (decoded is None) left out."""

    row: int
    decoded: Decoded | None
    failure: Failure | None


def decode_row(
    row: int,
    draw: int,
    window: Window,
    store: ByteStore,
    recipe: Recipe,
    replace: bool,
    out: np.ndarray,
    watch: Callable[[int], None] = lambda draw: None,
) -> Row:
    """Decode a window's draw into `out`; where it fails, the next that does not (cyclic) takes its place.

    watch: is told the draw before each attempt.
    """
    failure, count = None, len(window.sizes)
    for candidate in [(draw + i) % count for i in range(count if replace else 1)]:
        watch(candidate)
        try:
            if candidate in window.failed:
                raise SampleError(*window.failed[candidate])
            data = store.read(window.base + int(window.places[candidate]), int(window.sizes[candidate]))
            return Row(row, _decode(data, recipe, window.epoch, out), failure)
        except SampleError as error:
            failure = failure or Failure(error.kind, int(window.shards[candidate]), str(error))
    out[:] = 0
    return Row(row, None, failure)


def _decode(data: bytes, recipe: Recipe, epoch: int, out: np.ndarray) -> Decoded:
    try:
        return decode_sample(data, recipe, epoch, out)
    except (SampleError, MemoryError, OSError):
        raise
    except Exception as error:  # an odd sample that no check foresaw: the run does not end for it
        raise SampleError("bad_sample", f"{type(error).__name__}: {error}") from error


@dataclass
class ReadTask:
    """Fetch a window. Answer: what `read_window` returns."""

    window: Window
    skip: dict[int, tuple[str, str]] = field(default_factory=dict)


@dataclass
class DecodeTask:
    """Decode some rows of a batch into its slot of the shared memory. Answer: list[Row]."""

    slot: int  # byte offset
    shape: tuple[int, ...]  # of the whole batch
    recipe: Recipe
    replace: bool
    rows: list[tuple[int, tuple, int]]  # (row of the batch, key of its window, draw)
    windows: dict[tuple, Window]


class Progress:
    """What one thread of a worker is doing, in memory that the main process sees: (task, detail, since)."""

    SIZE = 3  # int64 each

    def __init__(self, cells: np.ndarray):
        self._cells = cells

    def start(self, task: int, detail: int) -> None:
        """detail: the shard that is read, or row and draw as `pack_row` puts them."""
        self._cells[:] = task + 1, detail, time.monotonic_ns()

    def stop(self) -> None:
        self._cells[0] = 0

    def current(self) -> tuple[int, int, float] | None:
        """(task, detail, since when in monotonic seconds), or None while the thread waits for work."""
        task, detail, since = map(int, self._cells)
        return (task - 1, detail, since / 1e9) if task else None


def pack_row(row: int, draw: int) -> int:
    return row << 32 | draw


def unpack_row(detail: int) -> tuple[int, int]:
    return detail >> 32, detail & 0xFFFFFFFF
