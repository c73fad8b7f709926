"""The contract of tasks, which fine-tuning and evaluation both go by.

A task is a module: the model and what the question at hand needs besides (a head, a list of classes). It says which
fields of a sample's json it reads, makes tensors of a batch, answers, and has a loss and metrics for its answers.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from shards.errors import UserError
from shards.reader import Dataset
from trainer import results
from trainer.data_config import DataConfig
from trainer.embeddings import VIDEO, Embedder
from trainer.losses import LossConfig
from trainer.models.dropout import row_keys
from trainer.order import derive_key
from trainer.stream import Batch, evaluation_batches
from trainer.texts import TextEncoder

TEXT_BATCH = 256  # texts encoded at once outside of training


@dataclass
class TaskConfig:
    """What is asked of the samples."""

    # Which question; trainer/README.md says what each asks
    name: Literal["retrieval", "classification", "multilabel", "regression", "multiple_choice", "open_qa"] = "retrieval"
    prompts: Literal["video", "imagenet", "simple"] = "video"  # around a class name: the paper's, or open_clip's 80 or 7
    head: Literal["prompts", "random"] = "prompts"  # classification, multilabel: start from the classes' embeddings, or anew
    answers: int = 1000  # open_qa: answers to choose from, the most frequent of train
    questions: int = 8  # open_qa: questions of a video that a training step takes


@dataclass
class Recipe:
    """How the samples of one granularity are encoded."""

    iter: dict[str, int]  # #iter of `video` and of each text view; the views are its other keys
    frames: int

    @property
    def views(self) -> list[str]:
        return [name for name in self.iter if name != "video"]


# "train", or None for all splits -> what the json of each of its samples holds under the names asked for.
Reader = Callable[[str | None, tuple[str, ...]], list[dict]]


class Task(nn.Module):
    """Base of all tasks.

    fields: of a sample's json, None where it has none.
    required: those of them without which a sample is left out (in training, replaced).
    views: text views that the batches bring.
    headline: the metric that models are chosen by; the first of a result's metrics.
    """

    name = ""
    fields: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    views: tuple[str, ...] = ()
    headline = ""
    lower_is_better = False
    zero_shot = False  # whether an untrained head answers anything

    def __init__(self, model: nn.Module, iterations: dict[str, int], spec: dict):
        """`iterations`: #iter of "video" and "caption" (all texts). `spec`: what `specify` gave."""
        super().__init__()
        self.model, self.iterations, self.spec = model, iterations, spec
        self.encoder = TextEncoder(model.tokenizer())
        self.trained = False  # the protocol says so

    @classmethod
    def specify(cls, config: TaskConfig, read: Reader) -> dict:
        """What the task is made of (classes, answers, …), as JSON. UserError where the data has none of it."""
        return {}

    def problem(self, fields: dict) -> str | None:
        """What is wrong with the `required` fields of a sample's json."""
        return None

    def start(self) -> None:
        """Give the head its first values; the model is on its device."""

    def inputs(self, batch: Batch, draw: tuple | None = None) -> dict[str, Tensor]:
        """A batch as tensors, [B, …] or one row a text. `draw`, (seed, step) of a training step: what is chosen at
        random is chosen by it, dropout too; None takes everything."""
        for fields, sample_id in zip(batch.fields, batch.sample_ids):
            if problem := self.problem(fields):
                raise UserError(f"sample {sample_id}: {problem}")
        inputs = {"frames": batch.frames, "frame_mask": batch.frame_mask}
        if draw:
            keys = [derive_key(*draw, "dropout", sample_id) for sample_id in batch.sample_ids]
            inputs["keys"] = row_keys(keys, batch.frames.device)
        return inputs

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Answers, differentiable; all training goes through here, so that distributed wrappers see it. The losses use
        them all, or the wrappers would wait for a gradient."""
        raise NotImplementedError

    def losses(self, answers: dict[str, Tensor], inputs: dict[str, Tensor], config: LossConfig) -> dict[str, Tensor]:
        """This rank's share of each loss (see losses.py); their sum is trained."""
        raise NotImplementedError

    def predictions(self, answers: dict[str, Tensor], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """What `measure` needs, with the right answers, one row a sample or question."""
        raise NotImplementedError

    def measure(self, found: dict[str, Tensor]) -> tuple[dict[str, float], dict[str, float]]:
        """(metrics, chance) from the predictions of all samples."""
        raise NotImplementedError

    def protocol(self) -> str:
        """How the answers were got, in words."""
        raise NotImplementedError

    def video(self, inputs: dict[str, Tensor]) -> Tensor:
        """Embeddings, [B, D]: made here, or kept from before."""
        if "video" in inputs:
            return inputs["video"]
        frames = inputs["frames"], inputs["frame_mask"]
        return self.model.encode_video(*frames, self.iterations["video"], inputs.get("keys"))

    def encode_text(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """int64 [N, S, L], bool [N, S] -> embeddings [N, D]."""
        return self.model.encode_text(tokens, mask, self.iterations["caption"])

    @torch.no_grad()
    def embed(self, texts: list[str]) -> Tensor:
        """Embeddings of texts outside of training, [N, D]."""
        device = next(self.model.parameters()).device
        parts = [self.encoder([[text] for text in texts[i : i + TEXT_BATCH]]) for i in range(0, len(texts), TEXT_BATCH)]
        return torch.cat([self.encode_text(part.tokens.to(device), part.mask.to(device)) for part in parts])

    def head_weights(self) -> dict[str, Tensor]:
        """Weights beside the model's."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("model.")}

    def evaluate(
        self,
        accelerator: Accelerator,
        dataset: Dataset,
        granularity: str,
        recipe: Recipe,
        batch: int,
        loader: DataConfig,
        folder: Path | None = None,
    ) -> list[dict]:
        """Results (see results.py) on the split `loader.split`, spread over ranks; the same list on all of them.

        `folder` keeps the embeddings.
        """
        was_training = self.training
        self.eval()
        found, sample_ids = self._predict(accelerator, dataset, granularity, recipe, batch, loader, folder)
        self.train(was_training)
        metrics, chance = self.measure(found)
        result = {"task": self.name, "granularity": granularity, "protocol": self.protocol(), "metrics": metrics}
        n = len(next(iter(found.values())))
        covered = results.coverage(dataset, loader.split, granularity, sample_ids)
        return [{**result, "chance": chance, "n": n, **covered}]

    @torch.no_grad()
    def _predict(self, accelerator, dataset, granularity, recipe, batch, loader, folder) -> tuple[dict[str, Tensor], list[str]]:
        """(what `measure` needs, ids of the samples)."""
        ranks = accelerator.process_index, accelerator.num_processes
        kept = self._kept_videos(accelerator, dataset, granularity, recipe, batch, loader, folder) if folder else {}
        shape = granularity, list(self.views), 1 if kept else recipe.frames, batch
        batches = evaluation_batches(
            dataset, loader.split, *shape, *ranks, loader, self.model.tokenizer(), self.fields, self.required
        )
        parts, sample_ids = [], []
        for part in batches:
            if kept and not (part := _only(part, kept)).sample_ids:
                continue
            sample_ids += part.sample_ids
            inputs = to_device(self.inputs(part), accelerator.device)
            if kept:
                inputs["video"] = torch.stack([kept[sample_id] for sample_id in part.sample_ids])
            with accelerator.autocast():
                answers = self(inputs)
            parts.append({name: rows.cpu() for name, rows in self.predictions(answers, inputs).items()})
        parts = gather_object(parts)
        if not parts:
            needed = ", ".join(self.required)
            raise UserError(f"{dataset.url}: no sample of the split {loader.split} has what {self.name} needs: {needed}")
        found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        if any(rows.isnan().any() for rows in found.values()):
            raise UserError(f"{dataset.url}: the model's answers are no numbers; its weights are damaged, or training diverged")
        return found, gather_object(sample_ids)

    def _kept_videos(self, accelerator, dataset, granularity, recipe, batch, loader, folder) -> dict[str, Tensor]:
        """Sample id -> embedding of its video; nothing where ids repeat, as keys of plain tars may."""
        embed = Embedder(accelerator, self.model, batch, loader, folder)
        videos = embed(dataset, granularity, recipe.frames, {VIDEO: self.iterations[VIDEO]})[VIDEO]
        found = dict(zip(videos.sample_ids, videos.rows))
        return found if len(found) == len(videos.rows) else {}


def _only(batch: Batch, known: Collection[str]) -> Batch:
    """The samples of a batch without text views whose ids are known."""
    keep = [i for i, sample_id in enumerate(batch.sample_ids) if sample_id in known]
    taken = {name: [getattr(batch, name)[i] for i in keep] for name in ("sample_ids", "fields")}
    return replace(batch, frames=batch.frames[keep], frame_mask=batch.frame_mask[keep], **taken)


def to_device(inputs: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: rows.to(device, non_blocking=True) for name, rows in inputs.items()}
