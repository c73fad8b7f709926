"""Does the method do what the paper says? One factor at a time, at fixed compute, three seeds each.

    python -m ops.experiments.study --output study

Renders a world (`ops.experiments.world`), expands it by source and at random, trains every arm of the study from scratch
with every seed, and evaluates long and short retrieval on held-out sources. Every step of every stream encodes equally many
frames, so arms of equally many steps cost the same. What is done is kept: the same command goes on where it was stopped.

    OUT/study.md    the table (mean and standard deviation over seeds), the settings, the versions
    OUT/curves.svg  loss of the arms over the steps
    OUT/runs/ARM-SEED/   each run's folder, with its log and retrieval.json
"""

import argparse
import json
import os
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import yaml
from tqdm import tqdm

from ops.demo.chart import curves
from ops.demo.world import write_text
from ops.runs import ON_CPU, claim, launcher, run_once

FRAMES = 288  # encoded by a step of any stream
STREAMS = ("svst", "lv", "it")
LAST, BEGUN = 15, 2.0
LANES = os.cpu_count() or 1  # runs at a time, of one thread each: so small a model gains little from a second

SHORT = {"folder": "short", "texts": ["caption"], "iter": {"video": 1, "caption": 1}, "frames": 4, "batch": FRAMES // 4}
IMAGE = {"folder": "image", "texts": ["caption"], "iter": {"video": 0, "caption": 1}, "frames": 1, "batch": FRAMES}


def long_stream(iterations: int) -> dict:
    counts = {"video": iterations, "long": iterations, "summary": iterations}
    return {"folder": "long", "texts": ["long", "summary"], "iter": counts, "frames": 12, "batch": FRAMES // 12}


# Arm -> (which pairs are its long samples, #iter on long, streams with their weights). The first is the paper's recipe.
ARMS = {
    "by source, #iter 3, image": ("source", 3, {"svst": 1, "lv": 2, "it": 1}),
    "at random": ("random", 3, {"svst": 1, "lv": 2, "it": 1}),
    "short only": ("source", 1, {"svst": 3, "it": 1}),
    "#iter 1 on long": ("source", 1, {"svst": 1, "lv": 2, "it": 1}),
    "#iter 0 on long": ("source", 0, {"svst": 1, "lv": 2, "it": 1}),
    "no image stream": ("source", 3, {"svst": 4 / 3, "lv": 8 / 3}),
}


def slug(arm: str, seed: int) -> str:
    return f"{arm.replace('#', '').replace(',', '').replace(' ', '-')}-{seed}"


def training(arm: str, steps: int) -> dict:
    """The pretraining config of an arm."""
    _, iterations, weights = ARMS[arm]
    streams = {"svst": SHORT, "lv": long_stream(iterations), "it": IMAGE}
    return {
        "model": {"name": "configs/models/tiny.json", "heads": 4},
        "streams": {name: streams[name] | {"weight": weight} for name, weight in weights.items()},
        "loader": {"size": 64, "workers": 1, "crop": "centre"},  # texts say left and right
        "optim": {"lr": 3e-4, "towers_lr": 3e-4, "weight_decay": 0.1, "warmup": steps // 10},
        "checkpoint": {"every_steps": 100, "keep": 1},
        "trackers": [],
        "steps": steps,
    }


def prepare(output: Path, sources: int, val_sources: int, scenes: int) -> None:
    """The world and both of its datasets."""
    world = ["--sources", sources, "--val-sources", val_sources, "--scenes", scenes]
    run_once(output / "world/clips.jsonl", ["-m", "ops.experiments.world", "--output", output / "world", *world])
    for by in ("source", "random"):
        frames = ["--frames.per_clip", 8, "--frames.per_long", 24, "--frames.short_side", 64]
        paths = ["--input.path", output / "world/clips.jsonl", "--output.path", output / by]
        expand = ["-m", "gex_pipeline.expand", *paths, "--integrate.by", by, *frames, "--compress.max_words", 24]
        run_once(output / by / "manifest.json", expand)


def run_arm(output: Path, arm: str, seed: int, steps: int) -> dict:
    """Train and evaluate one arm with one seed; returns its retrieval.json."""
    pairs, iterations, _ = ARMS[arm]
    folder = output / "runs" / slug(arm, seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(training(arm, steps)))
    launch = launcher(ranks=1, threads=1)
    train = ["trainer/pretrain.py", "--config", folder / "config.yaml", "--data", output / pairs]
    run_once(folder / "model/config.json", [*launch, *train, "--output", folder, "--seed", seed], **ON_CPU)
    counts = {"long": long_stream(iterations)["iter"]}
    evaluate = ["trainer/evaluate.py", "--checkpoint", folder / "model", "--data", output / "source", "--task", "retrieval"]
    evaluate += ["--frames", json.dumps({"long": 12}), "--iter", json.dumps(counts), "--output", folder]
    run_once(folder / "retrieval.json", [*launch, *evaluate], **ON_CPU)
    return json.loads((folder / "retrieval.json").read_text())


def recall(report: dict, granularity: str, view: str) -> float:
    """T2V R@1, in per cent."""
    found = (r for r in report["datasets"][0]["results"] if (r["granularity"], r["view"]) == (granularity, view))
    return next(r["metrics"]["R@1"] for r in found if r["direction"] == "text to video")


COLUMNS = {"long, long text": ("long", "long"), "long, summary": ("long", "summary"), "short": ("short", "caption"),
           "image": ("image", "caption")}  # fmt: skip


def table(reports: dict[str, list[dict]]) -> str:
    """Arms and what they reach, mean ± standard deviation over seeds."""
    lines = [f"| T2V R@1 (%) | seeds | {' | '.join(COLUMNS)} |", f"|---|--:|{'--:|' * len(COLUMNS)}"]
    for arm, found in reports.items():
        cells = []
        for column in COLUMNS.values():
            values = [recall(report, *column) for report in found]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        lines.append(f"| {arm} | {len(found)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def learned(output: Path, arms: list[str], seeds: list[int]) -> str:
    """How far the training of each arm came: means over seeds of its last losses, and when it began to tell long texts
    apart, a number a seed."""
    lines = [
        f"| last {LAST} steps of a stream | steps on short | loss on short | on long | on image "
        f"| on long under {BEGUN} from step |"
    ]
    lines.append("|---|--:|--:|--:|--:|---|")
    for arm in arms:
        runs = [_stream_losses(output / "runs" / slug(arm, seed)) for seed in seeds]
        ends = [[statistics.mean(loss for _, loss in run[name][-LAST:]) for run in runs if name in run] for name in STREAMS]
        cells = [f"{statistics.mean(values):.2f}" if values else "" for values in ends]
        begun = ", ".join(str(_begun(run["lv"])) for run in runs if "lv" in run)
        lines.append(f"| {arm} | {len(runs[0]['svst'])} | {' | '.join(cells)} | {begun} |")
    return "\n".join(lines) + "\n"


def _stream_losses(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Stream -> (step, mean loss of its views) of a run."""
    found: dict[str, list[tuple[int, float]]] = {}
    for record in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        found.setdefault(record["stream"], []).append((record["step"], statistics.mean(record["loss"].values())))
    return found


def _begun(losses: list[tuple[int, float]], window: int = 5) -> int | None:
    """The first step at which the mean of so many losses is under BEGUN."""
    means = (
        (losses[i][0], statistics.mean(loss for _, loss in losses[i + 1 - window : i + 1]))
        for i in range(window - 1, len(losses))
    )
    return next((step for step, mean in means if mean < BEGUN), None)


def write(output: Path, reports: dict[str, list[dict]], seeds: list[int], settings: dict) -> None:
    arms = list(reports)
    versions = {name: version(name) for name in ("torch", "open_clip_torch")}
    text = f"{table(reports)}\n{learned(output, arms, seeds)}\n{json.dumps(settings | versions)}\n"
    write_text(output / "study.md", text)
    series = {arm: _losses(output / "runs" / slug(arm, seeds[0])) for arm in arms}
    write_text(output / "curves.svg", picture({name: points for name, points in series.items() if points}))
    print(text)


COLOURS = ("#1b6ca8", "#c8553d", "#4a7c59", "#8e5aa8", "#b8860b", "#555555")


def picture(series: dict[str, list[tuple[int, float]]]) -> str:
    """The loss curves as an SVG file that brings its own style."""
    rules = "text{font:12px sans-serif}.rule{stroke:#ddd}.dots{opacity:.25}polyline{fill:none;stroke-width:2}"
    for i, colour in enumerate(COLOURS):
        rules += f".s{i} polyline{{stroke:{colour}}}.s{i} circle,text.s{i}{{fill:{colour}}}"
    start = '<svg xmlns="http://www.w3.org/2000/svg" '
    return curves(series).replace("<svg ", start, 1).replace(">", f"><style>{rules}</style>", 1)


def _losses(folder: Path) -> list[tuple[int, float]]:
    """(step, loss of the long text) of a run; a run without long samples has none."""
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(r["step"], r["loss"]["long"]) for r in records if "long" in r["loss"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sources", type=int, default=2000)
    parser.add_argument("--val-sources", type=int, default=256)
    parser.add_argument("--scenes", type=int, default=6, help="clips of a source")
    parser.add_argument("--steps", type=int, default=250, help="of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    args = parser.parse_args()
    output = args.output.resolve()
    settings = {name: getattr(args, name) for name in ("sources", "val_sources", "scenes", "steps")}
    claim(output, settings)
    prepare(output, args.sources, args.val_sources, args.scenes)
    reports: dict[str, list[dict]] = {arm: [] for arm in args.arms}
    runs = [(arm, seed) for seed in args.seeds for arm in args.arms]
    with ThreadPoolExecutor(LANES) as lanes:
        found = lanes.map(lambda run: run_arm(output, *run, args.steps), runs)
        for (arm, _), report in zip(runs, tqdm(found, total=len(runs), unit="run", disable=not sys.stderr.isatty())):
            reports[arm].append(report)
    write(output, reports, args.seeds, settings)


if __name__ == "__main__":
    main()
