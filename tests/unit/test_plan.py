"""The plan against a slow planner that was written from the rules alone, and the promises about its rows."""

from collections import Counter, defaultdict

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gex_pipeline import grouping, plan
from gex_pipeline.catalog import CLIP_SCHEMA
from gex_pipeline.config import ExpandConfig
from shards.errors import UserError


def catalog_of(clips):
    """A clip table from (source, start seconds or None, seconds or None) or dicts."""
    rows = []
    for i, clip in enumerate(clips):
        row = dict.fromkeys(CLIP_SCHEMA.names) | {"clip_id": f"c{i:04d}", "caption": "x", "extra": "{}"}
        if not isinstance(clip, dict):
            source, start, seconds = clip
            clip = {"source_id": source, "start_ms": start and start * 1000, "duration_ms": seconds and seconds * 1000}
            if start is not None and seconds is not None:
                clip["end_ms"] = (start + seconds) * 1000
        rows.append(row | {"video": clip["source_id"]} | clip)
    return as_table(pl.DataFrame(rows, schema=pl.Schema(CLIP_SCHEMA)))


def as_table(frame):
    return frame.select(CLIP_SCHEMA.names).to_arrow(compat_level=pl.CompatLevel.oldest()).cast(CLIP_SCHEMA)


def configured(**keys):
    config = ExpandConfig()
    for name, value in keys.items():
        section = {"clips_per_shard": config.output, "val_fraction": config.split}.get(name, config.integrate)
        setattr(section, name, value)
    return config


def planned(clips, **keys):
    """The built plan, and its clips in order as dicts with row, split, group, long, position."""
    built = plan.build(clips, configured(**keys))
    splits = built.rows.select(pl.col("split").repeat_by("clips").explode())["split"]
    lines = pl.concat([built.layout, built.clips[pl.Series(built.index)].with_columns(split=splits)], how="horizontal")
    return built, lines.to_dicts()


def groups_of(lines):
    """(row, group) -> its clips, in order."""
    groups = defaultdict(list)
    for line in lines:
        groups[line["row"], line["group"]].append(line)
    return groups


def slow_cut(durations, max_clips, max_ms):
    """The rule of grouping.cut for one segment, one group at a time."""
    size, seconds = len(durations), sum(durations)
    if size <= max_clips and (size == 1 or seconds <= max_ms):
        return [durations]
    at_least = max(-(-size // max_clips), -(-sum(min(d, max_ms) for d in durations) // max_ms), 2)
    parts, first = min(at_least, size), 0
    groups = []
    for part in range(parts):
        end = first + size // parts + (part < size % parts)
        groups += slow_cut(durations[first:end], max_clips, max_ms)
        first = end
    return groups


@given(
    st.lists(st.lists(st.integers(0, 300), min_size=1, max_size=30), min_size=1, max_size=8),
    st.integers(1, 9),
    st.integers(1, 400),
)
@settings(max_examples=400, deadline=None)
def test_groups_are_those_of_the_rule_and_keep_both_caps(segments, max_clips, max_ms):
    starts = np.cumsum([0] + [len(s) for s in segments[:-1]])
    flat = np.array([d for segment in segments for d in segment])
    cuts = grouping.cut(starts, flat, max_clips, max_ms)
    found = [list(group) for group in np.split(flat, cuts[1:])]
    assert found == [group for segment in segments for group in slow_cut(segment, max_clips, max_ms)]
    assert all(len(g) <= max_clips and (len(g) == 1 or sum(g) <= max_ms) for g in found)


@pytest.mark.parametrize(
    "durations, sizes",
    [
        ([5] * 9, [5, 4]),
        ([5] * 8, [8]),
        ([30] * 16, [6, 5, 5]),  # 480 s need three groups of at most 180 s, not four of two cut in half
        ([None] * 17, [6, 6, 5]),  # of unknown duration: by number alone
        ([200] * 3, [1, 1, 1]),
        ([5, 5, 5, 5, 170, 5, 5, 5] + [5] * 8, [4, 2, 2, 8]),  # one long clip costs its own group, not its neighbours
    ],
)
def test_groups_are_balanced(durations, sizes):
    clips = catalog_of([("s", 200 * i, d) for i, d in enumerate(durations)])
    _, lines = planned(clips, clips_per_shard=100)
    assert [len(g) for g in groups_of(lines).values()] == sizes


def test_a_long_pause_starts_a_new_group_but_not_within_a_longer_clip():
    clips = [("s", 0, 100), ("s", 5, 5), ("s", 60, 5), ("s", 104, 5), ("s", 115, 5), ("s", 121, None), ("s", 900, 5)]
    _, lines = planned(catalog_of(clips), max_gap_seconds=5.0, max_seconds=1000.0)
    assert [[c["start_ms"] // 1000 for c in g] for g in groups_of(lines).values()] == [[0, 5, 60, 104], [115, 121, 900]]


def test_clips_come_by_order_then_video_then_time():
    rows = [("b", None, 0), ("a", None, 5), ("a", None, 0), ("c", 1.0, 0), ("c", 0.0, 9)]
    clips = [{"source_id": "s", "video": v, "order": o, "start_ms": s * 1000, "end_ms": 10_000} for v, o, s in rows]
    _, lines = planned(catalog_of(clips), max_clips=9)
    assert [(c["video"], c["start_ms"]) for c in lines] == [("a", 0), ("a", 5000), ("b", 0), ("c", 9000), ("c", 0)]


def test_short_groups_and_integrate_none_make_no_long_samples():
    clips = catalog_of([("a", 0, 1), ("b", 0, 1), ("b", 2, 1)])
    assert planned(clips)[0].counts == {"rows": 2, "clips": 3, "groups": 2, "long": 1}
    assert planned(clips, by="none")[0].counts == {"rows": 3, "clips": 3, "groups": 3, "long": 0}
    assert planned(clips, by="none", min_clips=1)[0].counts["long"] == 3


some_clips = st.lists(
    st.tuples(st.sampled_from("abcdefghij"), st.integers(0, 200), st.one_of(st.none(), st.integers(1, 100))),
    min_size=1,
    max_size=80,
)


def slow_rows(sizes_by_source, target):
    """Rows as lists of group sizes, given the group sizes of each source in order."""
    rows, room = [], 0
    for sizes in sizes_by_source:
        for unit in [sizes] if sum(sizes) <= target else [[size] for size in sizes]:
            if sum(unit) > room:
                rows.append([])
                room = target
            rows[-1] += unit
            room -= sum(unit)
    return rows


@given(some_clips, st.integers(1, 8), st.integers(10, 200), st.integers(8, 30), st.sampled_from([0.0, 0.4]))
@settings(max_examples=150, deadline=None)
def test_the_plan_is_the_slow_planners(clips, max_clips, max_seconds, target, val_fraction):
    keys = dict(max_clips=max_clips, max_seconds=float(max_seconds), clips_per_shard=target, val_fraction=val_fraction)
    built, lines = planned(catalog_of(clips), **keys)
    by_source = defaultdict(list)
    for number, (source, start, seconds) in enumerate(clips):
        end = -1 if seconds is None else start + seconds
        by_source[source].append((start, end, number, (seconds or 0) * 1000))
    wanted = {s: slow_cut([c[3] for c in sorted(c)], max_clips, max_seconds * 1000) for s, c in by_source.items()}
    order, split_of = list(dict.fromkeys(c["source_id"] for c in lines)), {c["source_id"]: c["split"] for c in lines}
    assert [split_of[s] for s in order] == sorted((split_of[s] for s in order), key=lambda s: (s != "train", s))
    rows = []
    for split in dict.fromkeys(split_of[s] for s in order):
        rows += slow_rows([[len(g) for g in wanted[s]] for s in order if split_of[s] == split], target)
    found = defaultdict(list)
    for (row, _), group in groups_of(lines).items():
        found[row].append(len(group))
        assert len({c["source_id"] for c in group}) == 1
        assert {c["long"] for c in group} == {len(group) >= 2} and [c["position"] for c in group] == list(range(len(group)))
    assert list(found.values()) == rows
    assert [c["clip_id"] for s in order for c in lines if c["source_id"] == s] == [
        f"c{number:04d}" for s in order for _, _, number, _ in sorted(by_source[s])
    ]
    assert built.counts["clips"] == len(clips) and all(sum(row) <= max(target, max_clips) for row in rows)


@given(some_clips, st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_random_groups_have_the_sizes_of_source_groups_and_stay_in_their_split(clips, seed):
    table = catalog_of(clips)
    _, by_source = planned(table, val_fraction=0.4)
    _, random = planned(table, val_fraction=0.4, by="random", seed=seed)
    places = ("row", "split", "group", "long", "position")
    assert [[c[k] for k in places] for c in random] == [[c[k] for k in places] for c in by_source]
    assert {(c["clip_id"], c["split"]) for c in random} == {(c["clip_id"], c["split"]) for c in by_source}
    assert len({c["clip_id"] for c in random}) == len(clips)
    assert planned(table, val_fraction=0.4, by="random", seed=seed)[1] == random


def test_random_groups_mix_sources_and_follow_the_seed():
    clips = catalog_of([(f"s{i // 8}", i % 8 * 10, 5) for i in range(400)])
    (_, one), (_, other) = planned(clips, by="random", seed=1), planned(clips, by="random", seed=2)
    assert np.mean([len({c["source_id"] for c in g}) for g in groups_of(one).values()]) > 6
    assert [c["clip_id"] for c in one] != [c["clip_id"] for c in other]


@pytest.mark.parametrize(
    "clips, low, high", [(36, 3, 6), (300, 25, 60), (3_000, 64, 128), (10_000, 150, 250), (400_000, 990, 1000)]
)
def test_auto_gives_small_sets_rows_and_large_ones_bounded_shards(clips, low, high):
    built = plan.build(large_catalog(clips), ExpandConfig())
    assert low <= built.target <= high and built.rows.height >= clips / built.target / 2
    assert built.rows["clips"].max() <= 2 * built.target


def large_catalog(count, per_source=6):
    n = pl.int_range(0, count, dtype=pl.Int64, eager=True)
    source = "s" + (n // per_source).cast(pl.String)
    start = n % per_source * 10_000
    frame = pl.DataFrame({"clip_id": n.cast(pl.String), "source_id": source, "video": source, "start_ms": start})
    frame = frame.with_columns(end_ms=start + 5000, duration_ms=pl.lit(5000, pl.Int64), caption=pl.lit("x"))
    types = pl.Schema(CLIP_SCHEMA).items()
    frame = frame.with_columns(pl.lit(None, dtype).alias(name) for name, dtype in types if name not in frame.columns)
    return as_table(frame.with_columns(extra=pl.lit("{}")))


def test_a_source_larger_than_a_row_goes_on_over_several_by_whole_groups():
    clips = catalog_of([("big", 10 * i, 5) for i in range(5_000)] + [(f"s{i}", 0, 5) for i in range(200)])
    built, lines = planned(clips, clips_per_shard=64)
    rows = Counter(c["row"] for c in lines if c["source_id"] == "big")
    assert len(rows) >= 5_000 // 64 and max(built.rows["clips"]) <= 64
    assert all(len({c["source_id"] for c in group}) == 1 for group in groups_of(lines).values())
    assert {c["row"] for c in lines} == set(range(built.rows.height))


def test_rows_mix_sources_that_are_neighbours_by_name():
    _, lines = planned(large_catalog(6_000), clips_per_shard=60)
    first_row = sorted({int(c["source_id"][1:]) for c in lines if c["row"] == 0})
    assert len(first_row) == 10 and np.diff(first_row).max() > 20


def test_the_split_column_wins_and_val_fraction_is_stable():
    clips = [{"source_id": f"s{i}", "start_ms": 0, "end_ms": 1, "split": "test" if i < 3 else None} for i in range(1000)]
    built, lines = planned(catalog_of(clips), val_fraction=0.2)
    split = {c["source_id"]: c["split"] for c in lines}
    counts = Counter(split.values())
    assert counts["test"] == 3 and 140 < counts["val"] < 260
    assert list(dict.fromkeys(built.rows["split"])) == ["train", "test", "val"]
    fewer = {c["source_id"]: c["split"] for c in planned(catalog_of(clips[::2]), val_fraction=0.2)[1]}
    assert all(split[s] == fewer[s] for s in fewer), "a source's split is its own affair"


WRONG = [
    ({"max_clips": 0}, "integrate.max_clips is 0"),
    ({"min_clips": 0}, "integrate.min_clips is 0"),
    ({"max_seconds": 0.0}, "integrate.max_seconds is 0.0"),
    ({"max_seconds": float("nan")}, "integrate.max_seconds is nan"),
    ({"max_gap_seconds": -1.0}, "integrate.max_gap_seconds is -1.0"),
    ({"val_fraction": 1.0}, "split.val_fraction is 1.0"),
    ({"clips_per_shard": 0}, "output.clips_per_shard is 0; it must be auto or 1 to 10000"),
    ({"clips_per_shard": 2}, "output.clips_per_shard is 2, and a group of 5 clips.* at least 3"),
]


@pytest.mark.parametrize("keys, message", WRONG)
def test_settings_that_cannot_be_met_are_refused_by_name(keys, message):
    with pytest.raises(UserError, match=message):
        planned(catalog_of([("s", 10 * i, 5) for i in range(5)]), **keys)


@pytest.mark.parametrize("by", ["source", "random"])
def test_a_group_without_any_caption_is_not_long(by):
    clips = [{"source_id": f"s{i // 2}", "start_ms": i, "caption": "x" if i == 3 else None} for i in range(8)]
    built, lines = planned(catalog_of(clips), by=by)
    long = [group for group in groups_of(lines).values() if group[0]["long"]]
    assert len(long) == built.counts["long"] == 1 and any(line["caption"] for line in long[0])


def test_a_source_in_two_splits_is_refused():
    clips = [{"source_id": "s", "start_ms": i, "end_ms": 9, "split": split} for i, split in enumerate(["train", None, "val"])]
    with pytest.raises(UserError, match="split: source 's' has clips in train and in val"):
        planned(catalog_of(clips))
