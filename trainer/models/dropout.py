"""Dropout as a function of keys, not of a generator's state.

Which elements of a row are dropped depends on the row's key and the place alone, so the same sample drops the same
elements whatever rank has it and however the batch is cut into chunks (`loop.training_step`).
"""

import torch
from torch import Tensor

_GOLDEN = -0x61C8864680B583EB  # 2⁶⁴ / φ, as an int64


def row_keys(keys: list[int], device: torch.device) -> Tensor:
    """Unsigned 64-bit keys, one a row of the batch -> int64 [B]."""
    return torch.tensor([key - (key >> 63 << 64) for key in keys], dtype=torch.int64, device=device)


def dropout(x: Tensor, share: float, keys: Tensor | None, place: int) -> Tensor:
    """Zero a share of the elements of [B, ...] and scale the rest by 1 / (1 - share).

    Args:
        keys: int64 [B]; None leaves `x` as it is.
        place: number of this call within the model, so that two calls drop different elements.
    """
    if keys is None or not share:
        return x
    index = torch.arange(x[0].numel(), device=x.device)
    bits = _mix(_mix(_mix(keys) + place)[:, None] + index * _GOLDEN)
    uniform = ((bits >> 11) & (2**53 - 1)).double() * 2.0**-53
    return x * (uniform >= share).view_as(x) / (1 - share)


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64 (which wraps as uint64 does): every bit of the input reaches every bit."""
    x = (x ^ _shift(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shift(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
