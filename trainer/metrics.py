"""Retrieval metrics: where the right answer stands among all candidates. Knows nothing of processes.

A video may have several texts: each is a query of its own (text to video), and a video's answer is the text of its own
that stands first among all texts (video to text).

Ties: candidates that score within TIE of the right one stand in any order with the same probability. Recall is the
expectation over those orders, a rank its mean; so a model that gives every pair the same score gets exactly chance, no
order of the input can help or harm, and neither can the rounding of a product cut into other blocks.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TIE = 1e-6  # several times the rounding of a float32 dot product of unit vectors
DECIMALS = 10  # of a percentage: a chance of 1 in 10 is 10.0, not 9.999999999999998
BLOCK = (512, 4096)  # texts × videos whose scores are held at once: small enough to be counted in the cache


@dataclass
class Places:
    """For each query, the wrong candidates that score higher than its best right one, and those that score the same."""

    higher: Tensor  # int64 [Q]
    tied: Tensor  # int64 [Q]
    own: Tensor  # int64 [Q]: right candidates with that score, at least 1

    def rank(self) -> Tensor:
        """Expected rank of the first right answer, from 1; float64 [Q]."""
        return 1 + self.higher.double() + self.tied.double() / (self.own + 1)

    def recall(self, k: int) -> float:
        """Expected share of queries with a right answer among the first k, in percent; what rounding adds is off."""
        higher, tied, own = self.higher.double(), self.tied.double(), self.own.double()
        missed = torch.ones_like(higher)
        for place in range(k):  # the tied share the places after the higher: each goes to a wrong one, or it is found
            given = place - higher
            missed *= torch.where((given >= 0) & (given <= tied), (tied - given) / (tied + own - given), 1.0)
        return round(100 * (1 - missed).mean().item(), DECIMALS)


def places(
    videos: Tensor,
    texts: Tensor,
    video_of: Tensor,
    rank: int = 0,
    ranks: int = 1,
    total: Callable[[Tensor], Tensor] = lambda counts: counts,
    block: tuple[int, int] = BLOCK,
) -> tuple[Places, Places]:
    """Places of each text's video among the videos, and of each video's best text among the texts.

    Args:
        videos, texts: embeddings, [N, D] and [Q, D].
        video_of: int64 [Q], each text's video; every video has at least one text.
        rank, ranks, total: where several processes share the work, which part is done here, and the sum over all.
    """
    score = (texts * videos[video_of]).sum(dim=1)
    best = score.new_full((len(videos),), -torch.inf).scatter_reduce(0, video_of, score, "amax")
    at_best = (score >= best[video_of] - TIE).long()
    own = torch.zeros_like(best, dtype=torch.int64).scatter_add(0, video_of, at_best)

    part = slice(rank * len(texts) // ranks, (rank + 1) * len(texts) // ranks)
    of_texts = torch.zeros(2, len(texts), dtype=torch.int64, device=texts.device)
    of_texts[:, part], of_videos = count_candidates(videos, texts[part], best, score[part], block)
    return _places(total(of_texts), torch.ones_like(video_of)), _places(total(of_videos), own)


def _places(counts: Tensor, own: Tensor) -> Places:
    """Counts over all candidates -> places; `own` of those at the score are right."""
    higher, at_least = counts
    return Places(higher, (at_least - higher - own).clamp(min=0), own)


def count_candidates(
    videos: Tensor, texts: Tensor, video_score: Tensor, text_score: Tensor, block: tuple[int, int] = BLOCK
) -> tuple[Tensor, Tensor]:
    """How many candidates score higher than a given score, and how many at least as high, for both ways in one product.

    Args:
        videos, texts: embeddings, [N, D] and [Q, D].
        video_score, text_score: what each video's candidates (texts) and each text's (videos) are held against.

    Returns ([higher, at least] of texts, [higher, at least] of videos), int64 [2, Q] and [2, N].
    """
    of_texts = torch.zeros(2, len(texts), dtype=torch.int64, device=texts.device)
    of_videos = torch.zeros(2, len(videos), dtype=torch.int64, device=texts.device)
    scores, flags = torch.empty(2, block[0] * block[1], dtype=texts.dtype, device=texts.device)
    for top in range(0, len(texts), block[0]):
        text, rows = texts[top : top + block[0]], slice(top, top + block[0])
        for left in range(0, len(videos), block[1]):
            video, columns = videos[left : left + block[1]], slice(left, left + block[1])
            size = len(text) * len(video)
            tile = torch.mm(text, video.T, out=scores[:size].view(len(text), len(video)))
            # Flags as floats: booleans take several times as long to sum. The counts of a block are exact.
            flag = flags[:size].view_as(tile)
            for number, compare, tie in ((0, torch.gt, TIE), (1, torch.ge, -TIE)):
                of_texts[number, rows] += compare(tile, text_score[rows, None] + tie, out=flag).sum(dim=1).long()
                of_videos[number, columns] += compare(tile, video_score[columns] + tie, out=flag).sum(dim=0).long()
    return of_texts, of_videos


def retrieval_metrics(found: Places) -> dict[str, float]:
    """R@1, R@5, R@10 in percent, median and mean rank (the median of an even number is the mean of the middle two)."""
    rank = found.rank()
    return {
        **{f"R@{k}": found.recall(k) for k in (1, 5, 10)},
        "median_rank": rank.quantile(0.5).item(),
        "mean_rank": rank.mean().item(),
    }


def chance_metrics(candidates: int, own: Tensor) -> dict[str, float]:
    """What guessing gives among so many candidates, of which each query has `own` right ones (int64 [Q])."""
    return retrieval_metrics(Places(torch.zeros_like(own), candidates - own, own))
