"""How experiments and benchmarks run the project's own commands."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from ops.demo import world

ROOT = Path(__file__).parents[1]
ON_CPU = {"ACCELERATE_USE_CPU": "true"}  # environment of trainings that stay off a GPU


def launcher(ranks: int, threads: int | None = None) -> list[str]:
    """Arguments of Python that `accelerate launch` what comes after them, in so many processes; see `environment`.

    threads: of each process; None: the machine's cores, divided.
    """
    threads = threads or max(1, os.cpu_count() // ranks)
    options = ["--num_processes", ranks, "--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no"]
    options += ["--num_cpu_threads_per_process", threads]
    options += ["--multi_gpu", "--main_process_port", 0] if ranks > 1 else []
    return ["-m", "accelerate.commands.accelerate_cli", "launch", *map(str, options)]


def environment(**more: str) -> dict[str, str]:
    # Threads that wait by spinning take the core from those they wait for, wherever anything else runs: on a busy
    # two-core machine a training step took six times as long.
    return {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **more}


def claim(output: Path, settings: dict) -> None:
    """Note what an output folder is made with; SystemExit where it was made with something else."""
    path, text = output / "settings.json", json.dumps(settings, sort_keys=True, indent=1)
    if path.exists() and path.read_text() != text:
        sys.exit(f"error: {output} was made with other settings ({path}); choose another --output")
    output.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def run_once(result: Path, command: list, **more: str) -> None:
    """Run a Python command unless its result is there; SystemExit with the end of its log if it fails.

    The log is beside the folder of the result. more: environment variables.
    """
    if result.exists():
        return
    log = log_of(result.parent)
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with log.open("a") as file:
        command = [sys.executable, *map(str, command)]
        done = subprocess.run(command, cwd=ROOT, env=environment(**more), stdout=file, stderr=file)
        print(f"{time.monotonic() - started:.0f} s", file=file)
    if done.returncode:
        fail(log, done.returncode)


def log_of(folder: Path) -> Path:
    return folder.parent / f"{folder.name}.log"


def fail(log: Path, code: int) -> None:
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    sys.exit(f"{tail}\n\nfailed with exit code {code}; its whole log is {log}")


def kill_all(process: subprocess.Popen) -> None:
    """kill -9 of a process and of all that it started, which may be in sessions of their own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family[1:], timeout=20)
    process.wait()


def expanded_world(folder: Path, sources: int, val_sources: int) -> Path:
    """A rendered world (ops/demo/world.py) of four clips a source as a dataset, `folder`/data, its summaries extractive."""
    clips = world.build(folder / "world", sources, val_sources=val_sources)
    options = ["--input.path", clips, "--compress.backend", "extractive", "--frames.per_long", 16]
    run_once(folder / "data/manifest.json", ["-m", "gex_pipeline.expand", *options, "--output.path", folder / "data"])
    return folder / "data"
