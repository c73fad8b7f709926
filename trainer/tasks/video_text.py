"""Retrieval as a task: trained by the contrastive loss, measured by `retrieval.evaluate`."""

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from shards.reader import Dataset
from trainer.data_config import DataConfig
from trainer.losses import LossConfig, contrastive_loss
from trainer.order import derive_key
from trainer.stream import Batch
from trainer.tasks import retrieval
from trainer.tasks.base import Recipe, Task


class VideoText(Task):
    """A video and its caption are a pair; of several captions each step takes one."""

    name = "retrieval"
    fields = ("captions",)
    views = ("caption",)
    headline = "R@1"
    zero_shot = True

    def inputs(self, batch: Batch, draw: tuple | None = None) -> dict[str, Tensor]:
        text = self.encoder(
            [
                [_choose(captions, draw, sample_id)] if len(captions := fields["captions"] or []) > 1 else sentences
                for sentences, fields, sample_id in zip(batch.sentences["caption"], batch.fields, batch.sample_ids, strict=True)
            ]
        )
        return {**super().inputs(batch, draw), "tokens": text.tokens, "mask": text.mask, "text_id": text.text_id}

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        texts = {"caption": (inputs["tokens"], inputs["mask"])}
        out = self.model(inputs["frames"], inputs["frame_mask"], texts, self.iterations, inputs.get("keys"))
        return {"video": out["video"], "text": out["texts"]["caption"], "scale": out["scale"], "bias": out["bias"]}

    def losses(self, answers: dict[str, Tensor], inputs: dict[str, Tensor], config: LossConfig) -> dict[str, Tensor]:
        valid = torch.ones_like(inputs["text_id"], dtype=torch.bool)
        pair = answers["video"], answers["text"], inputs["text_id"], valid
        return {"caption": contrastive_loss(*pair, answers["scale"], answers["bias"], config)}

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
        was_training = self.training
        self.eval()
        found = retrieval.evaluate(accelerator, self.model, dataset, {granularity: recipe}, batch, loader, folder)
        self.train(was_training)
        how = "fine-tuned" if self.trained else "zero-shot"
        return [{**result, "protocol": f"{how}, {result['protocol']}"} for result in found]


def _choose(captions: list[str], draw: tuple | None, sample_id: str) -> str:
    return captions[derive_key(*(draw or ()), "caption", sample_id) % len(captions)]
