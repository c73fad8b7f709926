"""Text-to-video and video-to-text retrieval among all samples of a split, spread over ranks."""

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from shards.errors import UserError
from shards.reader import Dataset
from trainer import results
from trainer.data_config import DataConfig
from trainer.embeddings import VIDEO, Embedded, Embedder
from trainer.metrics import chance_metrics, places, retrieval_metrics
from trainer.tasks.base import Recipe

# Where videos have several captions.
SEVERAL = {"text to video": "each of several a query", "video to text": "the first of several counts"}


def evaluate(
    accelerator: Accelerator,
    model: nn.Module,
    dataset: Dataset,
    recipes: dict[str, Recipe],
    batch: int,
    loader: DataConfig,
    folder: Path | None = None,
) -> list[dict]:
    """One result a granularity, text view and direction; the same list on all ranks.

    A result (see results.py) also has view, direction ("text to video" or "video to text") and candidates. Where videos
    have several captions each is a query of its own, and a video's answer is the one of its own that stands first.
    `folder` keeps the embeddings.
    """
    embed, found = Embedder(accelerator, model, batch, loader, folder), []
    for granularity, recipe in recipes.items():
        embedded = embed(dataset, granularity, recipe.frames, recipe.iter)
        videos = embedded.pop(VIDEO)
        if not videos.sample_ids:
            raise UserError(f"{dataset.url}: no {granularity} sample of the split {loader.split} has both a video and texts")
        covered = results.coverage(dataset, loader.split, granularity, videos.sample_ids)
        for view, texts in embedded.items():
            common = {"task": "retrieval", "granularity": granularity, "view": view}
            found += [{**common, **each, **covered} for each in both_ways(accelerator, videos, texts, view)]
    return found


def both_ways(accelerator: Accelerator, videos: Embedded, texts: Embedded, view: str) -> list[dict]:
    """Text to video and video to text, each rank doing its part of the scores."""
    ranks = accelerator.process_index, accelerator.num_processes
    found = places(videos.rows, texts.rows, texts.sample, *ranks, lambda counts: accelerator.reduce(counts, "sum"))
    right = torch.ones_like(texts.sample), texts.sample.bincount(minlength=len(videos.rows))
    candidates = len(videos.rows), len(texts.rows)
    several = len(texts.rows) > len(videos.rows)
    return [
        {
            "protocol": f"{direction}, {view}" + (f" ({note})" if several else ""),
            "direction": direction,
            "candidates": among,
            "metrics": retrieval_metrics(of_queries),
            "chance": chance_metrics(among, own),
            "n": len(own),
        }
        for (direction, note), among, of_queries, own in zip(SEVERAL.items(), candidates, found, right, strict=True)
    ]
