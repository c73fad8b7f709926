"""Order -> plans of batches: which window each row comes from, and which windows open and close around it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from trainer.decode import Recipe
from trainer.index import Index
from trainer.order import Order, Part, Walk
from trainer.work import Window

Key = tuple  # names a window among those that are open; in training (stream, part, epoch, lane, number)
Spare = Callable[[Key, int], Window]  # (window of which nothing can be used, attempt 1, 2, …) -> one to use instead


@dataclass
class BatchPlan:
    """A rank's share of one step."""

    stream: str
    step: int
    recipe: Recipe
    rows: list[tuple[Key, int]]  # for each row of the batch its window, and its draw from that window
    spare: Spare | None  # None: a sample that fails is not replaced
    opened: dict[Key, Window] = field(default_factory=dict)  # windows that no earlier plan used
    closed: list[Key] = field(default_factory=list)  # windows that no later plan uses


def training_plans(
    order: Order,
    indices: dict[str, list[Index]],
    recipes: dict[str, Recipe],
    rank: int,
    world_size: int,
    start_step: int,
    steps: int,
) -> Iterator[BatchPlan]:
    """Plans of the steps [start_step, start_step + steps). indices: for each stream, the index of each part."""
    walks = {s.name: s.walks(rank, world_size) for s in order.streams}
    parts = {s.name: s.parts for s in order.streams}

    def spare(key: Key, attempt: int) -> Window:
        stream, number, epoch, *window = key
        part = parts[stream][number]
        lane, window = part.spare(*window, attempt)
        samples = part.draws(epoch, np.array([lane]), np.array([window]))[0]
        return _windows([samples[samples >= 0]], part, indices[stream][number], epoch)[0]

    for step in range(start_step, start_step + steps):
        stream, own = order.at(step)
        plan = BatchPlan(stream.name, step, recipes[stream.name], [None] * (stream.batch // world_size), spare)
        for number, walk, rows in walks[stream.name]:
            _draw(plan, walk, rows, own, (stream.name, number), indices[stream.name][number])
        yield plan


def _draw(plan: BatchPlan, walk: Walk, rows: np.ndarray, step: int, name: tuple, index: Index) -> None:
    """Add a part's draws of one step to the plan."""
    part = walk.part
    draw = walk.at(step)
    keys = [(*name, draw.epoch, int(lane), int(number)) for lane, number in zip(walk.lanes, draw.numbers)]
    contents = [walk.window(lane) for lane in draw.opened]
    if contents:
        for lane, window in zip(draw.opened, _windows(contents, part, index, draw.epoch)):
            plan.opened[keys[lane]] = window
    for lane, key in enumerate(keys):
        first = int(draw.drawn[lane])
        for j, row in enumerate(rows[lane]):
            plan.rows[row] = (key, first + j)
        if first + part.per_lane == walk.lengths[lane]:
            plan.closed.append(key)


def _windows(contents: list[np.ndarray], part: Part, index: Index, epoch: int) -> list[Window]:
    """Windows over samples of a part, their spans looked up together."""
    shards, samples = part.locate(np.concatenate(contents))
    offsets, sizes = index.spans(shards, samples)
    cuts = np.cumsum([len(content) for content in contents])[:-1]
    split = zip(*(np.split(values, cuts) for values in (shards + index.first, offsets, sizes)))
    return [Window(epoch, *columns) for columns in split]


def evaluation_plans(index: Index, recipe: Recipe, batch: int, rank: int, world_size: int, name: str) -> Iterator[BatchPlan]:
    """Plans that take every sample once, in order: rank r has the r-th run of them, the last batch is what is left."""
    ends = np.cumsum([shard.samples for _, shard in index.shards])
    total = int(ends[-1]) if len(ends) else 0
    first, last = (r * total // world_size for r in (rank, rank + 1))
    for step, start in enumerate(range(first, last, batch)):
        samples = np.arange(start, min(start + batch, last))
        shards = np.searchsorted(ends, samples, side="right")
        within = samples - np.concatenate([[0], ends])[shards]
        window = Window(0, shards + index.first, *index.spans(shards, within))
        key = (name, step)
        rows = [(key, draw) for draw in range(len(samples))]
        yield BatchPlan(name, step, recipe, rows, spare=None, opened={key: window}, closed=[key])
