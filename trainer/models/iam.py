"""IAM, the iterative approximation module: dense features of any number to one embedding of fixed size.

The paper says what it does (`#iter` passes with shared weights, chosen at call time); this block is our own design.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shards.errors import UserError

from .dropout import dropout


class IAM(nn.Module):
    """`#iter` rounds of cross-attention from a few latents to the dense features, all with the same weights.

        E₀ = mean of the normalised global tokens          (so #iter 0 is CLIP4Clip's mean pooling)
        X  = LN(dense features) + position embedding       (K and V of X are computed once for all rounds)
        E ← E + CrossAttention(LN(E) + q, X);  E ← E + MLP(LN(E))
        result = mean of the latents, normalised

    Frames or sentences beyond `positions` share the last one's embedding: a text may have any number of sentences.
    Both residual branches end in zeros, so an untrained IAM returns E₀ whatever `#iter`. q is one learned query a
    latent: it tells the latents apart, which all start from E₀.
    """

    def __init__(
        self, dim: int, heads: int = 8, latents: int = 1, mlp_ratio: float = 4.0, dropout: float = 0.0, positions: int = 64
    ):
        super().__init__()
        if dim % heads:
            raise UserError(f"model.heads: {heads} does not divide the model's width, {dim}")
        hidden = int(dim * mlp_ratio)
        self.heads, self.dropout, self.positions = heads, dropout, positions
        self.query_embedding = nn.Parameter(torch.randn(latents, dim))
        self.position_embedding = nn.Parameter(0.02 * torch.randn(positions, dim))
        self.features_norm = nn.LayerNorm(dim)
        self.attention_norm = nn.LayerNorm(dim)
        self.mlp_norm = nn.LayerNorm(dim)
        self.to_query = nn.Linear(dim, dim)
        # A bias of the keys adds the same to every score of a query: softmax does not see it.
        self.to_key = nn.Linear(dim, dim, bias=False)
        self.to_value = nn.Linear(dim, dim)
        self.attention_out = nn.Linear(dim, dim)
        self.mlp_in = nn.Linear(dim, hidden)
        self.mlp_out = nn.Linear(hidden, dim)
        for layer in (self.attention_out, self.mlp_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        units: Tensor,
        unit_mask: Tensor,
        dense: Tensor,
        dense_mask: Tensor,
        iterations: int,
        keys: Tensor | None = None,
    ) -> Tensor:
        """One embedding a row.

        Args:
            units: global tokens of a row's frames or sentences, [B, N, D].
            unit_mask: bool [B, N], False where there is no frame or sentence.
            dense: their dense features, [B, N, M, D]; not read when `iterations` is 0.
            dense_mask: bool [B, N, M].
            iterations: `#iter`, at least 0.
            keys: of the dropout, int64 [B]; None: no dropout.

        Returns [B, D] of length 1; a row without any unit gives zeros (and later what the biases make of them).
        """
        start = mean_pool(units, unit_mask)
        if iterations == 0:
            return F.normalize(start, dim=-1)
        keys_values = self._keys_values(dense)
        mask = (dense_mask & unit_mask[:, :, None]).flatten(1)
        state = start[:, None].expand(-1, len(self.query_embedding), -1)
        for i in range(iterations):
            state = state + dropout(self._attend(state, keys_values, mask), self.dropout, keys, 2 * i)
            state = state + dropout(self._mlp(state), self.dropout, keys, 2 * i + 1)
        return F.normalize(state.mean(dim=1), dim=-1)

    def _keys_values(self, dense: Tensor) -> tuple[Tensor, Tensor]:
        """[B, N, M, D] -> keys and values, [B, heads, N * M, D / heads]."""
        place = torch.arange(dense.shape[1], device=dense.device).clamp(max=self.positions - 1)
        x = self.features_norm(dense) + self.position_embedding[place][:, None]
        x = x.flatten(1, 2)
        return self._split(self.to_key(x)), self._split(self.to_value(x))

    def _attend(self, state: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        query = self._split(self.to_query(self.attention_norm(state) + self.query_embedding))
        some = mask.any(dim=1)[:, None]  # a row with nothing to see attends to everything, and the result is dropped
        seen = F.scaled_dot_product_attention(query, *keys_values, attn_mask=(mask | ~some)[:, None, None])
        return self.attention_out(seen.transpose(1, 2).flatten(2) * some[:, :, None])

    def _mlp(self, state: Tensor) -> Tensor:
        return self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(state))))

    def _split(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, heads, N, D / heads]."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


def mean_pool(units: Tensor, mask: Tensor) -> Tensor:
    """Mean of the normalised tokens under the mask (CLIP4Clip's), [B, N, D] -> [B, D]; zeros where nothing is."""
    units = F.normalize(units.to(torch.promote_types(units.dtype, torch.float32)), dim=-1)
    units = units * mask[:, :, None]
    return units.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)
