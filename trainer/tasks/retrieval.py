"""Text-to-video and video-to-text retrieval among all samples of a split, spread over ranks."""

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from shards.reader import Dataset
from trainer import results
from trainer.data_config import DataConfig
from trainer.metrics import Places, chance_metrics, places, retrieval_metrics
from trainer.stream import evaluation_batches
from trainer.tasks.base import Recipe


def evaluate(
    accelerator: Accelerator,
    model: nn.Module,
    dataset: Dataset,
    recipes: dict[str, Recipe],
    batch: int,
    loader: DataConfig,
) -> list[dict]:
    """One result a granularity, text view and direction; the same list on all ranks.

    A result (see results.py) also has view, direction ("text to video" or "video to text") and candidates.
    """
    found = []
    for granularity, recipe in recipes.items():
        covered = results.coverage(dataset, loader.split, granularity)
        video, texts = encode(accelerator, model, dataset, granularity, recipe, batch, loader)
        for view, text in texts.items():
            for direction, queries, targets in (("text to video", text, video), ("video to text", video, text)):
                found.append(
                    {
                        "task": "retrieval",
                        "granularity": granularity,
                        "protocol": f"{direction}, {view}",
                        "view": view,
                        "direction": direction,
                        "candidates": len(targets),
                        "metrics": retrieval_metrics(shared_places(accelerator, queries, targets)),
                        "chance": chance_metrics(len(targets)),
                        "n": len(queries),
                        **covered,
                    }
                )
    return found


@torch.no_grad()
def encode(
    accelerator: Accelerator,
    model: nn.Module,
    dataset: Dataset,
    granularity: str,
    recipe: Recipe,
    batch: int,
    loader: DataConfig,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Embeddings of all samples of a split, [N, D]: of the videos, and of each text view. Every rank encodes its run
    of the samples and gets all. `model` has `encode_video`, `encode_text` and `tokenizer`."""
    device = accelerator.device
    video, texts = [], {view: [] for view in recipe.views}
    ranks = accelerator.process_index, accelerator.num_processes
    samples = evaluation_batches(
        dataset, loader.split, granularity, recipe.views, recipe.frames, batch, *ranks, loader, model.tokenizer()
    )
    for part in samples:
        with accelerator.autocast():
            frames, mask = part.frames.to(device), part.frame_mask.to(device)
            video.append(model.encode_video(frames, mask, recipe.iter["video"]).float())
            for view, text in part.texts.items():
                tokens, mask = text.tokens.to(device), text.mask.to(device)
                texts[view].append(model.encode_text(tokens, mask, recipe.iter[view]).float())
    width = model.architecture["embed_dim"]
    none = torch.zeros(0, width, device=device)  # a rank may have no sample at all
    return (
        gather_uneven(accelerator, torch.cat([none, *video])),
        {view: gather_uneven(accelerator, torch.cat([none, *found])) for view, found in texts.items()},
    )


def shared_places(accelerator: Accelerator, queries: Tensor, targets: Tensor) -> Places:
    """`metrics.places` of query i for target i, each rank doing its part of the queries; all get the whole."""
    right = torch.arange(len(queries), device=queries.device)
    mine = slice(accelerator.process_index, None, accelerator.num_processes)
    found = places(queries[mine], targets, right[mine])
    higher, tied = (gather_uneven(accelerator, values) for values in (found.higher, found.tied))
    return Places(higher, tied)


def gather_uneven(accelerator: Accelerator, rows: Tensor) -> Tensor:
    """[n, ...] of every rank, n its own -> all rows, in rank order."""
    counts = accelerator.gather(torch.tensor([len(rows)], device=rows.device)).tolist()
    padded = accelerator.pad_across_processes(rows, dim=0)
    whole = accelerator.gather(padded).split(max(counts)) if max(counts) else [rows] * len(counts)
    return torch.cat([part[:count] for part, count in zip(whole, counts, strict=True)])
