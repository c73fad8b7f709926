"""The order of training samples: what `trainer/order.py` promises, over all settings it takes."""

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import UserError
from trainer.order import Mix, Order, Stream, permutation


@st.composite
def streams(draw, parts=st.integers(1, 3)):
    """Arguments of a Stream that fit each other, small."""
    per_lane = draw(st.integers(1, 4))
    count = draw(parts)
    lanes = draw(st.sampled_from([4, 8, 12])) if count > 1 else draw(st.sampled_from([1, 2, 4, 8, 12]))
    batch = per_lane * lanes
    shards = st.lists(st.integers(1, 40), min_size=1, max_size=6)
    sizes = [draw(shards) + [batch] for _ in range(count)]
    return {
        "parts": sizes,
        "part_weights": [1.0] * count,
        "batch": batch,
        "lanes": lanes,
        "block": draw(st.integers(1, 50)),
        "window_samples": draw(st.integers(1, 300)),
        "seed": draw(st.integers(0, 2**31)),
    }


def global_batch(walks, batch: int, step: int) -> np.ndarray:
    """(part, sample) of each row at a step of walks that may be some ranks' or one's: int64 [batch, 2]."""
    rows = np.full((batch, 2), -1)
    for part, walk, places in walks:
        rows[places, 1] = walk.at(step).samples
        rows[places, 0] = part
    assert (rows >= 0).all()
    return rows


@given(streams())
@settings(max_examples=60, deadline=None)
def test_every_sample_comes_once_an_epoch_but_for_the_counted_remainder(arguments):
    stream = Stream("s", **arguments)
    for number, walk, _ in stream.walks(0, 1):
        part = walk.part
        for epoch in range(2):
            drawn = [walk.at(epoch * part.steps + step).samples.ravel() for step in range(part.steps)]
            seen = np.concatenate(drawn)
            assert len(np.unique(seen)) == len(seen) == part.samples - part.remainder
            assert 0 <= seen.min() and seen.max() < sum(arguments["parts"][number])
            assert 0 <= part.remainder < part.batch


@given(streams(), st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_ranks_have_equal_batches_whose_union_is_the_same_for_every_number_of_ranks(arguments, step):
    stream = Stream("s", **arguments)
    batch, lanes = arguments["batch"], arguments["lanes"]
    whole = global_batch(stream.walks(0, 1), batch, step)
    for world in (n for n in range(2, lanes + 1) if lanes % n == 0):
        shares = [global_batch(stream.walks(rank, world), batch // world, step) for rank in range(world)]
        np.testing.assert_array_equal(np.concatenate(shares), whole)


@given(streams(), st.lists(st.integers(0, 60), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_starting_at_a_step_equals_having_run_to_it(arguments, starts):
    stream = Stream("s", **arguments)
    walks = stream.walks(0, 1)
    run = [global_batch(walks, stream.batch, step) for step in range(max(starts) + 2)]
    for start in starts:
        fresh = Stream("s", **arguments).walks(0, 1)
        for step in (start, start + 1):
            np.testing.assert_array_equal(global_batch(fresh, stream.batch, step), run[step])


@given(streams())
@settings(max_examples=40, deadline=None)
def test_what_a_lane_opens_and_draws_agrees_with_its_windows(arguments):
    """A reader that loads windows as they open has every sample when it is drawn, and each window ends exactly."""
    stream = Stream("s", **arguments)
    for _, walk, _ in stream.walks(0, 1):
        windows = {}
        for step in range(2 * walk.part.steps):
            draw = walk.at(step)
            for lane in draw.opened:
                assert lane not in windows or not windows[lane]  # the one before was drawn to its end
                windows[lane] = list(walk.window(lane))
            for lane, samples in enumerate(draw.samples):
                assert draw.drawn[lane] + len(windows[lane]) == walk.lengths[lane]
                assert [windows[lane].pop(0) for _ in samples] == list(samples)


def test_a_far_step_costs_no_more_than_the_first():
    stream = Stream("s", [[500] * 20], [1.0], 64, 64, 8, 1024, seed=0)
    fresh, run = Stream("s", [[500] * 20], [1.0], 64, 64, 8, 1024, seed=0).walks(0, 1), stream.walks(0, 1)
    for step in range(10**6 - 40, 10**6 + 1):
        expected = global_batch(run, 64, step)
    started = time.perf_counter()
    np.testing.assert_array_equal(global_batch(fresh, 64, 10**6), expected)
    assert time.perf_counter() - started < 0.5


def test_two_seeds_two_epochs_and_two_streams_differ():
    def first(name, seed, step):
        return global_batch(Stream(name, [[64]], [1.0], 16, 16, 4, 32, seed).walks(0, 1), 16, step)[:, 1].tolist()

    orders = [first("a", 0, 0), first("a", 1, 0), first("b", 0, 0), first("a", 0, 4)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=16), st.integers(0, 2000))
@settings(max_examples=200, deadline=None)
def test_weights_are_met_within_two_steps_at_any_time(weights, steps):
    counts = Mix(weights).counts(steps)
    assert sum(counts) == steps
    for weight, count in zip(weights, counts):
        assert abs(count - steps * weight / sum(weights)) <= 2


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_a_streams_own_steps_are_counted_without_gaps(weights):
    mix, counts = Mix(weights), [0] * len(weights)
    for step in range(200):
        item, own = mix.at(step)
        assert own == counts[item]
        assert mix.counts(step) == counts
        counts[item] += 1


def test_streams_are_chosen_alike_whatever_order_they_are_named_in():
    made = {name: Stream(name, [[64]], [1.0], 16, 16, 4, 32, 0) for name in ("it", "lv", "svst")}
    weights = {"it": 1.0, "lv": 0.5, "svst": 2.5}
    one = Order(list(made.values()), list(weights.values()))
    other = Order([made[n] for n in reversed(made)], [weights[n] for n in reversed(weights)])
    steps = [*range(50), 10**6, 10**12]
    assert [(s.name, own) for s, own in map(one.at, steps)] == [(s.name, own) for s, own in map(other.at, steps)]


def test_datasets_get_their_share_of_every_batch():
    stream = Stream("s", [[1000], [50, 50]], [0.75, 0.25], 16, 16, 4, 64, 0)
    walks = stream.walks(0, 1)
    for step in range(40):
        parts = global_batch(walks, 16, step)[:, 0]
        assert np.bincount(parts).tolist() == [12, 4]


def same_source_pairs(sources: np.ndarray) -> int:
    counts = np.unique(sources, return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())


@pytest.mark.parametrize("first_source", [8, 3])
def test_a_short_batch_has_at_most_twice_the_same_source_pairs_of_a_uniform_shuffle(first_source):
    """1M clips, eight a source, neighbours in the shards as planned; sources lie in one block or across two."""
    clips, batch, steps = 10**6, 1024, 200
    stream = Stream("svst", [[1000] * 1000], [1.0], batch, batch, 8, 5000, seed=0)
    walks = stream.walks(0, 1)
    pairs = [same_source_pairs((global_batch(walks, batch, step)[:, 1] + first_source) // 8) for step in range(steps)]
    uniform = batch * (batch - 1) / 2 * 7 / (clips - 1)
    assert np.mean(pairs) <= 2 * uniform


def test_ten_million_samples_cost_under_a_millisecond_a_step_and_200_mb():
    tracemalloc.start()
    stream = Stream("svst", [[1000] * 10_000], [1.0], 1024, 1024, 8, 8192, seed=0)
    ((_, walk, _),) = stream.walks(0, 1)
    walk.at(0)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 200e6
    begin = walk.part.steps  # an epoch's first step, which finds the epoch's permutation
    started = time.process_time()
    walk.at(begin)
    permuted = time.process_time()
    for step in range(begin + 1, begin + 401):
        walk.at(step)
    done = time.process_time()
    assert (permuted - started) / walk.part.steps + (done - permuted) / 400 < 1e-3


def test_permutation_is_one_and_stays_the_same_in_every_version():
    assert sorted(permutation(3, 1000)) == list(range(1000))
    assert permutation(3, 12).tolist() == permutation(3, 12).tolist() != permutation(4, 12).tolist()


def test_a_window_larger_than_an_epoch_takes_no_more_room_than_the_epoch():
    [(_, walk, _)] = Stream("s", [[60]], [1.0], 4, 4, 4, 10**6, 0).walks(0, 1)
    assert walk.part.draws(0, np.array([0]), np.array([0])).shape == (1, 15)
    assert sorted(np.concatenate([walk.at(step).samples.ravel() for step in range(15)])) == list(range(60))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"lanes": 12}, "lanes must divide batch, but 16 / 12 does not; nearest lanes: 8 or 16"),
        ({"parts": [[5, 4]]}, "a batch takes 16 samples, but there are 9; lower batch to 9 or less"),
        ({"batch": 0}, "must be at least 1"),
        ({"parts": [[100], [100]], "part_weights": [0.999, 0.001]}, "too small a weight for one of 16 lanes"),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_the_nearest_that_do(changes, message):
    arguments = {"parts": [[100]], "part_weights": [1.0], "batch": 16, "lanes": 16, "block": 4, "window_samples": 32}
    with pytest.raises(UserError, match=message):
        Stream("s", **{**arguments, **changes}, seed=0)


def test_ranks_that_do_not_divide_the_lanes_are_refused_with_the_nearest_lanes_or_batch():
    with pytest.raises(UserError, match="6 ranks must divide its 4 lanes .batch 12.; nearest lanes: 6"):
        Stream("s", [[100]], [1.0], 12, 4, 4, 32, 0).rank_lanes(0, 6)
    with pytest.raises(UserError, match="nearest batch: 15 or 18"):
        Stream("s", [[100]], [1.0], 16, 16, 4, 32, 0).rank_lanes(0, 3)
