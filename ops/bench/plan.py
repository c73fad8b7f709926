"""Planning against polars alone: `python -m ops.bench.plan --clips 1000000`.

Both sides start from the same parquet tables (a 5,000-clip source, single-clip sources, clips without an end, repeated
rows). Polars alone reads them, drops repeated rows, sorts, groups the clips by source and writes the groups. Ours loads
the catalog, plans and writes the plan. Each runs in a process of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars as pl
import polars_hash as plh

from ops.bench.common import PeakMemory, emit

LARGEST_SOURCE = 5_000
FILE_CLIPS = 1_000_000
WORDS = "a an the man woman dog child red blue runs sits holds opens near behind table street window water cup".split()


def synthesise(folder: Path, clips: int) -> None:
    """About 8 clips a source; the same tables for the same number."""
    for part, first in enumerate(range(0, clips, FILE_CLIPS)):
        table = _table(first, min(FILE_CLIPS, clips - first), clips)
        table.write_parquet(folder / f"{part:05d}.parquet", compression="zstd")


def _table(first: int, count: int, clips: int) -> pl.DataFrame:
    def draw(salt: int, bound: int) -> pl.Expr:
        return (plh.col("n").cast(pl.String).nchash.xxh3_64(seed=salt) % bound).cast(pl.Int64)

    n = pl.int_range(first, first + count, dtype=pl.Int64)
    frame = pl.select(n=n - (n % 200 == 199).cast(pl.Int64))  # a repeated row: the one before, once more
    n = pl.col("n")
    source = pl.when(n < LARGEST_SOURCE).then(0).when(n % 50 == 0).then(10**9 + n).otherwise(1 + draw(1, clips // 8))
    start = draw(2, 600_000) / 1000
    words = pl.lit(pl.Series(WORDS))
    return frame.select(
        source_id=pl.format("src{}", source.cast(pl.String).str.zfill(10)),
        video=pl.format("src{}.mp4", source.cast(pl.String).str.zfill(10)),
        start=start,
        end=pl.when(n % 40 != 7).then(start + 1 + draw(3, 14_000) / 1000),
        caption=pl.concat_str([words.gather(draw(salt, len(WORDS))) for salt in range(4, 16)], separator=" "),
        umt_score=draw(20, 1000) / 1000,
    )


def polars_alone(tables: str, output: Path) -> dict:
    frame = pl.read_parquet(tables).unique(["video", "start", "end"])
    groups = frame.sort("source_id", "start", "end").group_by("source_id", maintain_order=True).agg(pl.all())
    groups.write_parquet(output / "groups.parquet", compression="zstd", compression_level=1)
    return {"clips": frame.height, "groups": groups.height}


def ours(tables: str, output: Path, engine: str) -> dict:
    from gex_pipeline import catalog, plan
    from gex_pipeline.config import ExpandConfig

    config = ExpandConfig()
    config.input.path, config.integrate.engine, config.integrate.max_gap_seconds = tables, engine, None
    stages, started = {}, time.monotonic()

    def stage(name: str) -> None:
        stages[name] = time.monotonic() - started - sum(stages.values())

    clips, _, counts = catalog.load(config)
    stage("catalog")
    planned = plan.build(clips, config)
    del clips
    stage("build")
    record = plan.write(planned, str(output))
    stage("write")
    assert counts["rows_in"] == counts["duplicates"] + counts["clips"] and record["clips"] == counts["clips"]
    return {"stages": stages, "clips": counts["clips"], "groups": record["groups"], "digest": record["digest"]}


def run(side: str, tables: str) -> dict:
    """One side in a fresh process: its result, seconds and peak memory."""
    with PeakMemory() as memory:
        done = subprocess.run(
            [sys.executable, "-m", "ops.bench.plan", "--side", side, "--tables", tables], stdout=subprocess.PIPE, check=True
        )
    return json.loads(done.stdout.splitlines()[-1]) | {"peak_gib": memory.peak / 2**30}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--engine", choices=["polars", "ray"], default="polars")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--tables", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return print(json.dumps(_timed(args.side, args.tables)))
    with tempfile.TemporaryDirectory() as folder:
        synthesise(Path(folder), args.clips)
        tables = f"{folder}/*.parquet"
        peer, mine = run("alone", tables), run(args.engine, tables)
    assert peer["clips"] == mine["clips"], "the two sides did not plan the same clips"
    rows = [("polars alone", peer["seconds"], "s"), ("ours", mine["seconds"], "s")]
    rows += [("CPU of polars alone", peer["cpu_seconds"], "s"), ("CPU of ours", mine["cpu_seconds"], "s")]
    rows += [(f"ours: {name}", seconds, "s") for name, seconds in mine["stages"].items()]
    rows += [("peak of polars alone", peer["peak_gib"], "GiB"), ("peak of ours", mine["peak_gib"], "GiB")]
    emit(
        "plan",
        rows,
        mine["seconds"] / peer["seconds"],
        "at most 3, aim 2",
        clips=mine["clips"],
        sources=peer["groups"],
        groups=mine["groups"],
        digest=mine["digest"],
        engine=args.engine,
    )


def _timed(side: str, tables: str) -> dict:
    with tempfile.TemporaryDirectory() as output:
        started, cpu = time.monotonic(), time.process_time()
        result = polars_alone(tables, Path(output)) if side == "alone" else ours(tables, Path(output), side)
        # CPU time too: on a machine with other work, wall time says as much about that as about us.
        return result | {"seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - cpu}


if __name__ == "__main__":
    main()
