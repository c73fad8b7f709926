"""Benchmarks' own annotation files -> one table of samples, with the video file of each.

One small parser a family; `BENCHMARKS` lists them. A sample is one whole video, or its annotated segment.
"""

from dataclasses import dataclass
from typing import Callable

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
from gex_pipeline.benchmarks.files import Annotations
from gex_pipeline.benchmarks.videos import Coverage
from shards.errors import UserError


@dataclass(frozen=True)
class Benchmark:
    """One benchmark: its parser, and the variants that need a choice (the first is the default)."""

    parse: Callable[..., pa.Table]  # (annotations), or (annotations, variant)
    variants: tuple[str, ...] = ()
    default_variant: bool = True
    from_listing: bool = False  # the samples are the files: the parser gets their paths


BENCHMARKS = {
    "msrvtt": Benchmark(msrvtt.retrieval, variants=("9k", "7k")),
    "activitynet": Benchmark(timed_sentences.paragraphs),
    "lsmdc": Benchmark(lsmdc.read),
    "didemo": Benchmark(didemo.read),
    "msvd": Benchmark(msvd.retrieval),
    "lvu": Benchmark(lvu.read, variants=lvu.TASKS, default_variant=False),
    "coin": Benchmark(coin.read),
    "charades_ego": Benchmark(charades_ego.read, variants=tuple(charades_ego.VIEWS)),
    "how2qa": Benchmark(how2qa.read),
    "imagenet": Benchmark(imagenet.read, from_listing=True),
    "msrvtt_qa": Benchmark(msrvtt.question_answering),
    "msvd_qa": Benchmark(msvd.question_answering),
    "ucf101": Benchmark(action_lists.ucf101, variants=("1", "2", "3")),
    "hmdb51": Benchmark(action_lists.hmdb51, variants=("1", "2", "3")),
}


def parse(name: str, annotations: str, variant: str | None = None, paths: list[str] = ()) -> pa.Table:
    """A benchmark's annotation files as a table of `records.SCHEMA`, videos by name.

    `paths` are the video files (only ImageNet, whose samples are the files themselves, looks at them).
    Raises `UserError` for an unknown benchmark or variant, and for files that are missing or malformed.
    """
    if name not in BENCHMARKS:
        raise UserError(f"benchmark {name!r} is unknown; there are {', '.join(BENCHMARKS)}")
    benchmark = BENCHMARKS[name]
    arguments = [Annotations(annotations)]
    if benchmark.variants:
        arguments.append(_variant(name, benchmark, variant))
    elif variant is not None:
        raise UserError(f"--variant {variant}: {name} has no variants")
    if benchmark.from_listing:
        arguments.append(paths)
    return benchmark.parse(*arguments)


def read(name: str, annotations: str, videos_root: str, variant: str | None = None) -> tuple[pa.Table, Coverage]:
    """As `parse`, with the path of each video in place of its name; a missing one keeps its row and is counted."""
    paths = videos.listing(videos_root)
    table, coverage = videos.resolve(parse(name, annotations, variant, paths), videos_root, videos.index(paths))
    empty = [column for column in table.column_names if table[column].null_count == len(table)]
    return table.drop_columns(empty), coverage


def _variant(name: str, benchmark: Benchmark, variant: str | None) -> str:
    if variant is None and benchmark.default_variant:
        return benchmark.variants[0]
    if variant not in benchmark.variants:
        given = f"--variant {variant}: " if variant else ""
        raise UserError(f"{given}{name} needs --variant, one of {', '.join(benchmark.variants)}")
    return variant
