"""Which sample comes when: the order of training as a function of (seed, step). No I/O, no state.

Three levels, each a closed form, so that any step can be asked for at any time:

    Mix      step -> stream, and how many steps that stream had before
    Stream   the stream's step -> its lanes' draws; lanes are dealt to the parts (datasets) by weight
    Part     epoch -> permuted blocks -> one run of samples a lane -> windows, each drawn in its own order

An epoch of a part is the concatenation of its blocks (contiguous samples of one shard) in a seeded order. Lane `i`
owns the i-th run of it, all runs equally long; what is left at the end, fewer samples than a batch, is the epoch's
remainder. A lane walks its run window by window and draws every window's samples in a seeded order. Windows of
different lanes end at different steps, which spreads the reads.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from hashlib import blake2b

import numpy as np

from shards.errors import UserError

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def derive_key(*parts) -> int:
    """64-bit key of a tuple of strings and integers, the same on every machine and in every version."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser: uint64 -> uint64, each bit of the input reaching every bit of the output."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permutation(key: int, n: int) -> np.ndarray:
    """A permutation of range(n), int32, that depends on `key` alone (numpy's own may change between versions)."""
    hashes = _mix(np.arange(n, dtype=np.uint64) * _GOLDEN + np.uint64(key))
    return np.argsort(hashes, kind="stable").astype(np.int32)


class Mix:
    """Interleaves items by weight: after s steps item i was chosen w_i·s times, off by at most half a step for
    each level of a binary tree over the items (two steps for 16 items).

    Each node of the tree splits its steps between two halves by rounding, so counts at any step are exact integer
    arithmetic.
    """

    def __init__(self, weights: list[float]):
        exact = [Fraction(str(weight)) for weight in weights]
        if not exact or min(exact) <= 0:
            raise ValueError(f"weights must be positive, got {weights}")
        self._root = self._build(exact, 0)

    def _build(self, weights: list[Fraction], first: int):
        if len(weights) == 1:
            return first
        half = len(weights) // 2
        share = sum(weights[:half]) / sum(weights)
        return share, self._build(weights[:half], first), self._build(weights[half:], first + half)

    def at(self, step: int) -> tuple[int, int]:
        """(item chosen at `step`, how often it was chosen before)."""
        node = self._root
        while not isinstance(node, int):
            share, left, right = node
            before, after = _round_half_up(share * step), _round_half_up(share * (step + 1))
            node, step = (left, before) if after > before else (right, step - before)
        return node, step

    def counts(self, steps: int) -> list[int]:
        """How often each item is chosen in the first `steps` steps."""

        def walk(node, steps):
            if isinstance(node, int):
                return [steps]
            share, left, right = node
            to_left = _round_half_up(share * steps)
            return walk(left, to_left) + walk(right, steps - to_left)

        return walk(self._root, steps)


def _round_half_up(value: Fraction) -> int:
    return (2 * value.numerator + value.denominator) // (2 * value.denominator)


class Part:
    """The order of one part of a stream: shards that share an epoch.

    shard_samples: samples of each shard. lanes: runs the epoch is cut into. per_lane: samples a lane gives a step.
    block: samples of a shard that stay together. window_steps: steps a lane's window lasts. key: the seed.
    """

    def __init__(self, shard_samples: list[int], lanes: int, per_lane: int, block: int, window_steps: int, key: int):
        sizes = np.asarray(shard_samples, dtype=np.int64)
        self.lanes, self.per_lane, self.block, self.window_steps = lanes, per_lane, block, window_steps
        self.samples = int(sizes.sum())
        self.batch = lanes * per_lane
        self.steps = self.samples // self.batch
        self.remainder = self.samples - self.steps * self.batch
        self.longest = min(window_steps, self.steps) * per_lane  # samples in a window, at most
        self._shard_ends = np.cumsum(sizes)
        self._shard_starts = self._shard_ends - sizes
        self._block_ends = np.cumsum(-(-sizes // block))
        self._key = key
        self._offsets = np.arange(lanes, dtype=np.int64) * window_steps // lanes
        self._epoch_blocks = lru_cache(maxsize=2)(self._permute_blocks)

    def epoch(self, step: int) -> tuple[int, int]:
        """(epoch, step inside it) of the part's step."""
        return divmod(step, self.steps)

    def windows(self, lanes: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
        """For each lane at a step inside an epoch: its window's number, and how many of its samples were drawn."""
        shifted = step + self._offsets[lanes]
        numbers = shifted // self.window_steps
        begins, _ = self._window_steps(lanes, numbers)
        return numbers, (step - begins) * self.per_lane

    def draws(self, epoch: int, lanes: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Samples of windows in the order they are drawn: int64 [windows, longest window], -1 after a window's end.

        A sample is its number among all samples of the part; `locate` gives its shard.
        """
        begins, ends = self._window_steps(lanes, numbers)
        within = np.arange(self.longest, dtype=np.int64)
        inside = within < ((ends - begins) * self.per_lane)[:, None]
        place = (lanes.astype(np.uint64) << np.uint64(40)) + numbers.astype(np.uint64)
        keys = _mix(np.uint64(derive_key(self._key, epoch, "windows")) + place)
        hashes = _mix(keys[:, None] + within.astype(np.uint64) * _GOLDEN)
        hashes[~inside] = np.iinfo(np.uint64).max
        order = np.argsort(hashes, axis=1, kind="stable")
        positions = (lanes * self.steps + begins)[:, None] * self.per_lane + order
        positions[~inside] = 0
        samples = self._samples_at(epoch, positions)
        samples[~inside] = -1
        return samples

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(shard, index inside the shard) of samples."""
        shards = np.searchsorted(self._shard_ends, samples, side="right")
        return shards, samples - self._shard_starts[shards]

    def spare(self, lane: int, number: int, attempt: int) -> tuple[int, int]:
        """(lane, number) of a window to take a sample from when all of a window is bad, for attempt 1, 2, …"""
        lane = (lane + attempt) % self.lanes
        count = (self.steps - 1 + int(self._offsets[lane])) // self.window_steps + 1
        return lane, (number + attempt) % count

    def _window_steps(self, lanes, numbers) -> tuple[np.ndarray, np.ndarray]:
        """First and last + 1 step of windows, inside an epoch. Lanes start in the middle of their first window."""
        begins = numbers * self.window_steps - self._offsets[lanes]
        return np.maximum(begins, 0), np.minimum(begins + self.window_steps, self.steps)

    def _permute_blocks(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's blocks in order, and where each ends in the epoch."""
        order = permutation(derive_key(self._key, epoch, "blocks"), int(self._block_ends[-1]))
        _, sizes = self._block_spans(order)
        return order, np.cumsum(sizes)

    def _samples_at(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        order, ends = self._epoch_blocks(epoch)
        place = np.searchsorted(ends, positions, side="right")
        firsts, sizes = self._block_spans(order[place])
        return firsts + positions - (ends[place] - sizes)

    def _block_spans(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First sample and size of blocks."""
        shards = np.searchsorted(self._block_ends, blocks, side="right")
        before = np.where(shards > 0, self._block_ends[shards - 1], 0)
        firsts = self._shard_starts[shards] + (blocks - before) * self.block
        return firsts, np.minimum(self.block, self._shard_ends[shards] - firsts)


@dataclass(frozen=True)
class Draw:
    """What some lanes of a part draw at one step."""

    epoch: int
    numbers: np.ndarray  # int64 [lanes]: each lane's window
    drawn: np.ndarray  # int64 [lanes]: samples drawn from that window before
    samples: np.ndarray  # int64 [lanes, per_lane]
    opened: np.ndarray  # indices of lanes whose window differs from the step asked for before


class Walk:
    """Some lanes of a part, asked step after step: holds their current windows so that a step costs little.

    Steps may be asked for in any order; what is drawn depends on the step alone.
    """

    def __init__(self, part: Part, lanes: np.ndarray):
        self.part, self.lanes = part, np.asarray(lanes, dtype=np.int64)
        self._epoch = -1
        self._numbers = np.full(len(self.lanes), -1, dtype=np.int64)
        self._windows = np.full((len(self.lanes), part.longest), -1, dtype=np.int64)
        self.lengths = np.zeros(len(self.lanes), dtype=np.int64)  # samples in each lane's current window

    def at(self, step: int) -> Draw:
        """The draw of the part's step."""
        epoch, inside = self.part.epoch(step)
        numbers, drawn = self.part.windows(self.lanes, inside)
        opened = np.flatnonzero((self._numbers != numbers) | (self._epoch != epoch))
        if opened.size:
            self._windows[opened] = self.part.draws(epoch, self.lanes[opened], numbers[opened])
            self._numbers, self._epoch = numbers, epoch
            self.lengths[opened] = (self._windows[opened] >= 0).sum(axis=1)
        columns = drawn[:, None] + np.arange(self.part.per_lane)
        return Draw(epoch, numbers, drawn, np.take_along_axis(self._windows, columns, axis=1), opened)

    def window(self, lane: int) -> np.ndarray:
        """All samples of the current window of `self.lanes[lane]`, in the order they are drawn."""
        return self._windows[lane, : self.lengths[lane]]


class Stream:
    """The order of one stream: a global batch of `batch` samples, the same number from each of `lanes` lanes.

    parts: for each part, samples of each of its shards. part_weights: share of the lanes each part gets.
    window_samples: samples that the windows of all lanes hold together.
    Raises UserError for settings that do not divide, or a part with fewer samples than it owes a batch.
    """

    def __init__(
        self,
        name: str,
        parts: list[list[int]],
        part_weights: list[float],
        batch: int,
        lanes: int,
        block: int,
        window_samples: int,
        seed: int,
    ):
        _check_lanes(name, batch, lanes)
        self.name, self.batch, self.lanes, self.per_lane = name, batch, lanes, batch // lanes
        mix = Mix(part_weights)
        self._lane_part, self._lane_index = np.array([mix.at(lane) for lane in range(lanes)], dtype=np.int64).T
        self.parts = []
        for i, (shard_samples, part_lanes) in enumerate(zip(parts, mix.counts(lanes), strict=True)):
            if part_lanes == 0:
                raise UserError(
                    f"stream {name}: data {i + 1} of {len(parts)} has too small a weight for one of {lanes} lanes; "
                    "raise its weight, lanes or batch"
                )
            owed, available = part_lanes * self.per_lane, sum(shard_samples)
            if available < owed:
                where = f" from data {i + 1}" if len(parts) > 1 else ""
                raise UserError(
                    f"stream {name}: a batch takes {owed} samples{where}, but there are {available}; lower batch to "
                    f"{batch * available // owed} or less, or add data"
                )
            window_steps = max(1, window_samples // batch)
            key = derive_key(seed, name, i)
            self.parts.append(Part(shard_samples, part_lanes, self.per_lane, block, window_steps, key))

    def rank_lanes(self, rank: int, world_size: int) -> np.ndarray:
        """Lanes of a rank: contiguous, so that the ranks' batches put together are the global batch."""
        _check_ranks(self.name, self.batch, self.lanes, world_size)
        each = self.lanes // world_size
        return np.arange(rank * each, (rank + 1) * each)

    def walks(self, rank: int, world_size: int) -> list[tuple[int, Walk, np.ndarray]]:
        """For each part that the rank's lanes draw from: its number, a walk, and the batch row of each draw."""
        lanes = self.rank_lanes(rank, world_size)
        walks = []
        for number, part in enumerate(self.parts):
            mine = np.flatnonzero(self._lane_part[lanes] == number)
            if mine.size:
                rows = mine[:, None] * self.per_lane + np.arange(self.per_lane)
                walks.append((number, Walk(part, self._lane_index[lanes[mine]]), rows))
        return walks


class Order:
    """Stream of each step, by weight. Streams are taken in the order of their names."""

    def __init__(self, streams: list[Stream], weights: list[float]):
        pairs = sorted(zip(streams, weights, strict=True), key=lambda pair: pair[0].name)
        self.streams = [stream for stream, _ in pairs]
        self._mix = Mix([weight for _, weight in pairs])

    def at(self, step: int) -> tuple[Stream, int]:
        """(stream of the global step, the stream's own step)."""
        index, own = self._mix.at(step)
        return self.streams[index], own


def _check_lanes(name: str, batch: int, lanes: int) -> None:
    if batch < 1 or lanes < 1:
        raise UserError(f"stream {name}: batch ({batch}) and lanes ({lanes}) must be at least 1")
    if batch % lanes:
        near = _nearest([n for n in range(1, batch + 1) if batch % n == 0], lanes)
        raise UserError(f"stream {name}: lanes must divide batch, but {batch} / {lanes} does not; nearest lanes: {near}")


def _check_ranks(name: str, batch: int, lanes: int, world_size: int) -> None:
    if lanes % world_size == 0:
        return
    fitting = [n for n in range(world_size, batch + 1, world_size) if batch % n == 0]
    if fitting:
        remedy = f"nearest lanes: {_nearest(fitting, lanes)}"
    else:
        below = batch // world_size * world_size
        remedy = f"nearest batch: {_nearest([n for n in (below, below + world_size) if n], batch)}"
    raise UserError(f"stream {name}: {world_size} ranks must divide its {lanes} lanes (batch {batch}); {remedy}")


def _nearest(values: list[int], wanted: int) -> str:
    """The nearest value at or below and above `wanted`, as text."""
    below = [n for n in values if n <= wanted][-1:]
    above = [n for n in values if n > wanted][:1]
    return " or ".join(map(str, below + above))
