"""`gexia shards inspect`: what a dataset holds, and one of its samples, as text."""

import json

import numpy as np

from shards import format, stats
from shards.checks import parse_fields
from shards.errors import UserError
from shards.reader import Dataset, Shard


def print_dataset(dataset: Dataset, split: str | None, granularity: str | None, key: str | None) -> None:
    """Print counts, lengths, failures by kind, and sample `key` (None: the first) of the chosen part of a dataset.

    UserError where the dataset has no such part or sample.
    """
    if not dataset.select(split, granularity) and (split or granularity):
        have = sorted({f"{shard.split}/{shard.granularity}" for shard in dataset.shards})
        raise UserError(f"{dataset.url}: nothing in {split or '*'}/{granularity or '*'}; there is {', '.join(have)}")
    print(f"{dataset.url}: {format.FORMAT} version {format.VERSION}, digest {dataset.manifest['digest'][:16]}\n")
    _print_groups(stats.collect(dataset, split, granularity))
    _print_failures(stats.failures(dataset))
    if dataset.select(split, granularity):
        _print_sample(dataset, *_find(dataset, split, granularity, key))


def _print_groups(groups: list[stats.Group]) -> None:
    header = ["split", "granularity", "samples", "failed", "shards", "MB", "hours", "seconds", "words"]
    rows = [
        [
            *group.cells(),
            f"{group.seconds.sum() / 3600:,.2f}",
            _spread(group.seconds, ".1f"),
            _spread(group.words, ".0f"),
        ]
        for group in groups
    ]
    _print_table([header, *rows])
    print("\nseconds of video and words of text a sample: min / median / max\n")


def _print_failures(failures: list[stats.Failure]) -> None:
    if not failures:
        print("failures: none in the ledger\n")
        return
    header = ["stage", "kind", "failures", "first clip", "message"]
    _print_table([header, *([f.stage, f.kind, f"{f.count:,}", f.clip_id, f.message] for f in failures)])
    print()


def _print_sample(dataset: Dataset, shard: Shard, line: dict) -> None:
    with dataset.using(shard, line) as members:
        fields = parse_fields(bytes(members["json"]))
    print(f"{shard.path} {line['key']}: bytes {line['offset']:,} to {line['offset'] + line['size']:,}")
    for extension, data in members.items():
        print(f"  {line['key']}.{extension:<12} {len(data):>9,} bytes")
    print(json.dumps(fields, indent=2, ensure_ascii=False))


def _find(dataset: Dataset, split: str | None, granularity: str | None, key: str | None) -> tuple[Shard, dict]:
    """The shard and sidecar line of a sample; a key names its row."""
    for shard in dataset.select(split, granularity):
        if key is None or key[: -format.INDEX_DIGITS] == f"{shard.row:05d}":
            for line in dataset.sidecar(shard).to_pylist():
                if line["status"] == "ok" and key in (None, line["key"]):
                    return shard, line
    raise UserError(f"{dataset.url}: no sample {key} in {split or '*'}/{granularity or '*'}")


def _spread(values: np.ndarray, spec: str) -> str:
    return " / ".join(f"{value:{spec}}" for value in (values.min(), np.median(values), values.max()))


def _print_table(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
