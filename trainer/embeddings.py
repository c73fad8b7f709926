"""Embeddings of a dataset's samples: made once by all ranks together, kept on disk, taken from there the next time.

A kept file holds the videos, or the texts of one view, of one granularity of a split. It is named by everything that
its numbers depend on: the model's weights, the dataset's digest, frames, #iter and precision. What a sample was left
out of, because it could not be read, is not kept.
"""

import hashlib
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from shards import format, storage
from shards.errors import UserError
from shards.reader import Dataset
from trainer.data_config import DataConfig
from trainer.stream import Batch, evaluation_batches
from trainer.texts import TextEncoder

logger = logging.getLogger(__name__)

VERSION = 1  # of the files, and of what else in this code their numbers depend on
VIDEO = "video"


@dataclass
class Embedded:
    """The videos of some samples, or the texts of one view: a sample may have several."""

    rows: Tensor  # float32 [N, D], unit length, in the dataset's order
    sample: Tensor  # int64 [N]: number of each row's sample in `sample_ids`
    sample_ids: list[str]


class Embedder:
    """A model and how it is to embed.

    model: has `encode_video`, `encode_text` and `tokenizer`. batch: samples (or texts) of a rank at once. loader: split,
    size and workers. folder: of the kept files; None: nothing is kept.
    """

    def __init__(self, accelerator: Accelerator, model: nn.Module, batch: int, loader: DataConfig, folder: Path | None = None):
        self._accelerator, self._model, self._batch, self._loader = accelerator, model, batch, loader
        self._folder, self._digest = folder, model_digest(model) if folder else None

    def __call__(self, dataset: Dataset, granularity: str, frames: int, iterations: dict[str, int]) -> dict[str, Embedded]:
        """Every sample's embeddings, by the names in `iterations` ("video" and text views, with their #iter); the same
        on all ranks, and all of the same samples: those that have it all. UserError for a split without samples."""
        split = self._loader.split
        wanted = sum(shard.samples for shard in dataset.select(split, granularity))
        paths = {name: self._path(dataset, granularity, name, frames, count) for name, count in iterations.items()}
        kept = {name: found for name, path in paths.items() if (found := self._load(path))}
        missing = {name: count for name, count in iterations.items() if name not in kept}
        if not missing:
            return kept
        made = self._make(dataset, granularity, frames, missing)
        if len(made[next(iter(made))].sample_ids) == wanted:
            for name, found in made.items():
                self._save(paths[name], found)
        elif kept:  # of other samples than those that could be read this time
            return self._make(dataset, granularity, frames, iterations)
        return {name: {**kept, **made}[name] for name in iterations}

    @torch.no_grad()
    def texts(self, texts: list[str], iterations: int) -> Tensor:
        """Embeddings of texts of one sentence each, [N, D], on this process alone."""
        return self._encode_texts([[text] for text in texts], TextEncoder(self._model.tokenizer()), iterations)

    @torch.no_grad()
    def _make(self, dataset: Dataset, granularity: str, frames: int, iterations: dict[str, int]) -> dict[str, Embedded]:
        """Each rank its run of the samples, then all of all."""
        accelerator, model, loader = self._accelerator, self._model, self._loader
        tokenizer = model.tokenizer()
        encoder = TextEncoder(tokenizer)
        views = [name for name in iterations if name != VIDEO]
        shape = granularity, views, frames if VIDEO in iterations else 1, self._batch
        ranks = accelerator.process_index, accelerator.num_processes
        fields = ("captions",) if "caption" in views else ()
        rows, counts, sample_ids = {name: [] for name in iterations}, {name: [] for name in iterations}, []
        for part in evaluation_batches(dataset, loader.split, *shape, *ranks, loader, tokenizer, fields):
            sample_ids += part.sample_ids
            if VIDEO in iterations:
                pixels, mask = part.frames.to(accelerator.device), part.frame_mask.to(accelerator.device)
                with accelerator.autocast():
                    rows[VIDEO].append(model.encode_video(pixels, mask, iterations[VIDEO]).float())
                counts[VIDEO] += [1] * len(part.sample_ids)
            for view in views:
                texts = list(texts_of(part, view))
                flat = [sentences for of_sample in texts for sentences in of_sample]
                rows[view].append(self._encode_texts(flat, encoder, iterations[view]))
                counts[view] += map(len, texts)
        none = torch.zeros(0, model.architecture["embed_dim"], device=accelerator.device)  # a rank may have no sample
        sample_ids = gather_object(sample_ids)
        found = {}
        for name in iterations:
            of_sample = torch.tensor(gather_object(counts[name]), dtype=torch.int64, device=accelerator.device)
            numbers = torch.arange(len(of_sample), device=accelerator.device).repeat_interleave(of_sample)
            every = gather_uneven(accelerator, torch.cat([none, *rows[name]]))
            if not every.isfinite().all():
                raise UserError(
                    f"{dataset.url}: the model's embeddings are no numbers; its weights are damaged, or training diverged"
                )
            found[name] = Embedded(every, numbers, sample_ids)
        return found

    def _encode_texts(self, texts: list[list[str]], encoder: TextEncoder, iterations: int) -> Tensor:
        found = []
        for start in range(0, len(texts), self._batch):
            batch = encoder(texts[start : start + self._batch])
            tokens, mask = batch.tokens.to(self._accelerator.device), batch.mask.to(self._accelerator.device)
            with self._accelerator.autocast():
                found.append(self._model.encode_text(tokens, mask, iterations).float())
        return torch.cat(found)

    def _path(self, dataset: Dataset, granularity: str, name: str, frames: int, iterations: int) -> Path | None:
        if self._folder is None:
            return None
        of_video = {"frames": frames, "size": self._loader.size} if name == VIDEO else {}
        basis = {"version": VERSION, "model": self._digest, "data": dataset.manifest["digest"], "iter": iterations}
        basis |= {"split": self._loader.split, "precision": self._accelerator.mixed_precision, **of_video}
        return self._folder / f"{granularity}-{name}-{format.digest(basis)[:24]}.safetensors"

    def _load(self, path: Path | None) -> Embedded | None:
        """A kept file, if all ranks can read it."""
        found = None
        if path is not None and path.exists():
            try:
                with safe_open(path, "pt", device=str(self._accelerator.device)) as file:
                    sample_ids = json.loads(file.metadata()["sample_ids"])
                    found = Embedded(file.get_tensor("rows"), file.get_tensor("sample"), sample_ids)
            except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
                logger.warning("%s: cannot be read and is made again: %s", path, " ".join(str(error).split()))
        everywhere = self._accelerator.gather(torch.tensor([found is not None], device=self._accelerator.device))
        return found if bool(everywhere.all()) else None

    def _save(self, path: Path | None, found: Embedded) -> None:
        if path is None or not self._accelerator.is_main_process:
            return
        tensors = {"rows": found.rows.cpu().contiguous(), "sample": found.sample.cpu()}
        try:
            storage.write_bytes_atomic(str(path), save(tensors, {"sample_ids": json.dumps(found.sample_ids)}))
        except OSError as error:
            logger.warning("%s: embeddings are not kept: %s", path, error)


def texts_of(batch: Batch, view: str) -> Iterable[list[list[str]]]:
    """Each sample's texts of a view, as sentences: the view's one text, or every caption of a sample with several."""
    for sentences, fields in zip(batch.sentences[view], batch.fields, strict=True):
        captions = fields.get("captions") or []
        yield [[caption] for caption in captions] if view == "caption" and len(captions) > 1 else [sentences]


def gather_uneven(accelerator: Accelerator, rows: Tensor) -> Tensor:
    """[n, ...] of every rank, n its own -> all rows, in rank order."""
    counts = accelerator.gather(torch.tensor([len(rows)], device=rows.device)).tolist()
    padded = accelerator.pad_across_processes(rows, dim=0)
    whole = accelerator.gather(padded).split(max(counts)) if max(counts) else [rows] * len(counts)
    return torch.cat([part[:count] for part, count in zip(whole, counts, strict=True)])


def model_digest(model: nn.Module) -> str:
    """sha256 over a model's weights and what else it was made of."""
    found = hashlib.sha256(json.dumps(getattr(model, "_hub_mixin_config", None), sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()
