"""A number for each video: LVU's like ratio and views, whose published offsets `gexia import lvu` has taken off."""

import math

import torch
from torch import Tensor

from shards.errors import UserError
from trainer.losses import LossConfig, share_of_mean
from trainer.stream import Batch
from trainer.tasks.base import Reader, Task, TaskConfig
from trainer.tasks.heads import Head


class Regression(Task):
    """The json's `target`, by a linear head on the video's embedding. spec: {"mean": of train's targets}."""

    name = "regression"
    fields = required = ("target",)
    headline = "MSE"
    lower_is_better = True

    def __init__(self, model, iterations: dict[str, int], spec: dict):
        super().__init__(model, iterations, spec)
        self.head = Head(model.architecture["embed_dim"], 1)

    @classmethod
    def specify(cls, config: TaskConfig, read: Reader) -> dict:
        targets = [sample["target"] for sample in read("train", cls.fields) if sample.get("target") is not None]
        if not targets or not all(map(_is_number, targets)):
            raise UserError(f"task.name: {cls.name} needs the field target in the samples' json, a number")
        return {"mean": sum(targets) / len(targets)}

    def problem(self, fields: dict) -> str | None:
        if not _is_number(fields["target"]):
            return f"target {fields['target']!r:.40} is no number"

    @torch.no_grad()
    def start(self) -> None:
        """Start from the best answer that looks at nothing."""
        self.head.weight.zero_()
        self.head.bias.fill_(self.spec["mean"])

    def inputs(self, batch: Batch, draw: tuple | None = None) -> dict[str, Tensor]:
        inputs = super().inputs(batch, draw)
        return {**inputs, "right": torch.tensor([fields["target"] for fields in batch.fields], dtype=torch.float32)}

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"value": self.head(self.video(inputs))[:, 0]}

    def losses(self, answers: dict[str, Tensor], inputs: dict[str, Tensor], config: LossConfig) -> dict[str, Tensor]:
        return {"error": share_of_mean((answers["value"].float() - inputs["right"]) ** 2)}

    def predictions(self, answers: dict[str, Tensor], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"value": answers["value"].float(), "right": inputs["right"]}

    def measure(self, found: dict[str, Tensor]) -> tuple[dict[str, float], dict[str, float]]:
        def error(values) -> dict[str, float]:
            return {"MSE": ((values - found["right"].double()) ** 2).mean().item()}

        return error(found["value"].double()), error(self.spec["mean"])

    def protocol(self) -> str:
        return "fine-tuned" if self.trained else "train's mean"


def _is_number(value) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
