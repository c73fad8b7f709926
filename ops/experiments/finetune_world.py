"""Every task on the rendered world, from annotation files to a table, and what fine-tuning adds.

    python -m ops.experiments.finetune_world --output OUT [--benchmarks coin how2qa] [--seeds 0 1 2]

A small model is pretrained on the captions of one world. Then, for each benchmark of other worlds (ops/demo/benchmarks.py)
in its real layout: `gexia import`, and fine-tuning with the benchmark's own config, scaled down. The table has the model
before (zero-shot, or an untrained head) and after: mean ± standard deviation over the seeds. What is done already is not
done again.
"""

import argparse
import contextlib
import json
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

from ops.demo import benchmarks, world
from ops.runs import ON_CPU, ROOT, claim, run_once
from shards.errors import UserError

JOBS = os.cpu_count() or 1  # with one thread each: so small a model gains little from a second, much from a second run
ONE_THREAD = {"OMP_NUM_THREADS": "1", **ON_CPU}
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
    "didemo": Run("activitynet", "didemo", {"frames": FRAMES * benchmarks.FILM_SCENES, "splits.select": "val"}),
    "lsmdc": Run("lsmdc", "lsmdc", {}),
    "coin": Run("coin", "coin", {}),
    "ucf101": Run("coin", "ucf101", {}),
    "hmdb51": Run("coin", "hmdb51", {}),
    "lvu_scene": Run("lvu", "lvu", {}, "scene"),
    "lvu_like_ratio": Run("lvu", "lvu", {"task.name": "regression"}, "like_ratio"),
    "charades_ego": Run("charades_ego", "charades_ego", {}),
    "how2qa": Run("how2qa", "how2qa", {}),
    "msvd_qa": Run("msrvtt_qa", "msvd_qa", {"splits.select": "null"}),
}
ZERO_SHOT = {"imagenet": Run("", "imagenet", {"frames": 1})}  # has no training split


@dataclass(frozen=True)
class Size:
    clips: int = 1000  # videos of one scene
    films: int = 300  # videos of three
    sources: int = 800  # videos of two scenes that the model is pretrained on
    pretrain_steps: int = 300
    steps: int = 100
    batch: int = 32  # of a fine-tuning


def flags(keys: dict) -> list[str]:
    return [part for key, value in keys.items() for part in (f"--{key}", str(value))]


def pretrained(output: Path, size: Size) -> Path:
    """The model before any fine-tuning."""
    model, data = output / "pretrain/model", output / "data"
    if not model.exists():
        clips = world.build(output / "world", size.sources, scenes=2)
        keys = {"integrate.by": "none", "compress.backend": "none", "output.granularities": "[short]"}
        expand = ["-m", "gex_pipeline.expand", *flags({"input.path": clips, "output.path": data, **keys})]
        run_once(data / "manifest.json", expand, **ONE_THREAD)
        training = {"data": data, "output": output / "pretrain", "steps": size.pretrain_steps}
        config = ["--config", "configs/pretrain/demo.yaml", "--streams", MODEL_STREAM, "--optim.warmup", 20, "--trackers", "[]"]
        run_once(model / "config.json", ["-m", "trainer.pretrain", *config, *flags(training)], **ONE_THREAD)
    return model


def imported(output: Path, run: Run) -> Path:
    """The benchmark's dataset."""
    layout = benchmarks.BENCHES[run.benchmark]
    data = output / "imported" / f"{run.benchmark}{'_' + run.variant if run.variant else ''}"
    variant = ["--variant", run.variant] if run.variant else []
    places = {"annotations": output / run.benchmark, "videos": output / layout.videos, "output": data}
    frames = {"frames.per_clip": run.keys.get("frames", FRAMES)}
    command = ["-m", "gexia", "import", run.benchmark, *variant, *flags({**places, **frames})]
    run_once(data / "manifest.json", command, **ONE_THREAD)
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
        torch.set_num_threads(1)
        with (folder / "log.txt").open("a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            try:
                finetune(parse(FinetuneConfig, [*config, *flags({**places, **keys, "seed": seed})]))
            except UserError as error:
                raise SystemExit(f"error: {folder}: {error}") from None
    return json.loads((folder / "results.json").read_text())


def evaluated(output: Path, name: str, size: Size) -> list[dict]:
    """The table's rows of a benchmark that is only tested on. In this process."""
    import torch

    from trainer.config import EvaluateConfig, parse
    from trainer.evaluate import evaluate

    folder = output / "evaluate" / name
    if not (folder / "classification.json").exists():
        places = {"data": imported(output, ZERO_SHOT[name]), "checkpoint": pretrained(output, size), "output": folder}
        keys = {"task": "classification", "prompts": "imagenet", "split": "val", "workers": 0, "cache": "none"}
        folder.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(1)
        with (folder / "log.txt").open("a") as log, contextlib.redirect_stdout(log):
            evaluate(parse(EvaluateConfig, flags({**places, **keys, "frames": "{short: 1}"})))
    found = json.loads((folder / "classification.json").read_text())["datasets"][0]["results"]
    return [
        {
            "benchmark": name,
            "what": f"classification, {metric}",
            "before": row["metrics"][metric],
            "chance": row["chance"][metric],
            "n": row["n"],
        }
        for row in found
        for metric in ("top-1", "top-5")
    ]


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
    """A line a measure: before, after and their difference over the seeds."""
    measures: dict[tuple[str, str], list[dict]] = {}
    for row in found:
        measures.setdefault((row["benchmark"], row["what"]), []).append(row)
    lines = ["| benchmark | what | n | seeds | chance | before | after | difference |", "|---|---|--:|--:|--:|--:|--:|--:|"]
    for (benchmark, what), seeds in measures.items():
        digits = 3 if what.endswith("MSE") else 1
        trained = [row | {"difference": row["after"] - row["before"]} for row in seeds if "after" in row]
        values = [spread([row["before"] for row in seeds], digits)]
        values += [spread([row[key] for row in trained], digits) if trained else "" for key in ("after", "difference")]
        count, chance = len(trained) or "", f"{seeds[0]['chance']:.{digits}f}"
        lines.append(f"| {benchmark} | {what} | {seeds[0]['n']} | {count} | {chance} | {' | '.join(values)} |")
    return "\n".join(lines)


def spread(values: list[float], digits: int) -> str:
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def experiment(output: Path, names: list[str], seeds: list[int], size: Size) -> list[dict]:
    """Everything; returns the table's rows."""
    claim(output, asdict(size))
    benchmarks.build(output, size.clips, size.films)
    os.environ.update(ONE_THREAD)  # of the pool's processes too
    with ProcessPoolExecutor(JOBS, get_context("spawn")) as pool:
        first = [pool.submit(pretrained, output, size)]
        first += [pool.submit(imported, output, (RUNS | ZERO_SHOT)[name]) for name in names]
        for job in first:
            job.result()
        jobs = [(name, pool.submit(finetuned, output, name, seed, size)) for name in names if name in RUNS for seed in seeds]
        tested = [pool.submit(evaluated, output, name, size) for name in names if name in ZERO_SHOT]
        found = [row for name, job in jobs for row in rows(name, job.result())]
        found += [row for job in tested for row in job.result()]
    (output / "table.json").write_text(json.dumps(found, indent=1))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tune on every benchmark of the rendered world.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--benchmarks", nargs="*", choices=[*RUNS, *ZERO_SHOT], default=[*RUNS, *ZERO_SHOT])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=Size.steps, help="of each fine-tuning")
    args = parser.parse_args()
    print(table(experiment(args.output.resolve(), args.benchmarks, args.seeds, Size(steps=args.steps))))


if __name__ == "__main__":
    main()
