"""The plan: every clip's row (shard number), group and position. A pure function of catalog and config.

Clips of a source, sorted by (order, video, start, end, clip_id), are cut into groups (`grouping.cut`). Sources come in
the order of a hash of their id, so that neighbours have nothing in common, and fill rows one after another, each row
until the next source would bring it over its target. A source larger than a row goes on over several, by whole groups.
Rows of `train` come first, then those of the other splits by name.

`by: random` takes the very groups of `by: source`, as slots, and deals each split's clips into them in the order of a
seeded hash: the same number of long samples, of the same clip counts (max_seconds has then bounded the counts, not the
random groups themselves).
"""

import math

import numpy as np
import polars as pl
import polars_hash as plh
import pyarrow as pa

from gex_pipeline import grouping
from gex_pipeline.config import ExpandConfig
from gex_pipeline.plan_files import Plan, read, read_row, write
from shards.errors import UserError
from shards.format import MAX_SAMPLES_PER_SHARD

__all__ = ["Plan", "build", "read", "read_row", "write"]

# Up to here one polars pass in this process is faster than any shuffle and needs a few GB.
POLARS_CLIPS = 50_000_000

# Salts of the hashes: what decides the split must not decide the order too.
_ORDER_SALT, _SPLIT_SALT = 1, 2
TRAIN, VAL = "train", "val"


def build(clips: pa.Table, config: ExpandConfig) -> Plan:
    """Plan the clips (catalog.CLIP_SCHEMA, in any order). UserError where the config cannot be met."""
    _check(config)
    frame = pl.from_arrow(clips)
    arranged = _arrange(frame.select(*grouping.KEYS), config)
    index = arranged["index"].to_numpy()
    sources = _sources(frame, index, arranged["opens_source"].to_numpy(), config.split.val_fraction)
    moved = _runs(sources["first"].to_numpy(), sources["clips"].to_numpy())
    index = index[moved]
    groups = np.flatnonzero(arranged["opens_group"].to_numpy()[moved])
    if config.integrate.by == "random":
        index = _dealt(frame["clip_id"], index, sources, config.integrate.seed)
    target = _target(config, len(index), _sizes(groups, len(index)))
    return _laid_out(frame, index, groups, sources, target, config.integrate.min_clips)


def uses_ray(clips: int, config: ExpandConfig) -> bool:
    """Whether `build` will need Ray."""
    engine = config.integrate.engine
    return engine == "ray" or (engine == "auto" and clips > POLARS_CLIPS)


def _check(config: ExpandConfig) -> None:
    integrate, target = config.integrate, config.output.clips_per_shard
    for name in ("min_clips", "max_clips"):
        if getattr(integrate, name) < 1:
            raise UserError(f"integrate.{name} is {getattr(integrate, name)}; it must be at least 1")
    if not (math.isfinite(integrate.max_seconds) and integrate.max_seconds >= 0.001):
        raise UserError(f"integrate.max_seconds is {integrate.max_seconds}; it must be a positive number of seconds")
    if integrate.max_gap_seconds is not None and not 0 <= integrate.max_gap_seconds < math.inf:
        raise UserError(f"integrate.max_gap_seconds is {integrate.max_gap_seconds}; it must be 0 or more, or null")
    if not 0 <= config.split.val_fraction < 1:
        raise UserError(f"split.val_fraction is {config.split.val_fraction}; it must be at least 0 and under 1")
    if target != "auto" and not 1 <= target <= MAX_SAMPLES_PER_SHARD:
        raise UserError(f"output.clips_per_shard is {target}; it must be auto or 1 to {MAX_SAMPLES_PER_SHARD}")


def _arrange(keys: pl.DataFrame, config: ExpandConfig) -> pl.DataFrame:
    keys = keys.with_row_index("index")
    if uses_ray(keys.height, config):
        from gex_pipeline.plan_shuffle import arrange_with_ray

        return arrange_with_ray(keys, config.integrate)
    return grouping.arrange(keys, config.integrate)


def _sources(frame: pl.DataFrame, index: np.ndarray, opens_source: np.ndarray, val_fraction: float) -> pl.DataFrame:
    """One line a source in the plan's order: source_id, split, first (of its clips in `index`), clips."""
    first = np.flatnonzero(opens_source)
    sources = pl.DataFrame({"first": first, "clips": _sizes(first, len(index))})
    sources = sources.with_columns(frame["source_id"].gather(index[first]))
    given = _given_splits(frame)
    sources = sources.join(given, on="source_id", how="left", maintain_order="left")
    below = plh.col("source_id").nchash.xxh3_64(seed=_SPLIT_SALT) < int(val_fraction * 2**64)
    split = pl.coalesce("split", pl.when(below).then(pl.lit(VAL)).otherwise(pl.lit(TRAIN)))
    order = plh.col("source_id").nchash.xxh3_64(seed=_ORDER_SALT)
    return sources.with_columns(split=split).sort(pl.col("split") != TRAIN, "split", order, "source_id")


def _given_splits(frame: pl.DataFrame) -> pl.DataFrame:
    """source_id and split of the sources whose split the catalog gives."""
    given = frame.lazy().filter(pl.col("split").is_not_null()).group_by("source_id")
    given = given.agg(pl.col("split").min(), other=pl.col("split").max()).collect()
    if torn := given.filter(pl.col("split") != pl.col("other")).sort("source_id").rows():
        source, split, other = torn[0]
        raise UserError(
            f"split: source {source!r} has clips in {split} and in {other}; a source belongs to one split, or what is "
            "trained on is evaluated too: mend the split column, or map source_id to a finer one"
        )
    return given.drop("other")


def _sizes(starts: np.ndarray, end: int) -> np.ndarray:
    return np.diff(starts, append=end)


def _runs(firsts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Positions of the runs first, first + 1, … of the given sizes, one run after the other."""
    moved_to = np.cumsum(sizes) - sizes
    return np.arange(sizes.sum()) + np.repeat(firsts - moved_to, sizes)


def _dealt(clip_ids: pl.Series, index: np.ndarray, sources: pl.DataFrame, seed: int) -> np.ndarray:
    """Each split's clips in a random order that is a function of seed and clip ids."""
    split = np.repeat(sources["split"].rle_id().to_numpy(), sources["clips"].to_numpy())
    ids = pl.DataFrame({"split": split, "clip_id": clip_ids.gather(index)})
    dealt = ids.select(pl.arg_sort_by("split", plh.col("clip_id").nchash.xxh3_64(seed=seed), "clip_id"))
    return index[dealt.to_series().to_numpy()]


def _target(config: ExpandConfig, clips: int, group_sizes: np.ndarray) -> int:
    """Clips a row should have.

    auto: 2 √clips, so that rows grow with the set (110 of 3,000, 1,000 of 250,000 and more), but at least 8 rows
    where there are few, and room for half of the largest group.
    """
    largest = int(group_sizes.max(initial=1))
    target = config.output.clips_per_shard
    if target == "auto":
        return max(1, -(-largest // 2), min(1000, math.isqrt(4 * clips), -(-clips // 8)))
    if largest > 2 * target:
        raise UserError(
            f"output.clips_per_shard is {target}, and a group of {largest} clips, which stays in one row, is over twice "
            f"that; set it to at least {-(-largest // 2)}, or integrate.max_clips to at most {2 * target}"
        )
    return target


def _laid_out(
    frame: pl.DataFrame, index: np.ndarray, groups: np.ndarray, sources: pl.DataFrame, target: int, min_clips: int
) -> Plan:
    """The plan of clips in order `index`, whose groups start at `groups`."""
    count = len(index)
    source_starts = np.cumsum(sources["clips"].to_numpy()) - sources["clips"].to_numpy()
    rows, splits = _rows(source_starts, groups, sources, target)
    group_sizes, row_sizes = _sizes(groups, count), _sizes(rows, count)
    first_group = np.searchsorted(groups, rows)
    group = np.repeat(np.arange(len(groups)) - np.repeat(first_group, _sizes(first_group, len(groups))), group_sizes)
    # Without any caption (clips that have labels or questions instead) there is no long text.
    captioned = frame["caption"].is_not_null().to_numpy()[index]
    is_long = (group_sizes >= min_clips) & np.logical_or.reduceat(captioned, groups, dtype=bool)
    layout = pl.DataFrame(
        {
            "row": np.repeat(np.arange(len(rows), dtype=np.int32), row_sizes),
            "group": group.astype(np.int32),
            "long": np.repeat(is_long, group_sizes),
            "position": (np.arange(count) - np.repeat(groups, group_sizes)).astype(np.int32),
        }
    )
    table = pl.DataFrame(
        {
            "row": np.arange(len(rows), dtype=np.int32),
            "split": splits,
            "clips": row_sizes.astype(np.int32),
            "groups": _sizes(first_group, len(groups)).astype(np.int32),
            "long": np.add.reduceat(is_long, first_group, dtype=np.int32) if len(rows) else np.zeros(0, np.int32),
        },
        schema_overrides={"split": pl.String},
    )
    return Plan(clips=frame, index=index, layout=layout, rows=table, target=target)


def _rows(source_starts: np.ndarray, groups: np.ndarray, sources: pl.DataFrame, target: int) -> tuple[np.ndarray, list[str]]:
    """First clip and split of every row."""
    source_of_group = np.searchsorted(source_starts, groups, side="right") - 1
    large = sources["clips"].to_numpy() > target
    # What a row takes or leaves: a source, or a group of a source that is larger than a row.
    units = groups[np.isin(groups, source_starts, assume_unique=True) | large[source_of_group]]
    by_split = sources.group_by("split", maintain_order=True).agg(pl.col("clips").sum())
    rows, splits, end = [], [], 0
    for split, clips in by_split.iter_rows():
        begin, end = end, end + clips
        filled = _filled(units[np.searchsorted(units, begin) : np.searchsorted(units, end)], end, target)
        rows += filled
        splits += [split] * len(filled)
    return np.array(rows, dtype=np.int64), splits


def _filled(units: np.ndarray, end: int, target: int) -> list[int]:
    """Rows over consecutive units: each takes units while they fit its target, and one at least."""
    bounds = np.append(units, end)
    rows, unit = [], 0
    while unit < len(units):
        rows.append(int(units[unit]))
        unit = max(unit + 1, int(np.searchsorted(bounds, units[unit] + target, side="right")) - 1)
    return rows
