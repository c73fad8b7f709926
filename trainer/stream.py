"""Batches of the streams: exact, elastic, resumable by the step alone.

`Streams` trains: an endless mix of streams by weight, in the order of `order.py`. `evaluation_batches` walks a split
once. Both read and decode in worker processes (`pool.py`) that do not matter to what comes out.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from shards import format
from shards.cache import RangeCache
from shards.errors import UserError
from shards.reader import Dataset, Shard
from trainer.data_config import DataConfig, StreamConfig
from trainer.decode import Decoded, Recipe
from trainer.index import Index
from trainer.order import Order, Stream
from trainer.plan import BatchPlan, evaluation_plans, training_plans
from trainer.pool import Pool, run_inline
from trainer.tars import Tar, Tars
from trainer.texts import TextBatch, TextEncoder, Tokenizer
from trainer.work import Row

logger = logging.getLogger(__name__)


@dataclass
class Batch:
    """A rank's share of a step. The frames stay valid as long as somebody holds the tensor."""

    stream: str
    step: int
    frames: torch.Tensor  # uint8 [B, T, 3, H, W], a view of channels-last memory
    frame_mask: torch.Tensor  # bool [B, T]
    texts: dict[str, TextBatch]
    sample_ids: list[str]
    sentences: dict[str, list[list[str]]]  # the texts themselves, by view
    fields: list[dict]  # of each sample's json, those that were asked for


class Streams:
    """The training streams of one rank.

    datasets: published datasets. configs: stream name -> what it draws. The order depends on them, on `seed` and on
    the order-relevant part of `data`; not on `world_size`, workers or prefetching. `fields` of a sample's json
    come with it, and one without a `required` field is replaced. Raises UserError for settings that do not fit (see
    `order.Stream`), and for views or splits that the data does not have.
    """

    def __init__(
        self,
        datasets: list[Dataset],
        configs: dict[str, StreamConfig],
        data: DataConfig,
        seed: int,
        rank: int,
        world_size: int,
        tokenizer: Tokenizer,
        fields: tuple[str, ...] = (),
        required: tuple[str, ...] = (),
    ):
        if data.weights is not None and len(data.weights) != len(datasets):
            raise UserError(f"loader.weights has {len(data.weights)} entries for {len(datasets)} datasets; give one each")
        self.digests = [dataset.manifest["digest"] for dataset in datasets]
        self._rank, self._world_size = rank, world_size
        self._indices: dict[str, list[Index]] = {}
        self._recipes: dict[str, Recipe] = {}
        streams, tars = [], []
        for name, config in configs.items():
            _check(data, config.frames, config.batch)
            parts, weights = _parts(name, config, datasets, data, needs_text=not fields)
            self._indices[name] = []
            for shards in parts:
                self._indices[name].append(Index(shards, len(tars), data.stall_seconds))
                tars += self._indices[name][-1].tars
            streams.append(_order(name, config, parts, weights, data, seed))
            streams[-1].rank_lanes(rank, world_size)
            self._recipes[name] = Recipe(
                granularity=config.folder,
                views=tuple(config.texts),
                frames=config.frames,
                size=data.size,
                random_frames=(config.frame_sampling or data.frame_sampling) == "random",
                random_crop=data.crop == "random",
                seed=seed,
                fields=fields,
                required=required,
            )
        self.order = Order(streams, [config.weight for config in configs.values()])
        for index in (index for indices in self._indices.values() for index in indices):
            index.check_sizes()
        rows = {name: config.batch // world_size for name, config in configs.items()}
        largest = max(rows[name] * config.frames for name, config in configs.items())
        self._tars = _tars(tars, data)
        self._assemble = _Assembler(tokenizer, data.max_failures, self._tars)
        self._pool = Pool(self._tars, data, largest * data.size**2 * 3) if data.workers else None

    def batches(self, start_step: int, steps: int) -> Iterator[Batch]:
        """The rank's batches of the steps [start_step, start_step + steps), each step's the same whatever the start."""
        plans = training_plans(self.order, self._indices, self._recipes, self._rank, self._world_size, start_step, steps)
        for plan, pixels, rows in self._pool.run(plans) if self._pool else run_inline(plans, self._tars):
            self._assemble.count(plan, rows)
            yield self._assemble(plan, pixels, rows)

    @property
    def failures(self) -> Counter:
        """How many samples this rank replaced, by (kind, tar)."""
        return self._assemble.failures

    def close(self) -> None:
        """End the worker processes."""
        if self._pool:
            self._pool.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def evaluation_batches(
    dataset: Dataset,
    split: str,
    granularity: str,
    views: list[str],
    frames: int,
    batch: int,
    rank: int,
    world_size: int,
    data: DataConfig,
    tokenizer: Tokenizer,
    fields: tuple[str, ...] = (),
    required: tuple[str, ...] = (),
) -> Iterator[Batch]:
    """Every sample of a split once over the ranks, in order: rank r has the r-th run. Centred frames and crops.

    `batch` is this rank's; the last batch is smaller. A sample that cannot be read is left out, and logged.
    `fields` of each sample's json come along; one without a `required` field cannot be read.
    """
    _check(data, frames, batch)
    index = Index([(dataset, shard) for shard in dataset.select(split, granularity)], patience=data.stall_seconds)
    if not index.shards:
        raise UserError(f"{dataset.url}: no {granularity} samples in the split {split}")
    index.check_sizes()
    recipe = Recipe(granularity, tuple(views), frames, data.size, False, False, seed=0, fields=fields, required=required)
    tars = _tars(index.tars, data)
    assemble = _Assembler(tokenizer, data.max_failures, tars)
    plans = evaluation_plans(index, recipe, batch, rank, world_size, granularity)
    pool = Pool(tars, data, batch * frames * data.size**2 * 3) if data.workers else None
    try:
        for plan, pixels, rows in pool.run(plans) if pool else run_inline(plans, tars):
            assemble.count(plan, rows)
            if any(row.decoded for row in rows):
                yield assemble(plan, pixels, rows)
    finally:
        if pool:
            pool.close()


def _parts(
    name: str, config: StreamConfig, datasets: list[Dataset], data: DataConfig, needs_text: bool
) -> tuple[list[list[tuple[Dataset, Shard]]], list[float]]:
    """The stream's shards, in parts that each count their own epochs, and the parts' weights.

    Without loader.weights all datasets are one part, so every sample comes once an epoch; with them each is its own.
    """
    unknown = set(config.texts) - set(format.TEXT_VIEWS[config.folder])
    if unknown or (needs_text and not config.texts):
        raise UserError(
            f"streams.{name}.texts: {config.folder} samples have the views "
            f"{', '.join(format.TEXT_VIEWS[config.folder])}; got {', '.join(config.texts) or 'none'}"
        )
    found = [[(dataset, shard) for shard in dataset.select(data.split, config.folder)] for dataset in datasets]
    for dataset, shards in zip(datasets, found):
        if not shards and (data.weights is not None or not any(found)):
            raise UserError(f"stream {name}: {dataset.url} has no {config.folder} samples in the split {data.split}")
    if data.weights is None:
        return [[pair for shards in found for pair in shards]], [1.0]
    return found, data.weights


def _check(data: DataConfig, frames: int, batch: int) -> None:
    for what, value, least in (
        ("workers", data.workers, 0),
        ("size", data.size, 1),
        ("frames", frames, 1),
        ("batch", batch, 1),
    ):
        if value < least:
            raise UserError(f"{what}: {value} is under {least}")


def _tars(tars: list[Tar], data: DataConfig) -> Tars:
    return Tars(tars, RangeCache(data.cache_dir, int(data.cache_gb * 1e9)) if data.cache_dir else None)


def _order(name, config: StreamConfig, parts, weights, data: DataConfig, seed: int) -> Stream:
    shards = [shard for part in parts for _, shard in part]
    sample_bytes = sum(shard.bytes for shard in shards) / max(1, sum(shard.samples for shard in shards))
    return Stream(
        name,
        parts=[[shard.samples for _, shard in part] for part in parts],
        part_weights=weights,
        batch=config.batch,
        lanes=config.batch if config.lanes is None else config.lanes,
        block=data.block,
        window_samples=int(data.window_mb * 2**20 / max(1.0, sample_bytes)),
        seed=seed,
    )


class _Assembler:
    """Counts failures, and makes batches of what did not fail."""

    def __init__(self, tokenizer: Tokenizer, max_failures: int, tars: Tars):
        self._pin = torch.cuda.is_available()  # copies to the device then need not be waited for
        self._encode, self._max_failures, self._tars = TextEncoder(tokenizer), max_failures, tars
        self.failures: Counter = Counter()

    def __call__(self, plan: BatchPlan, frames: torch.Tensor, rows: list[Row]) -> Batch:
        kept = [row for row in rows if row.decoded is not None]
        if len(kept) < len(rows):
            frames = frames[[row.row for row in kept]]
        if self._pin:
            frames = frames.pin_memory()
        decoded: list[Decoded] = [row.decoded for row in kept]
        counts = torch.tensor([sample.frames for sample in decoded])
        sentences = {view: [sample.sentences[view] for sample in decoded] for view in plan.recipe.views}
        return Batch(
            stream=plan.stream,
            step=plan.step,
            frames=frames.permute(0, 1, 4, 2, 3),
            frame_mask=torch.arange(plan.recipe.frames) < counts[:, None],
            texts={view: self._encode(texts) for view, texts in sentences.items()},
            sample_ids=[sample.sample_id for sample in decoded],
            sentences=sentences,
            fields=[sample.fields for sample in decoded],
        )

    def count(self, plan: BatchPlan, rows: list[Row]) -> None:
        """Count and log what failed; UserError where it is too much."""
        for row in rows:
            self._count(row, plan)

    def _count(self, row: Row, plan: BatchPlan) -> None:
        if row.failure is None:
            return
        kind, url = where = row.failure.kind, self._tars.url(row.failure.shard)
        self.failures[where] += 1
        if self.failures[where] == 1:  # one line a kind and shard; the counts tell the rest
            outcome = "replaced" if plan.spare else "left out"
            logger.warning("%s: %s sample %s: %s", url, kind, outcome, row.failure.message)
        if self.failures.total() > self._max_failures:
            raise UserError(f"more bad samples than max_failures={self._max_failures} allows: {self._summary()}")
        if row.decoded is None and plan.spare:
            raise UserError(f"stream {plan.stream}, step {plan.step}: nothing to replace a bad sample: {self._summary()}")

    def _summary(self) -> str:
        worst = [f"{count} {kind} in {url}" for (kind, url), count in self.failures.most_common(3)]
        return "; ".join(worst) + (f"; and {len(self.failures) - 3} more" if len(self.failures) > 3 else "")
