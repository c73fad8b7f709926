"""Retrieval metrics against a brute force over every order of the tied candidates."""

from itertools import permutations
from statistics import mean, median

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.metrics import chance_metrics, places, retrieval_metrics


def brute_force(scores: list[list[int]], right: list[set[int]]) -> dict[str, float]:
    """Average over all orders in which a sort by score could leave the candidates; the first right one counts."""
    ranks_of_query = []
    for row, own in zip(scores, right, strict=True):
        orders = permutations(range(len(row)))
        sortings = (sorted(order, key=lambda j: -row[j]) for order in orders)
        ranks_of_query.append([1 + min(order.index(j) for j in own) for order in sortings])
    expected = [mean(ranks) for ranks in ranks_of_query]
    recalls = {f"R@{k}": 100 * mean(mean(r <= k for r in ranks) for ranks in ranks_of_query) for k in (1, 5, 10)}
    return {**recalls, "median_rank": median(expected), "mean_rank": mean(expected)}


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_metrics_are_those_of_a_brute_force_over_all_tie_orders(data):
    """Several texts a video, ties within and across videos, both directions, in blocks and over ranks."""
    videos = data.draw(st.integers(1, 4))
    more = data.draw(st.lists(st.integers(0, videos - 1), max_size=6 - videos))
    video_of = data.draw(st.permutations([*range(videos), *more]))
    cell = st.integers(0, 3)  # few values: many ties
    scores = [data.draw(st.lists(cell, min_size=videos, max_size=videos)) for _ in video_of]
    # With the identity as videos, a text's embedding is its row of scores.
    tensors = torch.eye(videos).double(), torch.tensor(scores, dtype=torch.float64), torch.tensor(video_of)
    ranks, parts = data.draw(st.integers(1, 3)), []
    for rank in range(ranks):
        places(*tensors, rank, ranks, lambda counts: parts.append(counts) or counts, block=(2, 3))
    sums = iter([sum(parts[0::2]), sum(parts[1::2])])  # what an all-reduce gives: of the texts, then of the videos
    text_to_video, video_to_text = places(*tensors, 0, ranks, lambda _: next(sums), block=(2, 3))
    own_texts = [{i for i, own in enumerate(video_of) if own == video} for video in range(videos)]
    by_video = [list(column) for column in zip(*scores)]
    assert retrieval_metrics(text_to_video) == pytest.approx(brute_force(scores, [{own} for own in video_of]))
    assert retrieval_metrics(video_to_text) == pytest.approx(brute_force(by_video, own_texts))


def test_a_model_that_tells_nothing_apart_gets_chance():
    same, video_of = torch.full((40, 8), 8**-0.5), torch.arange(120) % 40
    text_to_video, video_to_text = map(retrieval_metrics, places(same, same[video_of], video_of))
    assert text_to_video == pytest.approx(chance_metrics(40, torch.ones(120)))
    assert video_to_text == pytest.approx(chance_metrics(120, torch.full((40,), 3)))
    assert chance_metrics(40, torch.ones(1))["R@5"] == pytest.approx(12.5)
    assert chance_metrics(10, torch.ones(7))["R@1"] == 10  # tables and files show it: no 9.999999999999998


@pytest.mark.parametrize("block", [(1, 1), (7, 5), (64, 3), (1000, 1000)])
def test_block_size_does_not_matter(block):
    torch.manual_seed(0)
    videos, texts = (torch.nn.functional.normalize(torch.randn(count, 16), dim=1) for count in (64, 100))
    video_of = torch.cat([torch.arange(64), torch.randint(64, (36,))])
    whole, split = places(videos, texts, video_of), places(videos, texts, video_of, block=block)
    for one, other in zip(whole, split, strict=True):
        assert torch.equal(one.higher, other.higher) and torch.equal(one.tied, other.tied)


def test_equal_texts_of_two_videos_are_tied_whatever_block_they_fall_into():
    """Unequal rounding of the same score must not put one before the other."""
    torch.manual_seed(0)
    videos, texts = (torch.nn.functional.normalize(torch.randn(40, 512), dim=1) for _ in range(2))
    texts[39] = texts[0]
    for block in ((7, 5), (64, 64)):
        _, found = places(videos, texts, torch.arange(40), block=block)
        assert found.tied[0] == found.tied[39] == 1
