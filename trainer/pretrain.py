"""Pretraining on multi-grained shards: `accelerate launch trainer/pretrain.py --config … --data DIR --output DIR`.

Exit codes: 0 done, or stopped by SIGTERM/SIGUSR1 after saving; 1 diverged; 2 bad config, data or usage.
"""

from pathlib import Path

from shards.plain import open_data
from trainer import checkpoint
from trainer.config import PretrainConfig, check_pretrain, run_identity, run_script
from trainer.flops import StepFlops
from trainer.loop import create_accelerator, make_ready, run_steps
from trainer.models.gexia import GexiaModel
from trainer.optim import Average, create_optimizer, steps_to_cpu
from trainer.step import StepResult, seed_step, training_step
from trainer.stream import Batch, Streams
from trainer.validation import Validation


def pretrain(config: PretrainConfig) -> None:
    """Train a model, from the start or from the newest checkpoint in `output`, and save it to `output`/model."""
    check_pretrain(config)
    output = Path(config.output)
    accelerator = create_accelerator(config)
    with accelerator.main_process_first():  # tars without a manifest are scanned by one rank
        datasets = [open_data(url) for url in config.data]
    validate = Validation(accelerator, config, datasets) if config.validate_every else None
    identity = run_identity(config, [dataset.manifest["digest"] for dataset in datasets])
    newest = checkpoint.claim(output, identity, config.resume, config.allow_changed, accelerator.print)

    seed_step(config.seed, -1, 0)
    model = create_model(config)
    ranks = accelerator.process_index, accelerator.num_processes
    with Streams(datasets, config.streams, config.loader, config.seed, *ranks, model.tokenizer()) as streams:
        accelerator.wait_for_everyone()  # all ranks have looked at the folder before it changes
        checkpoint.make_folder(output)
        if accelerator.is_main_process:
            checkpoint.write_identity(output, identity)
        optimizer = create_optimizer(model, config.optim, config.model.tower_inits())
        average = Average(model, config.optim.ema_decay) if config.optim.ema_decay else None
        done = checkpoint.load(newest, weights(model, average), optimizer) if newest else 0
        accelerator.print(f"{accelerator.num_processes} processes on {accelerator.device}, from step {done}")
        if validate:
            validate.go_on(done)
        parts = model, average, optimizer, streams, validate
        finished = done >= config.steps or train(config, accelerator, *parts, done)
    if finished and accelerator.is_main_process:
        print(f"saved {checkpoint.export(output, average.model if average else model, identity['streams'], {})}")


def create_model(config: PretrainConfig) -> GexiaModel:
    """The run's model, fit to its loss and its frames."""
    model = GexiaModel.create(config.model)
    make_ready(model, config)
    return model


def weights(model: GexiaModel, average: Average | None) -> dict[str, GexiaModel]:
    """What a checkpoint keeps the weights of, by file name."""
    return {"model": model} | ({"average": average.model} if average else {})


def train(
    config: PretrainConfig,
    accelerator,
    model: GexiaModel,
    average: Average | None,
    optimizer,
    streams: Streams,
    validate: Validation | None,
    done: int,
) -> bool:
    """From step `done` to the end, or until a stop signal; returns whether it reached the end."""
    plain_model = model.train()
    if config.compile:
        model.compile_parts()
    if average:
        average.model.to(accelerator.device)
    model, optimizer = accelerator.prepare(model, optimizer)
    steps_to_cpu(optimizer)
    flops = StepFlops(accelerator, plain_model)

    def do_step(batch: Batch) -> StepResult:
        result = training_step(accelerator, model, optimizer, batch, config.streams[batch.stream], config, flops)
        if average and result.finite:
            average.update(plain_model, batch.step)
        return result

    def save(done: int) -> None:
        state = weights(plain_model, average), optimizer
        checkpoint.save(Path(config.output), done, *state, config.checkpoint.keep, streams.digests)

    def after_step(done: int) -> None:
        if validate:
            validate(average.model if average else plain_model, done)

    run = accelerator, config, config.checkpoint, streams, optimizer, done, do_step, save, after_step
    return run_steps(*run, peak_flops=flops.peak)


if __name__ == "__main__":
    run_script(PretrainConfig, pretrain)
