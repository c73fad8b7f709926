"""What the scripts can be told, and how they start and end. Keys are dotted paths of these dataclasses."""

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from math import inf
from typing import Literal

from jsonargparse import ArgumentError, ArgumentParser

from shards.config_help import describe
from shards.errors import UserError
from trainer.checkpoint import CheckpointConfig
from trainer.data_config import DataConfig, StreamConfig
from trainer.losses import LossConfig
from trainer.models.gexia import ModelConfig
from trainer.models.towers import architecture
from trainer.optim import OptimConfig

# Keys of `loader` that change how fast samples come, not which.
SPEED_KEYS = {"workers", "prefetch", "read_seconds", "stall_seconds", "cache_dir", "cache_gb", "max_failures"}


@dataclass
class PretrainConfig:
    """One pretraining run."""

    data: list[str] = field(default_factory=list)  # datasets (folders or URLs), mixed; --data can be repeated
    output: str = ""  # folder of the run
    steps: int = 1000  # of the whole run
    seed: int = 0  # of weights, order and augmentation
    model: ModelConfig = field(default_factory=ModelConfig)
    streams: dict[str, StreamConfig] = field(default_factory=dict)  # a stream's name -> what it draws
    loader: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    precision: Literal["fp32", "bf16"] = "fp32"  # of the arithmetic; weights are fp32
    grad_checkpointing: bool = False  # of the towers: less memory, one more forward pass
    compile: bool = False  # torch.compile of towers and IAMs: minutes at the start, faster steps on a GPU
    grad_cache_chunk: int | None = None  # samples of a rank whose activations are held at once; null: all
    resume: bool = True  # go on from the newest whole checkpoint in `output`
    allow_changed: bool = False  # resume with other data, seed, streams or loader than before; the steps done stay done
    log_every: int = 10  # steps between two lines; metrics.jsonl has every step
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])  # names that accelerate knows
    validate_every: int = 0  # steps between two retrievals among held-out samples, and one at the end; 0: never
    validate_split: str = "val"  # whose samples are held out
    validate_batch: int = 32  # samples embedded at once by a rank


@dataclass
class EvaluateConfig:
    """One evaluation of a saved model."""

    checkpoint: str = ""  # folder that save_pretrained wrote (OUT/model)
    data: list[str] = field(default_factory=list)  # datasets (folders or URLs); --data can be repeated
    # All but retrieval ask the short samples; regression and open_qa need a model that was fine-tuned for them.
    task: Literal["retrieval", "classification", "multilabel", "regression", "multiple_choice", "open_qa"] = "retrieval"
    prompts: Literal["video", "imagenet", "simple"] = "video"  # zero-shot: the paper's, or open_clip's 80 or 7
    output: str | None = None  # folder of TASK.json and TASK.md; null: beside the checkpoint, as TASK-SPLIT-DATA
    cache: str | None = None  # folder of kept embeddings; null: CHECKPOINT/embeddings; "none": nothing is kept
    split: str = "val"  # whose samples are asked
    # Of retrieval: which samples are asked, where the data has them
    granularities: list[Literal["short", "long", "image"]] = field(default_factory=lambda: ["short", "long", "image"])
    iter: dict[str, dict[str, int]] = field(default_factory=dict)  # granularity -> #iter of video and views
    frames: dict[str, int] = field(default_factory=dict)  # granularity -> frames of a sample
    batch: int = 64  # samples encoded at once by a rank
    workers: int = 2  # processes of a rank that read and decode
    max_failures: int = 1000  # samples a rank may leave out, then the evaluation ends
    precision: Literal["fp32", "bf16"] = "fp32"  # of the arithmetic; weights are fp32


# What a number must be, and the keys of which it must; a config need not have them all.
LIMITS = [
    ("at least 1", lambda value: value >= 1, (
        "steps", "batch", "frames", "lanes", "log_every", "select_every", "validate_batch", "eval_batch", "grad_cache_chunk",
        "loss.chunk", "loader.block", "loader.window_mb", "loader.size", "loader.prefetch", "model.latents", "model.heads",
        "model.positions", "checkpoint.every_steps", "checkpoint.keep", "save.every_steps", "save.keep", "task.answers",
        "task.questions",
    )),
    ("0 or more", lambda value: 0 <= value < inf, (
        "validate_every", "workers", "max_failures", "loader.workers", "loader.max_failures", "loader.cache_gb",
        "model.frame_grid", "optim.lr", "optim.towers_lr", "optim.head_lr", "optim.weight_decay", "optim.warmup",
    )),
    ("over 0", lambda value: 0 < value < inf, (
        "weight", "loader.weights", "loss.max_scale", "optim.eps", "optim.layer_decay", "model.mlp_ratio",
        "checkpoint.every_minutes", "save.every_minutes", "loader.read_seconds", "loader.stall_seconds",
    )),
    ("over 0, or .inf for none", lambda value: value > 0, ("optim.clip_norm",)),
    ("at least 0 and under 1", lambda value: 0 <= value < 1, (
        "model.dropout", "model.patch_dropout", "optim.beta1", "optim.beta2", "optim.ema_decay",
    )),
]  # fmt: skip


def check_numbers(config, prefix: str = "") -> None:
    """Raise UserError for a number of a config, by its key, that no run can do with."""
    for must_be, holds, keys in LIMITS:
        for key in keys:
            value = config
            for name in key.split("."):
                value = getattr(value, name, None)
            values = value if isinstance(value, list) else [value]
            if wrong := [one for one in values if isinstance(one, (int, float)) and not holds(one)]:
                raise UserError(f"{prefix}{key}: {wrong[0]} is not {must_be}")


def check_pretrain(config: PretrainConfig) -> None:
    """Raise UserError for what the types alone allow but a run does not."""
    for key in ("data", "output", "streams"):
        if not getattr(config, key):
            raise UserError(f"{key}: not given")
    check_numbers(config)
    for name, stream in config.streams.items():
        check_numbers(stream, f"streams.{name}.")
        wanted = {"video", *stream.texts}
        if stream.iter.keys() != wanted:
            raise UserError(f"streams.{name}.iter: needs exactly the keys {', '.join(sorted(wanted))}")
        if min(stream.iter.values()) < 0:
            raise UserError(f"streams.{name}.iter: negative")
        if stream.frames > config.model.positions:
            raise UserError(f"streams.{name}.frames: {stream.frames} is over model.positions {config.model.positions}")


def run_identity(config: PretrainConfig, digests: list[str]) -> dict:
    """What a resumed run must share with the run it resumes: the order of samples and the shape of the model."""
    loader = {key: value for key, value in asdict(config.loader).items() if key not in SPEED_KEYS}
    streams = {name: asdict(stream) for name, stream in config.streams.items()}
    model = {**asdict(config.model), "architecture": architecture(config.model.name)}
    return {"seed": config.seed, "data": digests, "model": model, "streams": streams, "loader": loader}


def parse(config_class: type, argv: list[str] | None = None):
    """A config from `--config FILE` and `--key value`; UserError names an unknown key or a wrong type."""
    # A repeated --data makes a list; jsonargparse alone would want one JSON list.
    repeated = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    repeated.add_argument("--data", action="append")
    parser = ArgumentParser(exit_on_error=False, description=config_class.__doc__)
    parser.add_argument("--config", action="config", help="YAML file; keys given after it win")
    parser.add_class_arguments(config_class)
    describe(parser, config_class)
    try:
        given, rest = repeated.parse_known_args(argv)
        values = parser.parse_args(rest)
    except (ArgumentError, argparse.ArgumentError) as error:
        raise UserError(" ".join(str(error).split())) from None
    if given.data:
        values.data = given.data
    values = parser.instantiate(values)
    values.pop("config")
    return config_class(**values)


def run_script(config_class: type, job: Callable) -> None:
    """Parse the command line, run `job(config)`, and turn a UserError into one line and exit code 2.

    Ranks share their mistakes, so rank 0 speaks; another rank speaks only if rank 0 has not ended by then.
    """
    rank = int(os.environ.get("RANK", 0))
    try:
        job(parse(config_class))
    except UserError as error:
        if rank:
            time.sleep(5)
        print(f"error: {f'rank {rank}: ' if rank else ''}{error}", file=sys.stderr, flush=True)
        sys.exit(2)
