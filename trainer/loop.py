"""The parts of a training loop around its steps: the line that tells of them, the signal that ends it."""

import contextlib
import json
import os
import resource
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    gather_object,
)
from tqdm import tqdm

from shards.errors import UserError
from trainer.checkpoint import CheckpointConfig
from trainer.config import PretrainConfig
from trainer.models.gexia import GexiaModel
from trainer.optim import lr_share, set_lr
from trainer.step import StepResult
from trainer.stream import Batch, Streams


def make_ready(model: GexiaModel, config) -> None:
    """Fit a model to a run's `loader`, `loss` and `grad_checkpointing`. Raises UserError where it does not take them."""
    if config.loader.size != model.image_tower.size:
        raise UserError(f"loader.size: {config.loader.size}, but the model takes {model.image_tower.size}")
    if config.loss.kind == "sigmoid" and model.logit_bias is None:
        raise UserError("loss.kind: sigmoid needs a model with a bias: one whose architecture has init_logit_bias (-10)")
    if config.loss.kind == "infonce" and model.logit_bias is not None:
        model.logit_bias.requires_grad_(False)  # InfoNCE cannot see it
    if config.grad_checkpointing:
        model.set_grad_checkpointing()


def create_accelerator(config: PretrainConfig) -> Accelerator:
    """Processes and device as `accelerate launch` says, precision as the config does. Raises UserError for trackers that
    are not there, and for launchers' plugins that cut up the model, which checkpoints do not know."""
    check_trackers(config.trackers)
    # A step uses the parts that its stream needs: an image at #iter 0 leaves the IAM alone. No buffer ever changes.
    wrapper = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    # Others wait while rank 0 reads the headers of plain tars, or saves; what hangs is ended by the stream's own clocks.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=1))
    accelerator = Accelerator(
        mixed_precision="bf16" if config.precision == "bf16" else "no",
        log_with=config.trackers or None,
        project_config=ProjectConfiguration(config.output, logging_dir=f"{config.output}/logs"),
        kwargs_handlers=[wrapper, patience],
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # whatever the launcher says
    )
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        kind = accelerator.distributed_type.value
        raise UserError(f"accelerate's config asks for {kind}; only plain data parallelism is supported: --multi_gpu")
    one_of_many = "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ
    if one_of_many and "ACCELERATE_USE_CPU" in os.environ:
        print(
            "warning: 1 process; `accelerate launch --cpu` starts one whatever --num_processes says. For N on the CPU: "
            "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N …",
            file=sys.stderr,
        )
    return accelerator


def check_trackers(names: list[str]) -> None:
    """Accelerate passes over a tracker whose package is missing without a word."""
    installed = set(map(str, get_available_trackers()))
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UserError(f"trackers: {name!r} is none; there are {', '.join(LOGGER_TYPE_TO_CLASS)}")
        if name not in installed:
            raise UserError(f"trackers: {name} is not installed; pip install {name.replace('_', '-')}, or leave it out")


def end_diverged(accelerator: Accelerator, output: Path, batch, result: StepResult) -> None:
    """Write which samples of all ranks a step without finite gradients had, say so, and exit with 1."""
    sample_ids = gather_object(batch.sample_ids)
    if accelerator.is_main_process:
        path = output / f"diverged-step-{batch.step:08d}.json"
        found = {"step": batch.step, "stream": batch.stream, "losses": result.losses, "sample_ids": sample_ids}
        path.write_text(json.dumps(found, indent=1))
        message = f"error: step {batch.step} ({batch.stream}): gradients are not finite; its samples are in {path}"
        print(message, file=sys.stderr)
    accelerator.wait_for_everyone()
    sys.exit(1)


def run_steps(
    accelerator: Accelerator,
    config,
    saving: CheckpointConfig,
    streams: Streams,
    optimizer: torch.optim.Optimizer,
    done: int,
    do_step: Callable[[Batch], StepResult],
    save: Callable[[int], None],
    after_step: Callable[[int], None] = lambda done: None,
    peak_flops: float | None = None,
) -> bool:
    """The loop of any training: from step `done` to the end, or until a stop signal; returns whether it reached the end.

    config: a run's, with output, steps, optim, log_every and trackers. save: is told the number of steps done, on rank 0.
    after_step: the same after every step, on all ranks, before that step can be saved. peak_flops: of a device, FLOP/s.
    """
    output = Path(config.output)
    if config.optim.warmup >= config.steps:
        accelerator.print(
            f"warning: optim.warmup {config.optim.warmup} of {config.steps} steps: the rate never reaches its peak"
        )
    with (
        Journal(accelerator, config, done, peak_flops) as journal,
        StopSignal(60 * saving.every_minutes, output / "pid") as stop,
        contextlib.closing(streams.batches(done, config.steps - done)) as batches,
    ):
        for step in range(done, config.steps):
            asked = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - asked

            set_lr(optimizer, lr_share(step, config.optim.warmup, config.steps))
            result = do_step(batch)
            if not result.finite:
                end_diverged(accelerator, output, batch, result)
            rates = [group["lr"] for group in optimizer.param_groups]
            journal.step(batch, result, rates, stop.longest(waited))

            began = time.perf_counter()
            after_step(step + 1)
            journal.leave_out(time.perf_counter() - began)
            stopping, due = stop.agree()
            last = step + 1 == config.steps
            if stopping or due or last or (step + 1) % saving.every_steps == 0:
                if accelerator.is_main_process:
                    save(step + 1)
                accelerator.wait_for_everyone()
                stop.saved()
            if stopping and not last:
                accelerator.print(f"stopped after step {step + 1}; the same command goes on from there")
                return False
    return True


class StopSignal:
    """SIGTERM or SIGUSR1 to any rank, or the clock of rank 0, agreed on by all ranks between two steps.

    As a context it listens, with rank 0's process id in `pid_file`, and gives the signals back at the end.
    """

    def __init__(self, save_seconds: float, pid_file: Path):
        self._stop, self._pid_file = False, pid_file
        self._save_seconds, self._saved = save_seconds, time.monotonic()
        # Not the device's own group: asking through it would wait for the device every step.
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._is_first = self._group is None or dist.get_rank() == 0

    def __enter__(self) -> "StopSignal":
        self._before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGUSR1)}
        if self._is_first:
            self._pid_file.write_text(f"{os.getpid()}\n")
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._is_first:
            self._pid_file.unlink(missing_ok=True)

    def _on_signal(self, *_) -> None:
        self._stop = True

    def agree(self) -> tuple[bool, bool]:
        """(stop, save): whether to end here, and whether it is time for a checkpoint; the same on all ranks."""
        due = time.monotonic() - self._saved > self._save_seconds
        stop, save = self._most([self._stop, due and self._is_first])
        return bool(stop), bool(save)

    def longest(self, waited: float) -> float:
        """The longest that a rank waited for its data, seconds: all wait for that one."""
        return self._most([waited])[0]

    def _most(self, values: list[float]) -> list[float]:
        found = torch.tensor(values, dtype=torch.float64)
        if self._group is not None:
            dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self._group)
        return found.tolist()

    def saved(self) -> None:
        self._saved = time.monotonic()


class Meter:
    """Records of steps (see `Journal.step`) as one."""

    def __init__(self):
        self._values: dict[str, list[float]] = {}  # "loss/stream/view", "R@1/stream/view" -> of each step
        self._sums: Counter[str] = Counter()
        self._memory_gib = 0.0

    def add(self, record: dict) -> None:
        for kind in ("loss", "R@1"):
            for view, value in record[kind].items():
                self._values.setdefault(f"{kind}/{record['stream']}/{view}", []).append(value)
        self._sums.update({key: record[key] for key in ("seconds", "data_wait", "samples", "frames")})
        if "mfu" in record:
            self._sums["mfu"] += record["mfu"] * record["seconds"]
        self._memory_gib = record["memory_gib"]

    def summary(self) -> dict[str, float]:
        """Means of the losses and recalls, samples and frames a second over all ranks, the share of the time spent
        waiting for data, rank 0's peak memory (GiB; of the GPU where there is one), MFU on a known GPU."""
        seconds = self._sums["seconds"]
        found = {name: sum(values) / len(values) for name, values in self._values.items()}
        found |= {f"{what}_per_second": self._sums[what] / seconds for what in ("samples", "frames")}
        found["data_wait_share"] = self._sums["data_wait"] / seconds
        if "mfu" in self._sums:
            found["mfu"] = self._sums["mfu"] / seconds
        return found | {"memory_gib": self._memory_gib}


def peak_memory() -> int:
    """Most bytes that this process has held at once: of its GPU, or without one resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Journal:
    """What a run says of itself: a line every few steps, metrics.jsonl with every step, and the trackers. Rank 0."""

    def __init__(self, accelerator: Accelerator, config: PretrainConfig, start: int, peak_flops: float | None):
        self._accelerator, self._config = accelerator, config
        self._meter, self._start, self._peak_flops = Meter(), start, peak_flops
        self._began = self._since = time.perf_counter()  # the run here; its current step
        if config.trackers:
            trackio = {"name": Path(config.output).resolve().name}
            wandb = trackio | {"dir": f"{config.output}/logs"}
            if accelerator.is_main_process:
                wandb |= {"id": run_id(Path(config.output) / "logs", start), "resume": "allow"}
            accelerator.init_trackers("gexia", init_kwargs={"wandb": wandb, "trackio": trackio})
        if accelerator.is_main_process:
            path = Path(config.output) / "metrics.jsonl"
            drop_after(path, start)
            self._file = path.open("a", buffering=1)
            self._bar = tqdm(total=config.steps, initial=start, unit="step", disable=not sys.stderr.isatty())

    def step(self, batch: Batch, result: StepResult, rates: list[float], waited: float) -> None:
        """Note one step; `waited` seconds for its data."""
        if not self._accelerator.is_main_process:
            return
        state = {"lr": max(rates), "least_lr": min(rates), "grad_norm": result.grad_norm, "scale": result.scale}
        record = {"step": batch.step + 1, "stream": batch.stream, "loss": result.losses, "R@1": result.recalls, **state}
        record |= self._cost(batch, result, waited)
        self._file.write(json.dumps(record) + "\n")
        self._meter.add(record)
        self._bar.update()
        if (batch.step + 1) % self._config.log_every == 0 or batch.step + 1 == self._config.steps:
            self._line(batch.step + 1, {**self._meter.summary(), **state})
            self._meter = Meter()

    def _cost(self, batch: Batch, result: StepResult, waited: float) -> dict[str, float]:
        """What the step took and gave: seconds since the last one, those of them for data, samples and frames of all
        ranks (this one's times their number), this rank's peak memory so far, MFU on a known GPU."""
        now, ranks = time.perf_counter(), self._accelerator.num_processes
        seconds, self._since = now - self._since, now
        found = {"seconds": seconds, "data_wait": waited, "samples": ranks * len(batch.sample_ids)}
        found |= {"frames": ranks * int(batch.frame_mask.sum()), "memory_gib": peak_memory() / 2**30}
        return found | ({"mfu": (result.flops or 0.0) / seconds / self._peak_flops} if self._peak_flops else {})

    def leave_out(self, seconds: float) -> None:
        """Time that went to something else than steps does not count in rates."""
        self._since += seconds

    def _line(self, step: int, values: dict[str, float]) -> None:
        self._accelerator.log(values, step=step)
        done = step - self._start
        eta = int((time.perf_counter() - self._began) / done * (self._config.steps - step))
        losses = [_of_view(name, values) for name in sorted(values) if name.startswith("loss/")]
        mfu = f" | MFU {values['mfu']:.0%}" if "mfu" in values else ""
        tqdm.write(
            f"step {step}/{self._config.steps} | {', '.join(losses)} | {values['samples_per_second']:.0f} samples/s, "
            f"{values['frames_per_second']:.0f} frames/s | data wait {values['data_wait_share']:.0%} | "
            f"{values['memory_gib']:.1f} GiB{mfu} | lr {values['lr']:.2e} | grad {values['grad_norm']:.2f} | "
            f"scale {values['scale']:.1f} | eta {eta // 60}:{eta % 60:02d}"
        )
        sys.stdout.flush()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_) -> None:
        if self._config.trackers:
            self._accelerator.end_training()
        if self._accelerator.is_main_process:
            self._bar.close()
            self._file.close()


def run_id(folder: Path, start: int) -> str:
    """The id that a tracker knows a run by: a new one for a run that begins, its own for one that goes on."""
    path = folder / "run_id"
    if start == 0 or not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(uuid.uuid4().hex)
    return path.read_text()


def _of_view(name: str, values: dict[str, float]) -> str:
    """A loss as the line has it, with the recall of the same stream and view where there is one."""
    view = name.removeprefix("loss/")
    recall = values.get(f"R@1/{view}")
    return f"{view} {values[name]:.3f}" + ("" if recall is None else f" ({recall:.0%})")


def drop_after(path: Path, step: int) -> None:
    """Drop the records of steps that a killed run did after its last checkpoint; they are done again."""
    if path.exists():
        kept = [line for line in path.read_text().splitlines(True) if line.endswith("\n") and json.loads(line)["step"] <= step]
        temporary = path.with_name(f".tmp-{path.name}")
        temporary.write_text("".join(kept))
        os.replace(temporary, path)
