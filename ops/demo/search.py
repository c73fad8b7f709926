"""Text queries over the held-out samples of a dataset, by a trained model."""

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from shards.reader import Dataset
from trainer.data_config import DataConfig
from trainer.embeddings import Embedder
from trainer.models.gexia import GexiaModel
from trainer.samples import Sample, all_samples
from trainer.tasks import retrieval

BATCH = 64


@dataclass
class Found:
    """One text query."""

    query: str
    best: list[tuple[Sample, float, bool]]  # the k best: sample, cosine, whether the query is its text
    rank: int  # of the sample whose text the query is, from 1


def search(
    model: GexiaModel, dataset: Dataset, granularity: str, view: str, recipe: retrieval.Recipe, queries: int, k: int
) -> list[Found]:
    """Ask for `queries` held-out texts, taken evenly from the split val, among all its videos of a granularity."""
    gallery = list(all_samples(dataset, "val", granularity))
    loader = DataConfig(split="val", size=model.image_tower.size, workers=0)
    embedded = Embedder(Accelerator(), model, BATCH, loader)(dataset, granularity, recipe.frames, recipe.iter)
    texts = embedded[view]
    first = torch.searchsorted(texts.sample, torch.arange(len(gallery)))  # of each sample's texts
    scores = model.similarity(embedded["video"].rows, texts.rows[first]).T
    asked = [len(gallery) * (2 * i + 1) // (2 * queries) for i in range(queries)]
    return [_found(gallery, view, own, scores[own], k) for own in asked]


def _found(gallery: list[Sample], view: str, own: int, scores: Tensor, k: int) -> Found:
    best = scores.topk(min(k, len(gallery)))
    hits = [(gallery[i], score, i == own) for i, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
    return Found(gallery[own].texts[view], hits, rank=1 + int((scores > scores[own]).sum()))
