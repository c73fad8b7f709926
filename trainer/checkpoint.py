"""Checkpoints of a run and the claim to its output folder.

    OUT/run.json                           what the order of samples and the model's shape depend on
    OUT/checkpoints/step-00001000/         model.safetensors (and average), optimizer.pt and, last, checkpoint.json
    OUT/model/                             the trained model: save_pretrained's files, and the streams it learned from

Data order and random numbers are functions of (seed, step), so weights, optimiser and the step are the whole state.
A checkpoint is written under a temporary name and renamed; it counts only if checkpoint.json is there and every file
has the size that it lists.
"""

import filecmp
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from shards.errors import UserError

MARKER = "checkpoint.json"
STREAMS_FILE = "streams.json"
BEST = "best.safetensors"


@dataclass
class CheckpointConfig:
    every_steps: int = 1000  # steps between two checkpoints
    every_minutes: float = 30.0  # and at the latest after so long
    keep: int = 3  # the newest; older ones are removed


def claim(
    output: Path, identity: dict, resume: bool, allow_changed: bool = False, say: Callable[[str], None] = print
) -> Path | None:
    """Check that a folder may hold this run; returns the checkpoint to go on from, if any.

    allow_changed: a run with another identity goes on with this one, unless the model differs; `say` tells what changed.
    Raises UserError if the folder holds another run, or this one and `resume` is off.
    """
    if output.is_file():
        raise UserError(f"output: {output} is a file, where a folder is wanted")
    path = output / "run.json"
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_text())
    except ValueError:
        raise UserError(f"output: {path} is not readable; choose another folder") from None
    changed = list(differences(stored, json.loads(json.dumps(identity))))
    fixed = [key for key in changed if key.split(".")[0] == "model"]  # its weights would not fit
    if changed and (fixed or not allow_changed):
        remedy = "choose another folder or set it back" + ("" if fixed else ", or go on with it by --allow_changed true")
        raise UserError(f"output: {output} holds a run with another {', '.join(fixed or changed)}; {remedy}")
    if not resume:
        raise UserError(f"output: {output} holds this run already; remove it, or leave resume on to go on from it")
    if changed:
        say(f"{output} goes on with another {', '.join(changed)}")
    return newest(output)


def make_folder(output: Path) -> None:
    """Make a run's folder; on every rank, so that all end where it cannot be made."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output: {output} cannot be made: {error.strerror}") from None


def write_identity(output: Path, identity: dict) -> None:
    """Claim a folder for a run."""
    _write_whole(output / "run.json", json.dumps(identity, indent=1).encode())


def differences(stored, wanted, key: str = "") -> Iterator[str]:
    """Dotted keys of the places where two JSON values differ."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for name in sorted(stored.keys() | wanted.keys()):
            yield from differences(stored.get(name), wanted.get(name), f"{key}.{name}".strip("."))
    elif stored != wanted:
        yield key


def save(
    output: Path,
    step: int,
    models: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    keep: int,
    digests: list[str] | None = None,
) -> Path:
    """Write the state after `step` steps, whole or not at all, and remove all but the `keep` newest checkpoints.

    `models`: file name -> what is saved as NAME.safetensors ("model", and "average" where there is one). `digests`: of
    the data that it learned from, for the record; `claim` compares those of the run.
    """
    folder = output / "checkpoints"
    final, temporary = folder / f"step-{step:08d}", folder / f".tmp-step-{step:08d}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, model in models.items():
        weights = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
        save_file(weights, temporary / f"{name}.safetensors")
    state = {name: optimizer.state.get(parameter, {}) for name, parameter in _trained(models["model"], optimizer)}
    torch.save(state, temporary / "optimizer.pt")
    sizes = {}
    for path in temporary.iterdir():
        _sync(path)
        sizes[path.name] = path.stat().st_size
    _write_whole(temporary / MARKER, json.dumps({"step": step, "data": digests, "files": sizes}).encode())
    shutil.rmtree(final, ignore_errors=True)
    os.replace(temporary, final)
    _sync(folder)
    for old in _whole(output)[:-keep]:
        shutil.rmtree(old)
    return final


def newest(output: Path) -> Path | None:
    """The newest whole checkpoint of a run."""
    return (_whole(output) or [None])[-1]


def load(path: Path, models: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> int:
    """Restore weights and optimiser from a checkpoint; returns the number of steps done.

    Rates and decay stay as they are now: those of the config, which may have changed since.
    """
    for name, model in models.items():
        if not (path / f"{name}.safetensors").exists():
            raise UserError(f"optim.ema_decay: {path} has no average of the weights; set it back to 0")
        model.load_state_dict(load_file(path / f"{name}.safetensors"))
    stored = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
    names = [name for name, _ in _trained(models["model"], optimizer)]
    if stored.keys() != set(names):
        raise UserError(f"optim: {path} trained other parameters; what is frozen by a rate of 0 cannot change midway")
    state = {number: stored[name] for number, name in enumerate(names) if stored[name]}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return json.loads((path / MARKER).read_text())["step"]


def _trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters in the optimiser's own order, which its rates and decays decide."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [(names[parameter], parameter) for group in optimizer.param_groups for parameter in group["params"]]


def keep_best(output: Path, step: int, value: float, model: nn.Module) -> None:
    """Write the state after `step` steps, which scored `value`, as the run's best, in place of the one before."""
    final, temporary = output / BEST, output / f".tmp-{BEST}"
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, temporary, metadata={"step": str(step), "value": repr(value)})
    _sync(temporary)
    os.replace(temporary, final)


def best(output: Path) -> tuple[int, float] | None:
    """(step, value) of the run's best, if there is one."""
    try:
        with safe_open(output / BEST, framework="pt") as file:
            return int(file.metadata()["step"]), float(file.metadata()["value"])
    except FileNotFoundError:
        return None


def load_best(output: Path, model: nn.Module) -> None:
    """Restore the weights of the run's best."""
    model.load_state_dict(load_file(output / BEST))


def export(output: Path, model: PyTorchModelHubMixin, streams: dict, files: dict[str, bytes]) -> Path:
    """Save the trained model, the streams it learned from and further files to `output`/model, whole or not at all."""
    final, temporary = output / "model", output / ".tmp-model"
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    (temporary / STREAMS_FILE).write_text(json.dumps(streams))
    for name, data in files.items():
        (temporary / name).write_bytes(data)
    if all(
        (final / path.name).is_file() and filecmp.cmp(path, final / path.name, shallow=False) for path in temporary.iterdir()
    ):
        shutil.rmtree(temporary)  # the same model: what evaluations have put beside it stays
        return final
    shutil.rmtree(final, ignore_errors=True)
    os.replace(temporary, final)
    return final


def _whole(output: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path for path in (output / "checkpoints").glob("step-*") if _is_whole(path))


def _is_whole(path: Path) -> bool:
    try:
        sizes = json.loads((path / MARKER).read_text())["files"]
        return all((path / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def _write_whole(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_bytes(data)
    _sync(temporary)
    os.replace(temporary, path)


def _sync(path: Path) -> None:
    """Force a file's bytes, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
