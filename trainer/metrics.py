"""Retrieval metrics: where the right answer stands among all candidates. Knows nothing of processes.

Ties: a candidate that scores exactly as much as the right one stands before it with probability one half. Recall is
the expectation over the order of the tied, a rank its mean place; so a model that gives every pair the same score gets
exactly chance, and no order of the input can help or harm.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Places:
    """For each query, how many wrong candidates score higher than the right one, and how many the same."""

    higher: Tensor  # int64 [Q]
    tied: Tensor  # int64 [Q]

    def rank(self) -> Tensor:
        """Expected rank of the right answer, from 1; float64 [Q]."""
        return 1 + self.higher.double() + self.tied.double() / 2

    def recall(self, k: int) -> float:
        """Expected fraction of queries whose right answer is among the first k, 0 to 1."""
        return ((k - self.higher.double()) / (1 + self.tied.double())).clamp(0, 1).mean().item()


def places(queries: Tensor, targets: Tensor, right: Tensor, block: int = 1024) -> Places:
    """Find the right answers' places, `block` queries at a time (block × N scores in memory).

    Args:
        queries: embeddings, [Q, D].
        targets: embeddings of all candidates, [N, D].
        right: int64 [Q], each query's right candidate.
    """
    higher, tied = [], []
    for part, own in zip(queries.split(block), right.split(block), strict=True):
        scores = part @ targets.T
        own_score = scores.gather(1, own[:, None])
        higher.append((scores > own_score).sum(dim=1))
        tied.append((scores == own_score).sum(dim=1) - 1)
    return Places(torch.cat(higher), torch.cat(tied))


def retrieval_metrics(found: Places) -> dict[str, float]:
    """R@1, R@5, R@10 in percent, median and mean rank (the median of an even number is the mean of the middle two)."""
    rank = found.rank()
    return {
        **{f"R@{k}": 100 * found.recall(k) for k in (1, 5, 10)},
        "median_rank": rank.quantile(0.5).item(),
        "mean_rank": rank.mean().item(),
    }


def chance_metrics(candidates: int) -> dict[str, float]:
    """What guessing gives among so many candidates."""
    middle = (candidates + 1) / 2
    return {**{f"R@{k}": 100 * min(1.0, k / candidates) for k in (1, 5, 10)}, "median_rank": middle, "mean_rank": middle}
