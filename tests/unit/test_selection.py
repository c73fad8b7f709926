"""Which frames clips want: properties that hold for any timeline, no video needed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.selection import Failure, Recipe, Request, Selection, passes, select
from shards.timeline import Timeline


def timeline(ms: list[int], keys: list[bool]) -> Timeline:
    count = len(ms)
    times = np.array(ms, np.int64)
    return Timeline(times, np.array(keys), np.arange(count), times, int(times[-1]) + 40, True, "test", (64, 48))


@st.composite
def timelines(draw):
    gaps = draw(st.lists(st.integers(1, 300), max_size=60))
    ms = np.cumsum([0, *gaps]).tolist()
    return timeline(ms, draw(st.lists(st.booleans(), min_size=len(ms), max_size=len(ms))))


RECIPES = st.builds(
    Recipe,
    policy=st.sampled_from(["uniform", "fps", "keyframe"]),
    per_clip=st.integers(1, 12),
    fps=st.sampled_from([0.1, 0.5, 1.0, 3.0, 25.0, 1000.0]),
    max_per_clip=st.integers(1, 12),
)


@given(timelines(), RECIPES, st.integers(0, 9000), st.integers(1, 9000))
def test_frames_lie_inside_their_clip_in_order_and_within_their_number(line, recipe, start, length):
    end = min(start + length, line.end_ms)
    found = select(line, Request("a", start, start + length), recipe)
    inside = np.flatnonzero((line.ms >= start) & (line.ms < end))
    if not len(inside):
        assert isinstance(found, Failure)
        return
    everything = [*found.wanted.tolist(), found.middle]
    assert set(everything) <= set(inside.tolist()) and (np.diff(found.wanted) >= 0).all()
    assert (found.first, found.last) == (min(everything), max(everything))
    keys = [i for i in inside if line.is_key[i]]
    if recipe.policy == "keyframe":
        assert found.policy == ("keyframe" if keys else "uniform")
        assert not keys or set(everything) <= set(keys)
    if found.policy == "uniform":
        assert len(found.wanted) == recipe.per_clip
    else:
        assert len(set(found.wanted.tolist())) == len(found.wanted) <= recipe.max_per_clip
    if found.policy == "keyframe":
        assert len(found.wanted) == min(len(keys), recipe.max_per_clip)


def test_fps_asks_at_the_middle_of_each_stretch():
    line = timeline(list(range(0, 10_000, 40)), [True] * 250)
    recipe = Recipe(policy="fps", fps=2.0)
    found = {length: select(line, Request("a", 1000, 1000 + length), recipe) for length in (100, 500, 749, 751, 2000)}
    assert {length: line.ms[item.wanted].tolist() for length, item in found.items()} == {
        100: [1040], 500: [1240], 749: [1240], 751: [1240, 1720], 2000: [1240, 1720, 2240, 2720],
    }  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 30)), max_size=40))
def test_passes_read_every_clip_once_and_never_too_many_at_a_time(spans):
    clips = [
        Selection(str(i), np.array([first, first + length]), first, 1, "uniform") for i, (first, length) in enumerate(spans)
    ]
    parts = passes(clips, Recipe(mp4=True))
    assert sorted(item.clip_id for part in parts for item in part) == sorted(item.clip_id for item in clips)
    for part in parts:
        assert max(sum(item.first <= at <= item.last for item in part) for at in range(82)) <= 8
    most = max((sum(item.first <= at <= item.last for item in clips) for at in range(82)), default=0)
    assert (len(parts) <= 1) == (most <= 8)


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(policy="keyframe")])
def test_pictures_need_one_pass(recipe):
    clips = [Selection(str(i), np.array([0, 9]), 5, 1, "uniform") for i in range(100)]
    assert passes(clips, recipe) == [clips]
