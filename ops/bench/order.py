"""The order of samples at scale: `python -m ops.bench.order`.

Same-source pairs: a catalog of --clips clips, 4 to 12 a source, is planned by `gex_pipeline.plan`; the stream draws short
batches of 1,024 from its training rows, with the loader's own block and window; pairs of one source in a batch are held
against those of a uniform shuffle, in expectation. Cost: a stream of --samples samples in shards of 1,000: processor
time of a step's order, over a whole epoch, and the memory of order and index (every sidecar read) together.
"""

import argparse
import time
import tracemalloc

import numpy as np
import polars as pl
import pyarrow as pa

from gex_pipeline import plan
from gex_pipeline.catalog import CLIP_SCHEMA
from gex_pipeline.config import ExpandConfig
from ops.bench.common import emit
from shards import format
from shards.reader import Dataset, Shard
from trainer.data_config import DataConfig
from trainer.index import Index
from trainer.order import Stream

BATCH, SHARD, SAMPLE = 1024, 1000, 140_288  # the last: bytes of a sample


def planned_sources(clips: int) -> list[np.ndarray]:
    """For each training row of the plan the source of each of its clips, in the order of its short tar."""
    sizes = np.random.default_rng(0).integers(4, 13, clips // 4)  # mean 8; sources must not end where blocks do
    source = np.repeat(np.arange(len(sizes)), sizes)[:clips]
    start = 5000 * (np.arange(clips) - np.repeat(np.cumsum(sizes) - sizes, sizes)[:clips])
    frame = pl.DataFrame({"number": np.arange(clips), "source": source, "start_ms": start}).select(
        clip_id=pl.col("number").cast(pl.String),
        source_id=pl.col("source").cast(pl.String),
        video=pl.format("{}.mp4", "source"),
        start_ms="start_ms",
        end_ms=pl.col("start_ms") + 5000,
        duration_ms=pl.lit(5000),
    )
    table = frame.to_arrow()
    columns = [table[f.name].cast(f.type) if f.name in frame.columns else pa.nulls(clips, f.type) for f in CLIP_SCHEMA]
    made = plan.build(pa.table(columns, schema=CLIP_SCHEMA), ExpandConfig())
    rows = np.split(source[made.index], np.cumsum(made.rows["clips"].to_numpy())[:-1])
    return [row for row, split in zip(rows, made.rows["split"]) if split == plan.TRAIN]


def same_source_pairs(rows: list[np.ndarray], window_samples: int, steps: int) -> tuple[float, float]:
    """Pairs of clips of one source in a batch, on average over the first steps; and a uniform shuffle's."""
    sources = np.concatenate(rows)
    stream = Stream("svst", [[len(row) for row in rows]], [1.0], BATCH, BATCH, DataConfig().block, window_samples, seed=0)
    ((_, walk, _),) = stream.walks(0, 1)
    found = [_pairs(sources[walk.at(step).samples.ravel()]) for step in range(min(steps, walk.part.steps))]
    return float(np.mean(found)), _pairs(sources) * BATCH * (BATCH - 1) / (len(sources) * (len(sources) - 1))


def _pairs(sources: np.ndarray) -> int:
    counts = np.unique(sources, return_counts=True)[1].astype(np.int64)
    return int((counts * (counts - 1) // 2).sum())


class SyntheticDataset(Dataset):
    """Sidecars as the writer makes them, without a file."""

    def sidecar(self, shard: Shard) -> pa.Table:
        n = shard.samples
        known = {"status": pa.array(["ok"] * n), "offset": pa.array(np.arange(n) * SAMPLE), "size": pa.array([SAMPLE] * n)}
        columns = [known.get(f.name, pa.nulls(n, f.type)) for f in format.SIDECAR_SCHEMA]
        return pa.table(columns, schema=format.SIDECAR_SCHEMA)


def cost(samples: int, window_samples: int) -> dict[str, float]:
    """Milliseconds a step of an epoch, seconds of an epoch's first step, megabytes of order and index."""
    sizes = [SHARD] * (samples // SHARD)
    dataset = SyntheticDataset("", {}, [])
    arrow = pa.total_allocated_bytes()
    tracemalloc.start()
    shards = [Shard("train", "short", i, f"{i}.tar", SHARD, SHARD * SAMPLE, 0, "", "") for i in range(len(sizes))]
    index = Index([(dataset, shard) for shard in shards])
    index.spans(np.arange(len(sizes)), np.zeros(len(sizes), np.int64))
    stream = Stream("svst", [sizes], [1.0], BATCH, BATCH, DataConfig().block, window_samples, seed=0)
    ((_, walk, _),) = stream.walks(0, 1)
    walk.at(0)
    held = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - arrow
    tracemalloc.stop()
    begin, started = walk.part.steps, time.process_time()
    walk.at(begin)  # finds the second epoch's permutation
    first = time.process_time() - started
    for step in range(begin + 1, 2 * begin):
        walk.at(step)
    return {"step_ms": 1e3 * (time.process_time() - started) / begin, "first_s": first, "mb": held / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=1_000_000, help="of the plan")
    parser.add_argument("--samples", type=int, default=10_000_000, help="of the stream whose cost is measured")
    parser.add_argument("--sample_kb", type=float, default=140, help="of a short sample: how many a window holds")
    parser.add_argument("--steps", type=int, default=400, help="batches whose pairs are counted")
    args = parser.parse_args()
    window_samples = int(DataConfig().window_mb * 2**20 / (args.sample_kb * 1e3))
    pairs, uniform = same_source_pairs(planned_sources(args.clips), window_samples, args.steps)
    spent = cost(args.samples, window_samples)
    rows = [
        ("same-source pairs a batch", pairs, ""),
        ("those of a uniform shuffle", uniform, ""),
        ("order of a step, amortised", spent["step_ms"], "ms of processor time"),
        ("first step of an epoch", spent["first_s"], "s of processor time"),
        ("order and index in memory", spent["mb"], "MB"),
    ]
    emit("order", rows, pairs / uniform, "at most 2; under 1 ms and 200 MB", clips=args.clips, samples=args.samples)


if __name__ == "__main__":
    main()
