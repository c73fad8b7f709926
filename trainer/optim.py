"""Optimiser groups and the learning rate as a function of the step."""

import copy
import math
import re
from dataclasses import dataclass

import torch
from torch import nn

from shards.errors import UserError
from trainer.models.gexia import TowerInit

TOWERS = ("image_tower", "text_tower")
# open_clip's and timm's names.
BLOCK = re.compile(r"\.(?:resblocks|blocks)\.(\d+)\.")
AFTER_BLOCKS = re.compile(r"\.(ln_post|ln_final|visual\.proj|text_projection|attn_pool|trunk\.norm|trunk\.fc_norm|head)(\.|$)")


@dataclass
class OptimConfig:
    """AdamW. The rates are ours; the paper says only that the towers' is smaller."""

    lr: float = 1e-4  # of the new modules: IAMs, scale, bias, towers from scratch
    towers_lr: float = 1e-6  # of the encoders that are fine-tuned; 0 freezes them
    head_lr: float | None = None  # of a task's head; null: lr
    layer_decay: float = 1.0  # factor of a fine-tuned tower's rate from each layer to the one below
    weight_decay: float = 0.2  # not of norms, biases, scales and embeddings
    beta1: float = 0.9  # AdamW's
    beta2: float = 0.98  # AdamW's
    eps: float = 1e-6  # AdamW's
    warmup: int = 500  # steps of linear warm-up, before a cosine to zero
    clip_norm: float = 1.0  # of all gradients together
    ema_decay: float = 0.0  # of the average of the weights that is saved as the model; 0: the last weights are


def create_optimizer(model: nn.Module, config: OptimConfig, inits: dict[str, TowerInit] | None = None) -> torch.optim.AdamW:
    """AdamW over groups of one rate and decay each; a group keeps its peak rate as `peak_lr`.

    `inits`: each tower's (`ModelConfig.tower_inits`); None: both are fine-tuned. Parameters without a rate are frozen.
    `model` may be a task, with a model under `model.` and a head under `head.`. UserError where all would be frozen.
    """
    inits = inits or dict.fromkeys(TOWERS, "finetune")
    top = {tower: 1 + max(block_numbers(model, tower), default=-1) for tower in TOWERS}
    groups = {}
    for name, parameter in model.named_parameters():
        tower = name.removeprefix("model.").split(".")[0]
        lr = config.head_lr if tower == "head" and config.head_lr is not None else config.lr
        if inits.get(tower) == "finetune":
            lr = config.towers_lr * config.layer_decay ** (top[tower] - layer(name, top[tower]))
        parameter.requires_grad_(parameter.requires_grad and lr > 0)
        if parameter.requires_grad:
            decay = config.weight_decay if is_decayed(name, parameter) else 0.0
            settings = {"lr": lr, "peak_lr": lr, "weight_decay": decay, "params": []}
            groups.setdefault((lr, decay), settings)["params"].append(parameter)
    if not groups:
        raise UserError("optim: all rates are 0; nothing would be trained")
    return torch.optim.AdamW(groups.values(), betas=(config.beta1, config.beta2), eps=config.eps)


def steps_to_cpu(optimizer: torch.optim.Optimizer) -> None:
    """Accelerate moves a restored state to the device as a whole. AdamW reads its numbers of steps on the host, and would
    wait for the device once a parameter."""
    for state in optimizer.state.values():
        if "step" in state:
            state["step"] = state["step"].cpu()


def layer(name: str, top: int) -> int:
    """Depth of a tower's parameter: -1 for embeddings, its block's number, `top` for what follows the blocks."""
    if block := BLOCK.search(name):
        return int(block[1])
    return top if AFTER_BLOCKS.search(name) else -1


def block_numbers(model: nn.Module, tower: str) -> set[int]:
    names = (name.removeprefix("model.") for name, _ in model.named_parameters())
    return {int(block[1]) for name in names if name.startswith(tower) and (block := BLOCK.search(name))}


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


class Average:
    """Exponential moving average of a model's weights, a model itself (`model`).

    The decay grows to its value, (1 + step) / (10 + step), so that the first weights do not stay in it for long.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay = copy.deepcopy(model).requires_grad_(False).eval(), decay

    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        ours, theirs = list(self.model.parameters()), [p.detach() for p in model.parameters()]
        torch._foreach_lerp_(ours, theirs, 1 - decay)
