"""Fine-tuning on a benchmark: `accelerate launch trainer/finetune.py --config … --data DIR --checkpoint MODEL --output DIR`.

The model is chosen on a split that is never the test split, and tested once, at the end; the table also has the model as
it was. Exit codes: 0 done, or stopped by SIGTERM/SIGUSR1 after saving; 1 diverged; 2 bad config, data or usage.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean

from accelerate import Accelerator

from shards.errors import UserError
from shards.format import SHORT
from shards.plain import open_data
from shards.reader import Dataset
from trainer import checkpoint, results
from trainer.annotations import hold_out, read_fields
from trainer.config import run_script
from trainer.data_config import StreamConfig
from trainer.embeddings import model_digest
from trainer.evaluate import load_model
from trainer.finetune_config import FinetuneConfig, SplitConfig, check_finetune, finetune_identity
from trainer.loop import create_accelerator, make_ready, run_steps
from trainer.optim import create_optimizer, steps_to_cpu
from trainer.step import StepResult, seed_step, update
from trainer.stream import Batch, Streams
from trainer.tasks.base import Recipe, Task, to_device
from trainer.tasks.saved import create, pack

BEFORE = "before.json"  # what the model scored as it was
RESULTS = "results"


@dataclass
class Parts:
    """The datasets as training, selection and test see them, with the name of each one's split."""

    whole: list[Dataset]
    train: tuple[list[Dataset], str]
    select: tuple[list[Dataset], str]
    test: tuple[list[Dataset], str]
    about: str  # on what the model is chosen


def finetune(config: FinetuneConfig) -> None:
    """Train from the start or from the newest checkpoint in `output`; test the best, save it to `output`/model."""
    check_finetune(config)
    output = Path(config.output)
    accelerator = create_accelerator(config)
    parts = split(config)
    model = load_model(config.checkpoint)
    make_ready(model, config)
    if config.frames > model.video_iam.positions:
        raise UserError(f"frames: {config.frames} is over the model's positions, {model.video_iam.positions}")
    weights = model_digest(model)
    digests = [dataset.manifest["digest"] for dataset in parts.whole]
    identity = finetune_identity(config, weights, digests)
    newest = checkpoint.claim(output, identity, config.resume, config.allow_changed, accelerator.print)

    seed_step(config.seed, -1, 0)
    model.to(accelerator.device)
    task = create(config.task, model, config.iter, lambda split, names: read(parts, split, names))
    stream = StreamConfig(SHORT, list(task.views), config.iter, config.frames, config.batch, lanes=config.lanes)
    datasets, loader = parts.train[0], replace(config.loader, split=parts.train[1])
    ranks = accelerator.process_index, accelerator.num_processes
    wanted = model.tokenizer(), task.fields, task.required
    with Streams(datasets, {config.task.name: stream}, loader, config.seed, *ranks, *wanted) as streams:
        accelerator.wait_for_everyone()  # all ranks have looked at the folder before it changes
        checkpoint.make_folder(output)
        if accelerator.is_main_process:
            checkpoint.write_identity(output, identity)
        optimizer = create_optimizer(task, config.optim)
        done = checkpoint.load(newest, {"model": task}, optimizer) if newest else 0
        accelerator.print(f"{accelerator.num_processes} processes on {accelerator.device}, from step {done}")
        if not done:
            before = test(config, accelerator, task, parts)
            if accelerator.is_main_process:
                (output / BEFORE).write_text(json.dumps(before))
        task.trained = True
        if done < config.steps and not train(config, accelerator, task.train(), optimizer, streams, parts, done):
            return
    checkpoint.load_best(output, task)
    found = test(config, accelerator, task, parts)
    if accelerator.is_main_process:
        report(config, task, parts, weights, found)
        print(f"saved {checkpoint.export(output, model, {task.name: asdict(stream)}, pack(task))}")


def split(config: FinetuneConfig) -> Parts:
    """The datasets' parts. Raises UserError where one has no samples, or cannot be held out."""
    splits: SplitConfig = config.splits
    whole = [open_data(url) for url in config.data]
    for dataset in whole:
        for name in filter(None, (splits.train, splits.select, splits.test)):
            if not dataset.select(name, SHORT):
                there = ", ".join(sorted({shard.split for shard in dataset.shards})) or "none"
                raise UserError(f"{dataset.url}: no {SHORT} samples in the split {name} (its splits: {there})")
    if splits.select:
        about = f"the split {splits.select}"
        return Parts(whole, (whole, splits.train), (whole, splits.select), (whole, splits.test), about)
    held = [hold_out(dataset, splits.train, splits.held_out) for dataset in whole]
    about = f"{splits.held_out:.0%} of the sources of {splits.train}, held out"
    train, select = ([pair[i] for pair in held] for i in (0, 1))
    return Parts(whole, (train, splits.train), (select, splits.train), (whole, splits.test), about)


def read(parts: Parts, split: str | None, names: tuple[str, ...]) -> list[dict]:
    """Fields of the samples that are trained on ("train"), or of all (None)."""
    datasets, name = parts.train if split == "train" else (parts.whole, None)
    return [fields for dataset in datasets for fields in read_fields(dataset, name, SHORT, names)]


def train(
    config: FinetuneConfig, accelerator: Accelerator, task: Task, optimizer, streams: Streams, parts: Parts, done: int
) -> bool:
    """From step `done` to the end, or until a stop signal; returns whether it reached the end."""
    output = Path(config.output)
    model, optimizer = accelerator.prepare(task, optimizer)
    steps_to_cpu(optimizer)

    def do_step(batch: Batch) -> StepResult:
        seed_step(config.seed, batch.step, accelerator.process_index)
        inputs = to_device(task.inputs(batch, (config.seed, batch.step)), accelerator.device)
        with accelerator.autocast():
            answers = model(inputs)
        losses = task.losses(answers, inputs, config.loss)
        accelerator.backward(sum(losses.values()))
        return update(accelerator, model, optimizer, losses, task.model.logit_scale, config)

    def select(done: int) -> None:
        if done % config.select_every and done != config.steps:
            return
        value = score(config, accelerator, task, parts)
        best = checkpoint.best(output)
        accelerator.wait_for_everyone()  # all ranks have looked before it changes
        is_better = best is None or (value < best[1] if task.lower_is_better else value > best[1])
        accelerator.print(f"step {done}: {task.headline} {value:.3f} on {parts.about}{', the best' if is_better else ''}")
        if is_better and accelerator.is_main_process:
            checkpoint.keep_best(output, done, value, task)

    def save(done: int) -> None:
        checkpoint.save(output, done, {"model": task}, optimizer, config.save.keep, streams.digests)

    return run_steps(accelerator, config, config.save, streams, optimizer, done, do_step, save, select)


def score(config: FinetuneConfig, accelerator: Accelerator, task: Task, parts: Parts) -> float:
    """The task's headline on the part that models are chosen on, a mean over its results."""
    rows = [row for found in evaluate(config, accelerator, task, parts.select) for row in found]
    return mean(row["metrics"][task.headline] for row in rows)


def test(config: FinetuneConfig, accelerator: Accelerator, task: Task, parts: Parts) -> list[list[dict]]:
    """Results on the test split, of each dataset."""
    return evaluate(config, accelerator, task, parts.test)


def evaluate(config: FinetuneConfig, accelerator: Accelerator, task: Task, part: tuple) -> list[list[dict]]:
    """Results of each dataset on one part; the same on all ranks."""
    datasets, name = part
    loader, recipe = replace(config.loader, split=name), Recipe(config.iter, config.frames)
    return [task.evaluate(accelerator, dataset, SHORT, recipe, config.eval_batch, loader) for dataset in datasets]


def report(config: FinetuneConfig, task: Task, parts: Parts, weights: str, found: list[list[dict]]) -> None:
    """Print the tables, the model as it was above the model as it is, and write them."""
    output = Path(config.output)
    before = json.loads((output / BEFORE).read_text())
    step, value = checkpoint.best(output)
    chosen = {"on": parts.about, "metric": task.headline, "value": value, "step": step}
    settings = {SHORT: {"iter": config.iter, "frames": config.frames}}
    about = (
        f"{results.about(config.checkpoint, weights, settings)} Fine-tuned for {task.name}, seed {config.seed}, chosen on "
        f"{parts.about}: step {step} of {config.steps}, {task.headline} {value:.3f}."
    )
    lines, datasets = [], []
    for dataset, first, last in zip(parts.whole, before, found, strict=True):
        entry = {"data": dataset.url, "digest": dataset.manifest["digest"], "split": config.splits.test}
        lines.append(f"{dataset.url} ({entry['digest'][:8]}), {entry['split']}\n\n{about}\n")
        lines.append(results.markdown([*first, *last]))
        datasets.append({**entry, "before": first, "results": last})
    text = "\n".join(lines)
    print(text)
    run = {"checkpoint": config.checkpoint, "weights": weights, "task": task.name, "seed": config.seed}
    whole = {**run, "steps": config.steps, "chosen": chosen, "settings": settings, "datasets": datasets}
    results.write(output, RESULTS, whole, text)


if __name__ == "__main__":
    run_script(FinetuneConfig, finetune)
