"""Retrieval among held-out samples while a model trains."""

import json
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from shards.errors import UserError
from shards.reader import Dataset
from trainer.config import PretrainConfig
from trainer.loop import drop_after
from trainer.tasks import retrieval

DIRECTIONS = {"text to video": "T2V", "video to text": "V2T"}
FILE = "validation.jsonl"


class Validation:
    """Every stream's granularity with its #iter and frames, over all ranks; the same numbers on any number of them.

    One line a time in RUN/validation.jsonl: step, and the results (see results.py) with their stream and data. Raises
    UserError where no dataset has samples in the split.
    """

    def __init__(self, accelerator: Accelerator, config: PretrainConfig, datasets: list[Dataset]):
        self._accelerator, self._config = accelerator, config
        self._loader = replace(config.loader, split=config.validate_split)
        self._asked = [
            (dataset, name, stream)
            for dataset in datasets
            for name, stream in config.streams.items()
            if dataset.select(config.validate_split, stream.folder)
        ]
        if not self._asked:
            raise UserError(
                f"validate_every: no samples in the split {config.validate_split}; expand with split.val_fraction, name "
                "another validate_split, or set it to 0"
            )
        self._path = Path(config.output) / FILE

    def go_on(self, done: int) -> None:
        """Forget what a killed run found after its last checkpoint, at `done`: it comes again."""
        if self._accelerator.is_main_process:
            drop_after(self._path, done)

    def __call__(self, model: nn.Module, done: int) -> None:
        """Validate after `done` steps, if it is time."""
        config = self._config
        if done % config.validate_every and done != config.steps:
            return
        was_training = model.training
        model.eval()
        found = []
        for dataset, name, stream in self._asked:
            recipe = {stream.folder: retrieval.Recipe(stream.iter, stream.frames)}
            rows = retrieval.evaluate(self._accelerator, model, dataset, recipe, config.validate_batch, self._loader)
            found += [{"stream": name, "data": dataset.url, **row} for row in rows]
        model.train(was_training)
        if self._accelerator.is_main_process:
            with self._path.open("a") as file:
                file.write(json.dumps({"step": done, "results": found}) + "\n")
        self._accelerator.log(_values(found), step=done)
        shown = [f"{_name(row)} {row['metrics']['R@1']:.1f} ({row['chance']['R@1']:.1f})" for row in found]
        self._accelerator.print(f"step {done}/{config.steps} | {config.validate_split} R@1 (chance): {', '.join(shown)}")


def _name(row: dict) -> str:
    return f"{row['stream']}/{row['view']} {DIRECTIONS[row['direction']]}"


def _values(found: list[dict]) -> dict[str, float]:
    """Tracker name -> value; datasets after the first are told apart by number."""
    urls = list(dict.fromkeys(row["data"] for row in found))
    return {
        f"val{urls.index(row['data']) or ''}/{_name(row)} {metric}": value
        for row in found
        for metric, value in row["metrics"].items()
    }
