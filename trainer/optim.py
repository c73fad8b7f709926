"""Optimiser groups and the learning rate as a function of the step."""

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class OptimConfig:
    """AdamW. The rates are ours; the paper says only that the towers' is smaller."""

    lr: float = 1e-4  # of the new modules: IAMs, scale, bias
    towers_lr: float = 1e-6  # of the encoders; 0 freezes them
    weight_decay: float = 0.2  # not of norms, biases, scales and embeddings
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    warmup: int = 500  # steps of linear warm-up, before a cosine to zero
    clip_norm: float = 1.0  # of all gradients together


def create_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over four groups (towers and new modules, decayed or not); each group keeps its peak rate as `peak_lr`.

    Parameters under `image_tower.` and `text_tower.` are the towers'; at `towers_lr` 0 they are frozen.
    """
    groups = {}
    for name, parameter in model.named_parameters():
        of_tower, decayed = name.startswith(("image_tower.", "text_tower.")), is_decayed(name, parameter)
        lr = config.towers_lr if of_tower else config.lr
        parameter.requires_grad_(parameter.requires_grad and lr > 0)
        if parameter.requires_grad:
            settings = {"lr": lr, "peak_lr": lr, "weight_decay": config.weight_decay if decayed else 0.0, "params": []}
            groups.setdefault((of_tower, decayed), settings)["params"].append(parameter)
    return torch.optim.AdamW(groups.values(), betas=(config.beta1, config.beta2), eps=config.eps)


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Weight matrices are decayed; norms, biases, scales and embeddings are not."""
    return parameter.ndim >= 2 and "embed" not in name


def lr_share(step: int, warmup: int, steps: int) -> float:
    """Share of the peak rate at a step (from 0): linear to 1 over `warmup` steps, then a cosine that ends at 0."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_lr(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set every group's rate to a share of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share
