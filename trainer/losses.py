"""Contrastive losses over the global batch.

Every rank calls a loss with its own rows; the value it returns is its share times the number of ranks, so that the
mean over ranks, which distributed data parallel takes of the gradients, is exactly the loss and the gradient of one
process with the whole batch. `global_mean` gives the value that belongs in a log.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


@dataclass
class LossConfig:
    kind: Literal["infonce", "sigmoid"] = "infonce"  # sigmoid is SigLIP's
    max_scale: float | None = None  # bound of the learned 1 / temperature; null: 100 for infonce (CLIP's), none for sigmoid
    chunk: int | None = None  # rows whose scores are held at once; null: all

    @torch.no_grad()
    def clamp(self, logit_scale: Tensor) -> None:
        """Bring the learned parameter, ln(1 / temperature), back to its bound. Clamping the loss's scale instead would
        stop its gradient for good: CLIP's own weights lie at the bound."""
        most = 100.0 if self.max_scale is None and self.kind == "infonce" else self.max_scale
        if most is not None:
            logit_scale.clamp_(max=math.log(most))


def contrastive_loss(
    video: Tensor, text: Tensor, text_id: Tensor, valid: Tensor, scale: Tensor, bias: Tensor | None, config: LossConfig
) -> Tensor:
    """This rank's share of the loss between paired rows, scalar.

    Args:
        video, text: normalised embeddings, [B, D] of each rank; B is the same on all ranks. Row i is a pair.
        text_id: int64 [B]; rows with the same text are no negatives of one another.
        valid: bool [B]; other rows are neither queries nor negatives, and the mean is over the valid rows of all ranks.
        scale: 1 / temperature, scalar.
        bias: of the sigmoid loss, scalar.
    """
    targets = _Targets(gather(video), gather(text), gather_constant(text_id), gather_constant(valid))
    first = _rank() * len(video)
    chunk = config.chunk or len(video)
    rows = _info_nce_rows if config.kind == "infonce" else _sigmoid_rows
    total = video.new_zeros(())
    for start in range(0, len(video), chunk):
        part = slice(start, start + chunk)
        arguments = (video[part], text[part], targets, first + start, scale, bias)
        # Recomputing a chunk in the backward pass is what keeps only one chunk's scores in memory.
        total = total + (checkpoint(rows, *arguments, use_reentrant=False) if config.chunk else rows(*arguments))
    return total / targets.valid.sum().clamp(min=1) * _world_size()


@torch.no_grad()
def batch_recall(video: Tensor, text: Tensor, text_id: Tensor, valid: Tensor, config: LossConfig) -> Tensor:
    """This rank's share of R@1 within the global batch (0 to 1, mean of both directions), as of a loss.

    Arguments as of `contrastive_loss`. The own one must score above all others; rows with the same text are none.
    """
    targets = _Targets(*(gather_constant(rows.detach()) for rows in (video, text, text_id, valid)))
    first, chunk, found = _rank() * len(video), config.chunk or len(video), video.new_zeros(())
    for start in range(0, len(video), chunk):
        part = slice(start, start + chunk)
        own, allowed = targets.candidates(range(first + start, first + start + len(video[part])))
        for queries, columns in ((video[part], targets.text), (text[part], targets.video)):
            scores = (queries @ columns.T).masked_fill(~allowed, -torch.inf)
            own_score = scores.gather(1, own[:, None])[:, 0]
            others = scores.scatter(1, own[:, None], -torch.inf).amax(dim=1)
            found += ((own_score > others) & valid[part]).sum() / 2
    return found / targets.valid.sum().clamp(min=1) * _world_size()


@dataclass
class _Targets:
    """What every row is compared with: the rows of all ranks, in rank order."""

    video: Tensor
    text: Tensor
    text_id: Tensor
    valid: Tensor

    def candidates(self, rows: range) -> tuple[Tensor, Tensor]:
        """For some rows: their own columns as int64 [n], and bool [n, N]: which columns are compared with each."""
        own = torch.arange(rows.start, rows.stop, device=self.valid.device)
        same = self.text_id[own][:, None] == self.text_id[None]
        allowed = self.valid[None] & ~same
        allowed[torch.arange(len(own), device=own.device), own] = True
        return own, allowed


def _info_nce_rows(video, text, targets: _Targets, first: int, scale, bias) -> Tensor:
    """Symmetric InfoNCE summed over some rows: cross-entropy of each video among the texts and each text among the
    videos, halved."""
    own, allowed = targets.candidates(range(first, first + len(video)))
    total = 0.0
    for queries, columns in ((video, targets.text), (text, targets.video)):
        scores = (scale * queries @ columns.T).masked_fill(~allowed, -torch.inf)
        each = F.cross_entropy(scores, own, reduction="none")
        total = total + torch.where(targets.valid[own], each, 0.0).sum() / 2
    return total


def _sigmoid_rows(video, text, targets: _Targets, first: int, scale, bias) -> Tensor:
    """SigLIP's loss summed over some rows: each (video, text) is a yes or a no of its own."""
    own, allowed = targets.candidates(range(first, first + len(video)))
    scores = scale * video @ targets.text.T + bias
    sign = torch.full_like(scores, -1.0)
    sign[torch.arange(len(own), device=own.device), own] = 1.0
    counted = allowed & targets.valid[own][:, None]
    return -torch.where(counted, F.logsigmoid(sign * scores), 0.0).sum()


class _Gather(torch.autograd.Function):
    """Rows of all ranks in rank order; the gradient of a row is the sum over the ranks that used it."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        return gather_constant(rows)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[_rank() * ctx.count :][: ctx.count]


def gather(rows: Tensor) -> Tensor:
    """[B, ...] of every rank -> [ranks * B, ...], differentiable."""
    return _Gather.apply(rows) if _world_size() > 1 else rows


def gather_constant(rows: Tensor) -> Tensor:
    """As `gather`, without a gradient."""
    if _world_size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def share_of_mean(values: Tensor) -> Tensor:
    """This rank's share of the mean over the values of all ranks, of which each may have another number, [n] -> scalar."""
    count = torch.tensor(len(values), dtype=torch.float32, device=values.device)
    if _world_size() > 1:
        dist.all_reduce(count)
    return values.sum() / count.clamp(min=1) * _world_size()


def global_mean(values: Tensor) -> Tensor:
    """Mean over ranks of a detached tensor: of a loss's shares, the loss of the global batch."""
    values = values.detach().clone()
    if _world_size() > 1:
        dist.all_reduce(values)
    return values / _world_size()


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
