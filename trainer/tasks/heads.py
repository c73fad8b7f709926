"""What stands on an embedding and answers."""

import torch
from torch import Tensor, nn


class Head(nn.Linear):
    """A linear layer on embeddings of length 1, stretched to the length that layers expect: sqrt(width)."""

    def forward(self, embedding: Tensor) -> Tensor:
        """[B, D] -> [B, outputs]."""
        return super().forward(embedding * self.in_features**0.5)

    @torch.no_grad()
    def start(self, rows: Tensor, scale: Tensor) -> None:
        """Outputs become `scale` times the cosines with `rows`, [outputs, D] of length 1."""
        self.weight.copy_(rows * scale / self.in_features**0.5)
        self.bias.zero_()


class Mixer(nn.Module):
    """Video and question to one vector of answers' scores: a hidden layer on both and their product. Ours."""

    def __init__(self, dim: int, answers: int):
        super().__init__()
        self.hidden = Head(3 * dim, 2 * dim)
        self.out = nn.Linear(2 * dim, answers)

    def forward(self, video: Tensor, question: Tensor) -> Tensor:
        """[N, D], [N, D] -> [N, answers]."""
        both = video * question * video.shape[1] ** 0.5
        return self.out(nn.functional.gelu(self.hidden(torch.cat([video, question, both], dim=1))))
