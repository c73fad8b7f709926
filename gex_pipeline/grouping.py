"""Integration: which clips of a source make one group. Whole columns at a time, no loop over sources."""

import numpy as np
import polars as pl

from gex_pipeline.config import IntegrateConfig

# What grouping needs to know of a clip, beside `index`, its place in the catalog.
KEYS = ("source_id", "order", "video", "start_ms", "end_ms", "clip_id", "duration_ms")
SORT_KEYS = ("source_id", "order", "video", "start_ms", "end_ms", "clip_id")


def arrange(clips: pl.DataFrame, config: IntegrateConfig) -> pl.DataFrame:
    """Sort clips (`index` uint32 and KEYS) within their sources and cut them into groups.

    Returns one line a clip, in order: index, opens_source (bool), opens_group (bool). The order of sources is theirs by
    name; it means nothing. Every source must be here whole.
    """
    clips = clips.sort(SORT_KEYS)
    changes = clips.select((pl.col("source_id") != pl.col("source_id").shift()).fill_null(True)).to_series()
    opens_source = changes.to_numpy()
    if config.by == "none":
        opens_group = np.ones(clips.height, bool)
    else:
        opens_segment = opens_source | _pauses(clips, config.max_gap_seconds)
        durations = clips["duration_ms"].fill_null(0).to_numpy()
        starts = cut(np.flatnonzero(opens_segment), durations, config.max_clips, round(config.max_seconds * 1000))
        opens_group = np.zeros(clips.height, bool)
        opens_group[starts] = True
    return pl.DataFrame({"index": clips["index"], "opens_source": opens_source, "opens_group": opens_group})


def cut(starts: np.ndarray, durations: np.ndarray, max_clips: int, max_ms: int) -> np.ndarray:
    """Cut segments of consecutive clips into balanced groups; returns the first clip of every group, ascending.

    starts: first clip of each segment, ascending from 0. durations: of every clip in ms, 0 where unknown.

    The rule: a segment becomes as few groups as its number of clips and its seconds allow at all, and these are
    balanced by number of clips (9 clips, at most 8 -> 5 + 4). A group that still has more than max_ms in it, because
    its clips are longer than its neighbours', is cut again by the same rule, into at least two. A clip that is longer
    than max_ms on its own is a group of its own. Cuts of one group never move another's.
    """
    total = np.concatenate([[0], np.cumsum(durations, dtype=np.int64)])
    # For the least number of groups, a clip over the limit counts as one full group, not as several.
    capped = np.concatenate([[0], np.cumsum(np.minimum(durations, max_ms), dtype=np.int64)])
    starts = starts.astype(np.int64)
    while True:
        ends = np.append(starts[1:], len(durations))
        sizes = ends - starts
        too_big = (sizes > max_clips) | ((sizes > 1) & (total[ends] - total[starts] > max_ms))
        if not too_big.any():
            return starts
        least = np.maximum(-(-sizes // max_clips), -(-(capped[ends] - capped[starts]) // max_ms))
        parts = np.where(too_big, np.minimum(np.maximum(least, 2), sizes), 1)
        first = np.repeat(np.cumsum(parts) - parts, parts)
        part = np.arange(parts.sum()) - first  # 0, 1, … within each segment
        size, longer = np.divmod(np.repeat(sizes, parts), np.repeat(parts, parts))
        starts = np.repeat(starts, parts) + part * size + np.minimum(part, longer)


def _pauses(clips: pl.DataFrame, max_gap_seconds: float | None) -> np.ndarray:
    """True where a clip starts more than the gap after all earlier clips of its source and video have ended."""
    if max_gap_seconds is None:
        return np.zeros(clips.height, bool)
    start = pl.col("start_ms").fill_null(0)
    # A clip without an end and a duration lasts to the end of the file, so nothing pauses after it.
    end = pl.coalesce("end_ms", start + pl.col("duration_ms"), pl.lit(2**62))
    before = end.cum_max().shift().over("source_id", "video")
    return clips.select((start - before > round(max_gap_seconds * 1000)).fill_null(False)).to_series().to_numpy()
