"""Class, multi-label and answer metrics against brute force, scikit-learn and torchmetrics."""

from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.label_metrics import (
    accuracy,
    average_precision,
    constant_accuracy,
    mean_average_precision,
    mean_class_accuracy,
)


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_accuracy_is_the_mean_over_all_orders_of_tied_classes(data):
    classes, samples = data.draw(st.integers(2, 5)), data.draw(st.integers(1, 5))
    scores = [data.draw(st.lists(st.integers(0, 2), min_size=classes, max_size=classes)) for _ in range(samples)]
    right = data.draw(st.lists(st.integers(-1, classes - 1), min_size=samples, max_size=samples))
    k = data.draw(st.integers(1, classes))
    hits = [
        Fraction(sum(own in sorted(order, key=lambda c: -row[c])[:k] for order in orders), len(orders))
        for row, own in zip(scores, right, strict=True)
        for orders in [list(permutations(range(classes)))]
    ]
    found = accuracy(torch.tensor(scores, dtype=torch.float32), torch.tensor(right), ks=(k,))
    assert found[f"top-{k}"] == pytest.approx(100 * float(sum(hits) / samples))


def test_a_class_that_is_not_known_is_wrong():
    assert accuracy(torch.zeros(2, 3), torch.tensor([-1, -1]), ks=(1, 3)) == {"top-1": 0, "top-3": 0}


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_average_precision_is_scikit_learns_with_ties(data):
    sklearn = pytest.importorskip("sklearn.metrics")
    samples = data.draw(st.integers(1, 12))
    scores = data.draw(st.lists(st.integers(0, 4), min_size=samples, max_size=samples))
    relevant = data.draw(st.lists(st.booleans(), min_size=samples, max_size=samples).filter(any))
    ours = average_precision(torch.tensor(scores, dtype=torch.float32), torch.tensor(relevant))
    assert ours == pytest.approx(sklearn.average_precision_score(relevant, scores))


def charades_map(scores: np.ndarray, relevant: np.ndarray) -> float:
    """The published evaluation, step by step: unlabelled rows go last, precision is read at each hit."""
    scores = scores.copy()
    scores[relevant.sum(axis=1) == 0] = -np.inf
    values = []
    for c in range(scores.shape[1]):
        hits, precisions = 0, []
        for rank, row in enumerate(np.argsort(-scores[:, c], kind="stable"), start=1):
            if relevant[row, c]:
                hits += 1
                precisions.append(hits / rank)
        values.append(np.mean(precisions))
    return 100 * float(np.mean(values))


def test_map_is_charades_own_where_every_class_occurs():
    rng = np.random.default_rng(0)
    relevant = rng.random((60, 7)) < 0.2
    relevant[:5] = False  # rows without any label
    relevant[5] = True  # every class occurs
    scores = rng.random((60, 7))
    assert mean_average_precision(torch.tensor(scores), torch.tensor(relevant)) == pytest.approx(charades_map(scores, relevant))


def test_equal_scores_give_the_share_of_each_class():
    relevant = torch.tensor([[1, 0], [1, 1], [1, 0], [1, 0]]).bool()
    assert mean_average_precision(torch.zeros(4, 2), relevant) == pytest.approx(100 * (1 + 0.25) / 2)


def test_metrics_are_those_of_torchmetrics_without_ties():
    torchmetrics = pytest.importorskip("torchmetrics.functional.classification")
    torch.manual_seed(0)
    scores, right = torch.randn(200, 11), torch.randint(11, (200,))
    found = accuracy(scores, right)
    for k in (1, 5):
        expected = torchmetrics.multiclass_accuracy(scores, right, 11, average="micro", top_k=k)
        assert found[f"top-{k}"] == pytest.approx(100 * expected.item(), rel=1e-5)
    expected = torchmetrics.multiclass_accuracy(scores, right, 11, average="macro")
    assert mean_class_accuracy(scores, right) == pytest.approx(100 * expected.item(), rel=1e-5)
    relevant = torch.rand(200, 11) < 0.3
    kept = relevant.any(dim=1)
    expected = torchmetrics.multilabel_average_precision(scores[kept], relevant[kept].long(), 11, average="macro")
    assert mean_average_precision(scores, relevant) == pytest.approx(100 * expected.item(), rel=1e-4)


def test_the_best_constant_answers_are_the_commonest_classes():
    right = torch.tensor([0, 0, 0, 1, 1, 2, -1, -1])
    assert constant_accuracy(right, 4, ks=(1, 2)) == {"top-1": 37.5, "top-2": 62.5}
