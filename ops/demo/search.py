"""Text queries over the held-out samples of a dataset, by a trained model."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from accelerate import Accelerator
from torch import Tensor

from shards.format import TEXT_VIEWS
from shards.reader import Dataset
from trainer.data_config import DataConfig
from trainer.embeddings import Embedder
from trainer.models.gexia import GexiaModel
from trainer.tasks import retrieval

BATCH = 64


@dataclass
class Sample:
    """A stored sample as a page shows it."""

    fields: dict  # its json
    texts: dict[str, str]  # view -> text
    frames: list[bytes]  # JPEG


@dataclass
class Found:
    """One text query."""

    query: str
    best: list[tuple[Sample, float, bool]]  # the k best: sample, cosine, whether the query is its text
    rank: int  # of the sample whose text the query is, from 1


def samples(dataset: Dataset, split: str, granularity: str) -> Iterator[Sample]:
    """All samples of a split and granularity, in order."""
    for shard in dataset.select(split, granularity):
        for line in dataset.sidecar(shard).to_pylist():
            if line["status"] == "ok":
                yield _sample(dataset.read_sample(shard, line), granularity)


def _sample(members: dict, granularity: str) -> Sample:
    texts = {view: bytes(members[name]).decode() for view, name in TEXT_VIEWS[granularity].items()}
    frames = [bytes(data) for name, data in members.items() if name.endswith("jpg")]
    return Sample(json.loads(bytes(members["json"])), texts, frames)


def search(
    model: GexiaModel, dataset: Dataset, granularity: str, view: str, recipe: retrieval.Recipe, queries: int, k: int
) -> list[Found]:
    """Ask for `queries` held-out texts, taken evenly from the split val, among all its videos of a granularity."""
    gallery = list(samples(dataset, "val", granularity))
    loader = DataConfig(split="val", size=model.image_tower.size, workers=0)
    embedded = Embedder(Accelerator(), model, BATCH, loader)(dataset, granularity, recipe.frames, recipe.iter)
    scores = model.similarity(embedded["video"].rows, embedded[view].rows).T
    asked = [len(gallery) * (2 * i + 1) // (2 * queries) for i in range(queries)]
    return [_found(gallery, view, own, scores[own], k) for own in asked]


def _found(gallery: list[Sample], view: str, own: int, scores: Tensor, k: int) -> Found:
    best = scores.topk(min(k, len(gallery)))
    hits = [(gallery[i], score, i == own) for i, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
    return Found(gallery[own].texts[view], hits, rank=1 + int((scores > scores[own]).sum()))
