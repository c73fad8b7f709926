"""The benchmarks that `gexia import` knows: annotation files -> one table of samples, with the video file of each.

A sample is one whole video, or its annotated segment.
"""

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl
import pyarrow as pa

from gex_pipeline.benchmarks import (
    action_lists,
    charades_ego,
    coin,
    didemo,
    how2qa,
    imagenet,
    lsmdc,
    lvu,
    msrvtt,
    msvd,
    timed_sentences,
    videos,
)
from gex_pipeline.benchmarks.files import Annotations, reading
from gex_pipeline.benchmarks.videos import Coverage
from shards.errors import UserError


@dataclass(frozen=True)
class Benchmark:
    """One benchmark: its parser, how many frames a sample has by default, and the variants to choose from.

    Frames are those of CLIP4Clip (MSR-VTT, LSMDC, MSVD: 12; ActivityNet, DiDeMo: 64) and LaViLa (Charades-Ego: 16)
    where the number is theirs, and ours elsewhere.
    """

    parse: Callable[..., pa.Table]  # (annotations), or (annotations, variant), or (annotations, paths)
    frames: int
    variants: tuple[str, ...] = ()
    default_variant: str | None = None  # None, with variants: one must be named
    from_listing: bool = False  # the samples are the files: the parser gets their paths


OFFICIAL_SPLITS = ("1", "2", "3")

BENCHMARKS = {
    "msrvtt": Benchmark(msrvtt.retrieval, 12, ("9k", "7k"), "9k"),
    "activitynet": Benchmark(timed_sentences.paragraphs, 64),
    "lsmdc": Benchmark(lsmdc.read, 12),
    "didemo": Benchmark(didemo.read, 64),
    "msvd": Benchmark(msvd.retrieval, 12),
    "lvu": Benchmark(lvu.read, 64, lvu.TASKS),
    "coin": Benchmark(coin.read, 64),
    "charades_ego": Benchmark(charades_ego.read, 16, tuple(charades_ego.VIEWS), "first"),
    "how2qa": Benchmark(how2qa.read, 16),
    "imagenet": Benchmark(imagenet.read, 1, from_listing=True),
    "msrvtt_qa": Benchmark(msrvtt.question_answering, 12),
    "msvd_qa": Benchmark(msvd.question_answering, 12),
    "ucf101": Benchmark(action_lists.ucf101, 8, OFFICIAL_SPLITS, "1"),
    "hmdb51": Benchmark(action_lists.hmdb51, 8, OFFICIAL_SPLITS, "1"),
}


def variant_of(name: str, variant: str | None) -> str | None:
    """The variant that a benchmark is read in: the one given or its default; None for one without variants.

    Raises `UserError` for an unknown benchmark or variant.
    """
    if name not in BENCHMARKS:
        raise UserError(f"benchmark {name!r} is unknown; there are {', '.join(BENCHMARKS)}")
    benchmark = BENCHMARKS[name]
    chosen = benchmark.default_variant if variant is None else variant
    if chosen is not None and not benchmark.variants:
        raise UserError(f"--variant {chosen}: {name} has no variants")
    if benchmark.variants and chosen not in benchmark.variants:
        given = f"--variant {chosen}: " if chosen else ""
        raise UserError(f"{given}{name} needs --variant, one of {', '.join(benchmark.variants)}")
    return chosen


def parse(name: str, annotations: str, variant: str | None = None, paths: list[str] = ()) -> pa.Table:
    """A benchmark's annotation files as a table of `records.SCHEMA`, videos by name.

    `paths` are the video files (only ImageNet, whose samples are the files themselves, looks at them).
    Raises `UserError` for an unknown benchmark or variant, and for files that are missing or malformed.
    """
    chosen = variant_of(name, variant)
    arguments: list = [Annotations(annotations)]
    if chosen is not None:
        arguments.append(chosen)
    if BENCHMARKS[name].from_listing:
        arguments.append(paths)
    with reading(f"--annotations {annotations}"):  # whatever a parser did not name more closely
        return BENCHMARKS[name].parse(*arguments)


def read(name: str, annotations: str, videos_root: str, variant: str | None = None) -> tuple[pl.DataFrame, Coverage]:
    """As `parse`, with the path of each video in place of its name; a missing one keeps its row and is counted.

    Columns that hold nothing are left out.
    """
    paths = videos.listing(videos_root)
    rows = pl.from_arrow(parse(name, annotations, variant, paths))
    rows, coverage = videos.resolve(rows, videos_root, videos.index(paths))
    return rows.select(column.name for column in rows if column.null_count() < rows.height), coverage
