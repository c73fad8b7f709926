"""Classes of a video: one of many (classification), or any number of them (multi-label).

Both are a linear head on the video's embedding. It starts from the embeddings of the classes' prompts, so that an
untrained head is exactly zero-shot classification, or at random. A linear probe is a fine-tuning in which only the head
has a rate (`optim.lr` and `optim.towers_lr` 0).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from shards.errors import UserError
from trainer.label_metrics import accuracy, constant_accuracy, mean_average_precision, mean_class_accuracy
from trainer.losses import LossConfig, share_of_mean
from trainer.stream import Batch
from trainer.tasks.base import Reader, Task, TaskConfig
from trainer.tasks.heads import Head
from trainer.tasks.prompts import class_embeddings


class _Labels(Task):
    """spec: {"keys": what a sample's json calls each class, "labels": its phrase, "prompts": …, "head": …}."""

    zero_shot = True

    def __init__(self, model, iterations: dict[str, int], spec: dict):
        super().__init__(model, iterations, spec)
        self.head = Head(model.architecture["embed_dim"], len(spec["labels"]))
        self.index = {key: number for number, key in enumerate(spec["keys"])}

    @torch.no_grad()
    def start(self) -> None:
        if self.spec["head"] == "prompts":
            rows = class_embeddings(self.embed, self.spec["labels"], self.spec["prompts"])
            self.head.start(rows, self.model.logit_scale.exp())

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"scores": self.head(self.video(inputs))}

    def protocol(self) -> str:
        if self.trained:
            how = "fine-tuned"
        else:
            how = f"zero-shot, prompts {self.spec['prompts']}" if self.spec["head"] == "prompts" else "untrained head"
        return f"{how}, {len(self.spec['labels']):,} classes"


class Classification(_Labels):
    """One class a sample: its json's `label_id`, or `label` where the dataset has no numbers."""

    name = "classification"
    headline = "top-1"

    def __init__(self, model, iterations: dict[str, int], spec: dict):
        super().__init__(model, iterations, spec)
        self.fields = self.required = (spec["field"],)

    @classmethod
    def specify(cls, config: TaskConfig, read: Reader) -> dict:
        samples = [sample for sample in read(None, ("label", "label_id")) if sample.get("label") is not None]
        numbered = all(sample.get("label_id") is not None for sample in samples)
        field = "label_id" if numbered else "label"
        classes = {}
        for sample in samples:
            if (label := classes.setdefault(sample[field], sample["label"])) != sample["label"]:
                raise UserError(f"data: the class {sample[field]} is {label!r} and {sample['label']!r}: not one benchmark's")
        keys = sorted(classes)
        _check(cls.name, "label", keys)
        phrases = [classes[key] for key in keys]
        return {"field": field, "keys": keys, "labels": phrases, "prompts": config.prompts, "head": config.head}

    def inputs(self, batch: Batch, draw: tuple | None = None) -> dict[str, Tensor]:
        right = [self.index.get(fields[self.spec["field"]], -1) for fields in batch.fields]
        return {**super().inputs(batch, draw), "right": torch.tensor(right)}

    def losses(self, answers: dict[str, Tensor], inputs: dict[str, Tensor], config: LossConfig) -> dict[str, Tensor]:
        known = inputs["right"] >= 0
        each = F.cross_entropy(answers["scores"].float()[known], inputs["right"][known], reduction="none")
        return {"class": share_of_mean(each)}

    def predictions(self, answers: dict[str, Tensor], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"scores": answers["scores"].float(), "right": inputs["right"]}

    def measure(self, found: dict[str, Tensor]) -> tuple[dict[str, float], dict[str, float]]:
        scores, right = found["scores"], found["right"]
        metrics = accuracy(scores, right) | {"class mean": mean_class_accuracy(scores, right)}
        guess = constant_accuracy(right, scores.shape[1])
        return metrics, guess | {"class mean": 100 / len(right.unique())}


class Multilabel(_Labels):
    """Any number of classes a sample: its json's `labels`, phrases."""

    name = "multilabel"
    fields = required = ("labels",)
    headline = "mAP"

    @classmethod
    def specify(cls, config: TaskConfig, read: Reader) -> dict:
        samples = [sample["labels"] for sample in read(None, cls.fields) if sample.get("labels")]
        if problem := next(filter(None, map(_no_phrases, samples)), None):
            raise UserError(f"task.name: {cls.name}: {problem}")
        keys = sorted({label for labels in samples for label in labels})
        _check(cls.name, "labels", keys)
        return {"keys": keys, "labels": keys, "prompts": config.prompts, "head": config.head}

    def problem(self, fields: dict) -> str | None:
        return _no_phrases(fields["labels"])

    def inputs(self, batch: Batch, draw: tuple | None = None) -> dict[str, Tensor]:
        inputs, right = super().inputs(batch, draw), torch.zeros(len(batch.fields), len(self.index), dtype=torch.bool)
        for row, fields in zip(right, batch.fields, strict=True):
            row[[self.index[label] for label in fields["labels"] if label in self.index]] = True
        return {**inputs, "right": right}

    def losses(self, answers: dict[str, Tensor], inputs: dict[str, Tensor], config: LossConfig) -> dict[str, Tensor]:
        each = F.binary_cross_entropy_with_logits(answers["scores"].float(), inputs["right"].float(), reduction="none")
        return {"labels": share_of_mean(each.sum(dim=1))}

    def predictions(self, answers: dict[str, Tensor], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"scores": answers["scores"].float(), "right": inputs["right"]}

    def measure(self, found: dict[str, Tensor]) -> tuple[dict[str, float], dict[str, float]]:
        constant = torch.zeros_like(found["scores"])
        return (
            {"mAP": mean_average_precision(found["scores"], found["right"])},
            {"mAP": mean_average_precision(constant, found["right"])},
        )


def _no_phrases(labels) -> str | None:
    if not (isinstance(labels, list) and all(isinstance(phrase, str) for phrase in labels)):
        return f"labels is no list of phrases: {labels!r:.80}"


def _check(task: str, field: str, classes: list) -> None:
    if len(classes) < 2:
        raise UserError(f"task.name: {task} needs the field {field} in the samples' json; found {len(classes)} classes")
