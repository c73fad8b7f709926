"""Every task on the rendered world, from annotation files to a table, and what fine-tuning adds.

    python -m ops.experiments.finetune_world --output OUT [--benchmarks coin how2qa] [--seeds 0 1 2]

A small model is pretrained on the captions of one world. Then, for each benchmark of other worlds (ops/demo/benchmarks.py)
in its real layout: `gexia import`, and fine-tuning with the benchmark's own config, scaled down. The table has the model
before (zero-shot, or an untrained head) and after, a line a seed. What is done already is not done again.
"""

import argparse
import contextlib
import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from ops.demo import benchmarks, world

ROOT = Path(__file__).parents[2]
PYTHON = [sys.executable, "-m"]
JOBS, THREADS = os.cpu_count() or 1, 1  # so small a model gains little from a second thread, much from a second run
FRAMES = 4  # of a scene, which has 20
MODEL_STREAM = "{svst: {folder: short, texts: [caption], iter: {video: 1, caption: 1}, frames: 4, batch: 64}}"
# What the configs are scaled down to: the tiny model from scratch on two CPU cores. Without workers, as evaluations are
# many and short.
SMALL = {
    "loader.size": 64, "loader.workers": 0, "loader.crop": "centre", "precision": "fp32", "grad_checkpointing": False,
    "frames": FRAMES, "optim.lr": 5e-4, "optim.towers_lr": 3e-4, "optim.warmup": 10, "trackers": "[]",
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One fine-tuning: its config, which benchmark, and what its own config cannot know."""

    config: str
    benchmark: str
    keys: dict
    variant: str | None = None


RUNS = {
    "msrvtt": Run("msrvtt", "msrvtt", {}),
    "activitynet": Run("activitynet", "activitynet", {"frames": FRAMES * benchmarks.FILM_SCENES}),
    "lsmdc": Run("lsmdc", "lsmdc", {}),
    "coin": Run("coin", "coin", {}),
    "ucf101": Run("coin", "ucf101", {}),
    "lvu_scene": Run("lvu", "lvu", {}, "scene"),
    "lvu_like_ratio": Run("lvu", "lvu", {"task.name": "regression"}, "like_ratio"),
    "charades_ego": Run("charades_ego", "charades_ego", {}),
    "how2qa": Run("how2qa", "how2qa", {}),
    "msvd_qa": Run("msrvtt_qa", "msvd_qa", {"splits.select": "null"}),
}


@dataclass(frozen=True)
class Size:
    clips: int = 400  # videos of one scene
    films: int = 160  # videos of three
    sources: int = 400  # videos of two scenes that the model is pretrained on
    pretrain_steps: int = 300
    steps: int = 200
    batch: int = 32  # of a fine-tuning


def call(*command) -> None:
    """Run a module; its output is shown only if it fails."""
    command = [*PYTHON, *map(str, command)]
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout}\nfailed: {shlex.join(command)}")


def flags(keys: dict) -> list[str]:
    return [part for key, value in keys.items() for part in (f"--{key}", str(value))]


def pretrained(output: Path, size: Size) -> Path:
    """The model before any fine-tuning."""
    model = output / "pretrain/model"
    if not model.exists():
        clips = world.build(output / "world", size.sources, scenes=2)
        keys = {"integrate.by": "none", "compress.backend": "none", "output.granularities": "[short]"}
        call("gex_pipeline.expand", *flags({"input.path": clips, "output.path": output / "data", **keys}))
        training = {"data": output / "data", "output": output / "pretrain", "steps": size.pretrain_steps}
        config = ["--config", "configs/pretrain/demo.yaml", "--streams", MODEL_STREAM]
        call("trainer.pretrain", *config, *flags(training), "--optim.warmup", 20, "--trackers", "[]")
    return model


def imported(output: Path, run: Run) -> Path:
    """The benchmark's dataset."""
    layout = benchmarks.BENCHES[run.benchmark]
    data = output / "imported" / f"{run.benchmark}{'_' + run.variant if run.variant else ''}"
    variant = ["--variant", run.variant] if run.variant else []
    places = {"annotations": output / run.benchmark, "videos": output / layout.videos / "videos", "output": data}
    frames = {"frames.per_clip": run.keys.get("frames", FRAMES)}
    if not (data / "manifest.json").exists():
        call("gexia", "import", run.benchmark, *variant, *flags({**places, **frames}))
    return data


def finetuned(output: Path, name: str, seed: int, size: Size) -> dict:
    """What a fine-tuning found (its results.json). In this process: to start one takes longer than to evaluate."""
    import torch

    from trainer.config import parse
    from trainer.finetune import FinetuneConfig, finetune

    run, folder = RUNS[name], output / "finetune" / f"{name}-{seed}"
    if not (folder / "results.json").exists():
        keys = SMALL | run.keys | {"steps": size.steps, "select_every": max(1, size.steps // 4), "batch": size.batch}
        places = {"data": imported(output, run), "checkpoint": pretrained(output, size), "output": folder}
        config = ["--config", str(ROOT / f"configs/finetune/{run.config}.yaml")]
        folder.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(THREADS)
        with (folder / "log.txt").open("a") as log, contextlib.redirect_stdout(log):
            finetune(parse(FinetuneConfig, [*config, *flags({**places, **keys, "seed": seed})]))
    return json.loads((folder / "results.json").read_text())


def rows(name: str, found: dict) -> list[dict]:
    """Each measure of the headline metric: before, after and by chance, with the seed."""
    metric = found["chosen"]["metric"]
    pairs = zip(found["datasets"][0]["before"], found["datasets"][0]["results"], strict=True)
    return [
        {
            "benchmark": name,
            "what": f"{after.get('direction', found['task'])}, {metric}",
            "seed": found["seed"],
            **{k: v["metrics"][metric] for k, v in (("before", before), ("after", after))},
            "chance": after["chance"][metric],
            "n": after["n"],
        }
        for before, after in pairs
    ]


def table(found: list[dict]) -> str:
    lines = ["| benchmark | what | n | seed | chance | before | after |", "|---|---|--:|--:|--:|--:|--:|"]
    for row in found:
        digits = 3 if row["what"].endswith("MSE") else 1
        values = " | ".join(f"{row[key]:.{digits}f}" for key in ("chance", "before", "after"))
        lines.append(f"| {row['benchmark']} | {row['what']} | {row['n']} | {row['seed']} | {values} |")
    return "\n".join(lines)


def experiment(output: Path, names: list[str], seeds: list[int], size: Size) -> list[dict]:
    """Everything; returns the table's rows."""
    benchmarks.build(output, size.clips, size.films)
    with ProcessPoolExecutor(JOBS, get_context("spawn")) as pool:
        first = [pool.submit(pretrained, output, size)]
        first += [pool.submit(imported, output, RUNS[name]) for name in names]
        for job in first:
            job.result()
        jobs = [(name, pool.submit(finetuned, output, name, seed, size)) for name in names for seed in seeds]
        found = [row for name, job in jobs for row in rows(name, job.result())]
    (output / "table.json").write_text(json.dumps(found, indent=1))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tune on every benchmark of the rendered world.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--benchmarks", nargs="*", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=Size.steps, help="of each fine-tuning")
    args = parser.parse_args()
    print(table(experiment(args.output.resolve(), args.benchmarks, args.seeds, Size(steps=args.steps))))


if __name__ == "__main__":
    main()
