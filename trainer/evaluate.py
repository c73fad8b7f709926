"""Evaluation of a saved model: `accelerate launch trainer/evaluate.py --checkpoint OUT/model --data DIR --task retrieval`.

Prints a table and writes it as TASK.json and TASK.md to `output`, or with split and data in their names beside the
checkpoint. Exit codes: 0 done; 2 bad config, data or usage.
"""

import contextlib
import json
from pathlib import Path

from accelerate import Accelerator

from shards import format
from shards.errors import UserError
from shards.plain import open_data
from shards.reader import Dataset
from trainer import results
from trainer.annotations import read_fields
from trainer.checkpoint import STREAMS_FILE, make_folder
from trainer.config import EvaluateConfig, check_numbers, run_script
from trainer.data_config import DataConfig
from trainer.embeddings import model_digest
from trainer.models.gexia import GexiaModel
from trainer.tasks import retrieval, task_class
from trainer.tasks.base import Recipe, Task, TaskConfig
from trainer.tasks.saved import create, unpack

# #iter as the paper's (V-T: short 1-1, long 3-3, image 0-1), frames ours; a model says itself what it was trained with.
PAPER = {
    format.SHORT: {"iter": {"video": 1, "caption": 1}, "frames": 8},
    format.LONG: {"iter": {"video": 3, "long": 3, "summary": 3}, "frames": 32},
    format.IMAGE: {"iter": {"video": 0, "caption": 1}, "frames": 1},
}


def evaluate(config: EvaluateConfig) -> None:
    """Evaluate one model on one split; rank 0 prints and writes."""
    check(config)
    accelerator = Accelerator(mixed_precision="bf16" if config.precision == "bf16" else "no")
    model = load_model(config.checkpoint).to(accelerator.device)
    recipes = choose_recipes(config)
    loader = DataConfig(
        split=config.split, size=model.image_tower.size, workers=config.workers, max_failures=config.max_failures
    )
    cache, found = cache_folder(config.cache, config.checkpoint), []
    for url in config.data:
        dataset = open_data(url)
        here = {name: recipe for name, recipe in recipes.items() if dataset.select(config.split, name)}
        if not here:
            raise UserError(f"{url}: no {', '.join(recipes)} samples in the split {config.split}")
        if config.task == "retrieval":
            rows = retrieval.evaluate(accelerator, model, dataset, here, config.batch, loader, cache)
        else:
            task = create_task(config, model, dataset, here)
            rows = task.evaluate(accelerator, dataset, format.SHORT, here[format.SHORT], config.batch, loader, cache)
        found.append({"data": url, "digest": dataset.manifest["digest"], "split": config.split, "results": rows})
    if accelerator.is_main_process:
        write(config, recipes, model_digest(model), found)


def check(config: EvaluateConfig) -> None:
    """Raise UserError for what the types alone allow but an evaluation does not."""
    if not config.checkpoint or not config.data:
        raise UserError(f"{'checkpoint' if config.data else 'data'}: not given")
    check_numbers(config)
    for key, least in (("iter", 0), ("frames", 1)):
        for name, value in getattr(config, key).items():
            if name not in format.GRANULARITIES:
                raise UserError(f"{key}.{name}: no such granularity; there are {', '.join(format.GRANULARITIES)}")
            if min(value.values() if key == "iter" else [value], default=least) < least:
                raise UserError(f"{key}.{name}: {value} is under {least}")
    if config.output is None and not Path(config.checkpoint).is_dir():
        raise UserError(f"output: not given, and the checkpoint {config.checkpoint} is no local folder to write beside")
    if config.output is not None and Path(config.output).is_file():
        raise UserError(f"output: {config.output} is a file, where a folder is wanted")
    if config.output is not None:
        make_folder(Path(config.output))


def create_task(config: EvaluateConfig, model: GexiaModel, dataset: Dataset, recipes: dict[str, Recipe]) -> Task:
    """The task that the model was fine-tuned for, if that is what is asked, otherwise a new one: zero-shot."""
    if format.SHORT not in recipes:
        raise UserError(f"{dataset.url}: {config.task} asks short samples; the split {config.split} has none")
    task, iterations = unpack(config.checkpoint, model), recipes[format.SHORT].iter
    if task is None or task.name != config.task:
        if not task_class(config.task).zero_shot:
            raise UserError(f"task: {config.task} needs a model that trainer/finetune.py trained for it")
        settings = TaskConfig(name=config.task, prompts=config.prompts)
        task = create(settings, model, iterations, lambda split, names: read_fields(dataset, split, format.SHORT, names))
    task.iterations = iterations
    return task.eval()


def cache_folder(cache: str | None, checkpoint: str) -> Path | None:
    """Where embeddings are kept: the chosen folder, else one in the checkpoint's; None for "none" and for a model on
    the hub."""
    if cache is not None:
        return None if cache == "none" else Path(cache)
    return Path(checkpoint) / "embeddings" if Path(checkpoint).is_dir() else None


def load_model(checkpoint: str) -> GexiaModel:
    """A model that `save_pretrained` wrote to a folder, or a model on the hub; UserError if it is neither."""
    try:
        with contextlib.redirect_stdout(None):  # the mixin prints where it loads from
            return GexiaModel.from_pretrained(checkpoint, strict=True)
    except Exception as error:  # the hub, safetensors, json and the model have their own kinds
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"checkpoint: {checkpoint} is no saved model (pretrain.py writes OUT/model): {reason}") from None


def choose_recipes(config: EvaluateConfig) -> dict[str, Recipe]:
    """#iter and frames of each granularity: the config's, else those the model was trained with, else the paper's."""
    trained = {}
    path = Path(config.checkpoint) / STREAMS_FILE
    if path.is_file():
        streams = sorted(json.loads(path.read_text()).values(), key=lambda stream: stream["batch"] * stream["weight"])
        trained = {stream["folder"]: stream for stream in streams}  # of two in one folder: the one that drew more
    recipes = {}
    for name in config.granularities:
        base = PAPER[name] | {key: trained[name][key] for key in ("iter", "frames") if name in trained}
        iterations = base["iter"] | config.iter.get(name, {})
        unknown = iterations.keys() - {"video", *format.TEXT_VIEWS[name]}
        if unknown:
            raise UserError(f"iter.{name}: {name} samples have no {', '.join(sorted(unknown))}")
        recipes[name] = Recipe(iterations, config.frames.get(name, base["frames"]))
    return recipes


def write(config: EvaluateConfig, recipes: dict[str, Recipe], weights: str, found: list[dict]) -> None:
    """Print the tables, and write them beside the checkpoint or to the chosen folder."""
    settings = {name: vars(recipe) for name, recipe in recipes.items()}
    about = f"{results.about(config.checkpoint, weights, settings)} Ties count in expectation over their order."
    tables = "\n".join(
        f"{one['data']} ({one['digest'][:8]}), {one['split']}\n\n{about}\n\n{results.markdown(one['results'])}" for one in found
    )
    print(tables)
    run = {"checkpoint": config.checkpoint, "weights": weights, "precision": config.precision}
    report = {**run, "settings": settings, "datasets": found}
    name = config.task
    if config.output is None:  # evaluations on several datasets lie side by side
        digests = [one["digest"] for one in found]
        name = f"{name}-{config.split}-{(digests[0] if len(digests) == 1 else format.digest(digests))[:8]}"
    results.write(Path(config.output or config.checkpoint), name, report, tables)


if __name__ == "__main__":
    run_script(EvaluateConfig, evaluate)
