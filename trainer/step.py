"""One training step: forward, loss, gradients, update; over all ranks, in one piece or in chunks."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from trainer.config import PretrainConfig
from trainer.data_config import StreamConfig
from trainer.losses import batch_recall, contrastive_loss, global_mean
from trainer.models.dropout import row_keys
from trainer.order import derive_key


def seed_step(seed: int, *parts) -> None:
    """Random numbers of the model (patch dropout) as a function of (seed, step, rank, chunk): a resumed run, and the
    second pass over a chunk, draw the same."""
    torch.manual_seed(derive_key(seed, "model", *parts))


@dataclass
class StepResult:
    losses: dict[str, float]  # text view -> loss of the global batch
    grad_norm: float
    scale: float  # 1 / temperature
    finite: bool  # whether the gradients were, and so whether the weights moved
    recalls: dict[str, float] = field(default_factory=dict)  # text view -> R@1 within the global batch, 0 to 1
    flops: float | None = None  # of this rank


def training_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch,
    stream: StreamConfig,
    config: PretrainConfig,
    count_flops: Callable[["Inputs"], float | None] = lambda inputs: None,
) -> StepResult:
    """Forward, backward, update. The loss is the sum over the stream's text views."""
    inputs = Inputs(accelerator, model, batch, stream, config)
    flops = count_flops(inputs)
    losses = backward_whole(inputs) if len(inputs.chunks) == 1 else backward_chunks(inputs)
    scale = accelerator.unwrap_model(model).logit_scale
    result = update(accelerator, model, optimizer, losses, scale, config, inputs.recalls)
    result.flops = flops
    return result


def update(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: dict[str, Tensor],
    logit_scale: Tensor,
    config,
    recalls: dict[str, Tensor] | None = None,
) -> StepResult:
    """Clip the gradients and take them; without finite ones the weights stay as they are. `losses` and `recalls` are this
    rank's shares; `config` is a run's, with `optim` and `loss`."""
    norm = accelerator.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
    recalls = recalls or {}
    values = global_mean(torch.stack([*losses.values(), *recalls.values()])).tolist()
    # The gradients are the same on all ranks by now, so all ranks agree.
    finite, scale = bool(torch.isfinite(norm)), float(logit_scale.detach().exp())
    if finite:
        optimizer.step()
        if logit_scale.grad is not None:
            config.loss.clamp(logit_scale)
    optimizer.zero_grad(set_to_none=True)
    found = dict(zip(losses, values)), float(norm), scale, finite
    return StepResult(*found, dict(zip(recalls, values[len(losses) :], strict=True)))


class Inputs:
    """A batch on its device, and the model's answer to some of its rows."""

    def __init__(self, accelerator: Accelerator, model: nn.Module, batch, stream: StreamConfig, config: PretrainConfig):
        self.accelerator, self.model, self.config = accelerator, model, config
        self.step, self.stream, self.iter, device = batch.step, batch.stream, stream.iter, accelerator.device
        self.recalls: dict[str, Tensor] = {}  # text view -> this rank's share, once `losses` has run
        self.frames = batch.frames.to(device, non_blocking=True)
        self.frame_mask = batch.frame_mask.to(device)
        self.texts = {view: (text.tokens.to(device), text.mask.to(device)) for view, text in batch.texts.items()}
        self.text_ids = {view: text.text_id.to(device) for view, text in batch.texts.items()}
        self.keys = row_keys([derive_key(config.seed, "dropout", batch.step, s) for s in batch.sample_ids], device)
        size = config.grad_cache_chunk or len(self.frames)
        self.chunks = [slice(start, start + size) for start in range(0, len(self.frames), size)]

    def forward(self, number: int) -> dict:
        """What `GexiaModel.forward` says of chunk `number`; the same random numbers at every call."""
        part = self.chunks[number]
        seed_step(self.config.seed, self.step, self.accelerator.process_index, number)
        texts = {view: (tokens[part], mask[part]) for view, (tokens, mask) in self.texts.items()}
        with self.accelerator.autocast():
            return self.model(self.frames[part], self.frame_mask[part], texts, self.iter, self.keys[part])

    def losses(self, out: dict) -> dict[str, Tensor]:
        """Loss of each text view, of the embeddings of all rows."""
        found = {}
        for view, (_, mask) in self.texts.items():
            valid = self.frame_mask.any(dim=1) & mask.any(dim=1)
            pair = out["video"], out["texts"][view], self.text_ids[view], valid
            found[view] = contrastive_loss(*pair, out["scale"], out["bias"], self.config.loss)
            self.recalls[view] = batch_recall(*pair, self.config.loss)
        return found


def backward_whole(inputs: Inputs) -> dict[str, Tensor]:
    """Gradients of the batch in one pass; returns the losses."""
    losses = inputs.losses(inputs.forward(0))
    inputs.accelerator.backward(sum(losses.values()))
    return losses


def backward_chunks(inputs: Inputs) -> dict[str, Tensor]:
    """The same gradients with the activations of one chunk at a time (GradCache, arXiv 2101.06983): embeddings of all
    chunks without a graph, the loss's gradients of the embeddings, then each chunk again with those. Ranks exchange
    gradients once, with the last chunk."""
    with torch.no_grad():
        parts = [_flat(inputs.forward(number)) for number in range(len(inputs.chunks))]
    # Embeddings are rows of the batch; the scale and the bias are the same in all parts.
    cached = {k: torch.cat([part[k] for part in parts]) if v.ndim else v for k, v in parts[0].items()}
    cached = {name: value.detach().requires_grad_() for name, value in cached.items()}
    texts = {view: cached[f"texts/{view}"] for view in inputs.texts}
    losses = inputs.losses({"video": cached["video"], "texts": texts, "scale": cached["scale"], "bias": cached.get("bias")})
    sum(losses.values()).backward()
    last = len(inputs.chunks) - 1
    for number, part in enumerate(inputs.chunks):
        with contextlib.nullcontext() if number == last else inputs.accelerator.no_sync(inputs.model):
            out = _flat(inputs.forward(number))
            terms = [(out[k] * v.grad[part]).sum() for k, v in cached.items() if v.ndim]
            terms += [out[k] * v.grad for k, v in cached.items() if not v.ndim and v.grad is not None and number == last]
            inputs.accelerator.backward(sum(terms))
    return losses


def _flat(out: dict) -> dict[str, Tensor]:
    """`GexiaModel.forward`'s result as one level, without what is None."""
    texts = {f"texts/{view}": value for view, value in out["texts"].items()}
    return texts | {name: out[name] for name in ("video", "scale", "bias") if out[name] is not None}
