"""Retrieval metrics against a brute force over every order of the tied candidates."""

from itertools import permutations
from statistics import mean, median

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.metrics import chance_metrics, places, retrieval_metrics


def brute_force(scores: list[list[int]], right: list[int]) -> dict[str, float]:
    """Average over all orders in which a sort by score could leave the candidates."""
    ranks_of_query = []
    for row, own in zip(scores, right, strict=True):
        orders = permutations(range(len(row)))
        ranks_of_query.append([sorted(order, key=lambda j: -row[j]).index(own) + 1 for order in orders])
    expected = [mean(ranks) for ranks in ranks_of_query]
    recalls = {f"R@{k}": 100 * mean(mean(r <= k for r in ranks) for ranks in ranks_of_query) for k in (1, 5, 10)}
    return {**recalls, "median_rank": median(expected), "mean_rank": mean(expected)}


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_metrics_are_those_of_a_brute_force_over_all_tie_orders(data):
    queries, candidates = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6))
    cell = st.integers(0, 3)  # few values: many ties
    scores = [data.draw(st.lists(cell, min_size=candidates, max_size=candidates)) for _ in range(queries)]
    right = [data.draw(st.integers(0, candidates - 1)) for _ in range(queries)]
    # With the identity as candidates, a query's embedding is its row of scores.
    found = places(torch.tensor(scores, dtype=torch.float64), torch.eye(candidates).double(), torch.tensor(right), block=2)
    assert retrieval_metrics(found) == pytest.approx(brute_force(scores, right))


def test_a_model_that_tells_nothing_apart_gets_chance():
    same = torch.ones(40, 8)
    found = retrieval_metrics(places(same, same, torch.arange(40)))
    assert found == pytest.approx(chance_metrics(40))


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_block_size_does_not_matter(block):
    torch.manual_seed(0)
    queries, targets = torch.randn(100, 16), torch.randn(64, 16)
    right = torch.randint(64, (100,))
    whole, split = places(queries, targets, right, 1000), places(queries, targets, right, block)
    assert torch.equal(whole.higher, split.higher) and torch.equal(whole.tied, split.tied)
