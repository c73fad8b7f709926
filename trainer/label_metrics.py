"""Metrics of answers that are classes or numbers. Percentages are 0 to 100; ties count in expectation (metrics.py)."""

import torch
from torch import Tensor

from trainer.metrics import Places


def class_places(scores: Tensor, right: Tensor) -> Places:
    """Where the right class stands among all.

    scores: [N, C]; a class that cannot be chosen has -inf. right: int64 [N], -1 for a class that is none of them, which
    stands behind all.
    """
    known = right >= 0
    own = scores.gather(1, right.clamp(min=0)[:, None])
    higher, tied = (scores > own).sum(dim=1), (scores == own).sum(dim=1) - 1
    behind = torch.where(known, higher, scores.shape[1]), torch.where(known, tied, 0)
    return Places(*behind, torch.ones_like(right))


def accuracy(scores: Tensor, right: Tensor, ks: tuple[int, ...] = (1, 5)) -> dict[str, float]:
    """Top-k accuracy."""
    places = class_places(scores, right)
    return {f"top-{k}": places.recall(k) for k in ks}


def mean_class_accuracy(scores: Tensor, right: Tensor) -> float:
    """Mean over the classes that occur of each one's top-1 accuracy; a class unknown to the scores (-1) counts as one."""
    places = class_places(scores, right)
    hits = ((1 - places.higher.double()) / (1 + places.tied.double())).clamp(0, 1)
    _, index, counts = right.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, index, hits)
    return 100 * (sums / counts).mean().item()


def constant_accuracy(right: Tensor, classes: int, ks: tuple[int, ...] = (1, 5)) -> dict[str, float]:
    """Top-k accuracy of the k commonest classes, whatever the sample shows: the best that looking at nothing can do."""
    counts = right[right >= 0].bincount(minlength=classes).sort(descending=True).values
    return {f"top-{k}": 100 * counts[:k].sum().item() / len(right) for k in ks}


def average_precision(scores: Tensor, relevant: Tensor) -> float:
    """Area under the precision-recall steps of one class, 0 to 1; tied scores are one step (as scikit-learn's).

    scores: [N]. relevant: bool [N], at least one True.
    """
    order = scores.argsort(descending=True, stable=True)
    hits = relevant[order].double().cumsum(0)
    ordered = scores[order]
    last = torch.cat([ordered[1:] != ordered[:-1], torch.ones(1, dtype=torch.bool)])  # of each run of equal scores
    hits, ranks = hits[last], last.nonzero()[:, 0] + 1
    gained = hits.diff(prepend=torch.zeros(1, dtype=torch.float64))
    return ((hits / ranks * gained).sum() / hits[-1]).item()


def mean_average_precision(scores: Tensor, relevant: Tensor) -> float:
    """Mean over classes of the average precision, as Charades' own evaluation: samples without any label stand last
    (so they change nothing). Classes that no sample has are left out, where the original gives NaN.

    scores: [N, C]. relevant: bool [N, C].
    """
    labelled = relevant.any(dim=1)
    scores, relevant = scores[labelled], relevant[labelled]
    present = relevant.any(dim=0).nonzero()[:, 0].tolist()
    if not present:
        return float("nan")
    return 100 * sum(average_precision(scores[:, c], relevant[:, c]) for c in present) / len(present)
