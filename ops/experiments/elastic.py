"""A run that is killed twice, and goes on with another number of processes, against the same run left alone.

    python -m ops.experiments.elastic --output elastic

Renders and expands the demo's world, pretrains on it without disturbance with the first seed on two processes and with
every other on one, and once more with the first: kill -9 of all its processes at two steps, the second time it goes on
with one process instead of two. What is done is kept; a killed run that did not end starts again. OUT/elastic.md holds
what this prints.

What must hold: the killed run's steps have the calm run's sample ids; over the five steps after each resume its losses
are within 1e-5 of the calm run's; its recall differs from the calm run's by no more than the calm runs do among
themselves (largest less smallest over the seeds), at each granularity.

Exit codes: 0 all holds; 1 something does not, or a run failed; 2 bad usage.
"""

import argparse
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from ops.demo.world import write_text
from ops.experiments.noted import samples
from ops.runs import ON_CPU, ROOT, claim, environment, expanded_world, fail, kill_all, launcher, log_of, run_once

RANKS = (2, 2, 1)  # processes of the killed run: from its start, after the first kill, after the second
STEPS_AFTER, TOLERANCE = 5, 1e-5
MIN_STEPS = 24  # for two kills with steps to compare behind each


def training(steps: int) -> dict:
    """The pretraining config: the demo's, with batches for one thread a process."""
    config = yaml.safe_load((ROOT / "configs/pretrain/demo.yaml").read_text())
    for stream, batch in {"svst": 24, "lv": 8, "it": 64}.items():
        config["streams"][stream]["batch"] = batch
    config["optim"]["warmup"] = steps // 10
    return config | {
        "steps": steps,
        "trackers": [],
        "log_every": 10,
        "checkpoint": {"every_steps": max(steps // 20, 2), "keep": 1},
    }


def command(output: Path, data: Path, ranks: int, seed: int) -> list:
    train = ["ops/experiments/noted.py", "--config", output.parent / "config.yaml", "--data", data]
    return [*launcher(ranks, threads=1), *train, "--output", output, "--seed", seed]


def calm_run(output: Path, data: Path, ranks: int, seed: int) -> None:
    run_once(output / "model/config.json", command(output, data, ranks, seed), **ON_CPU)


def killed_run(output: Path, data: Path, seed: int, kills: list[int]) -> None:
    """Train with a kill -9 after each step of `kills`, unless the run has ended before."""
    if (output / "model/config.json").exists():
        return
    shutil.rmtree(output, ignore_errors=True)
    for file in (log_of(output), Path(f"{output}.samples.jsonl")):
        file.unlink(missing_ok=True)
    for ranks, kill in zip(RANKS, [*kills, None]):
        with log_of(output).open("a") as log:
            train = [sys.executable, *map(str, command(output, data, ranks, seed))]
            process = subprocess.Popen(train, cwd=ROOT, env=environment(**ON_CPU), stdout=log, stderr=log)
        try:
            wait_for_step(output, kill, process)
        finally:
            kill_all(process)


def wait_for_step(output: Path, step: int | None, process: subprocess.Popen) -> None:
    """Until the run has done so many steps, or ended; SystemExit where it ends without having to."""
    metrics = output / "metrics.jsonl"
    while step is None or not (metrics.exists() and metrics.read_bytes().count(b"\n") >= step):
        if process.poll() is not None:
            if step is None and process.returncode == 0:
                return
            fail(log_of(output), process.returncode)
        time.sleep(0.1)


def losses(output: Path) -> dict[int, dict[str, float]]:
    """Losses by view of each step done (from 1)."""
    records = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return {record["step"]: record["loss"] for record in records}


def recalls(output: Path, data: Path) -> dict[str, float]:
    """R@1 (%) of each granularity on the held-out sources: the mean over its texts and both directions."""
    options = ["--checkpoint", output / "model", "--data", data, "--task", "retrieval", "--output", output]
    run_once(output / "retrieval.json", [*launcher(ranks=1), "trainer/evaluate.py", *options], **ON_CPU)
    found: dict[str, list[float]] = {}
    for result in json.loads((output / "retrieval.json").read_text())["datasets"][0]["results"]:
        found.setdefault(result["granularity"], []).append(result["metrics"]["R@1"])
    return {granularity: statistics.mean(values) for granularity, values in found.items()}


def resumes(output: Path) -> list[tuple[int, int]]:
    """(processes, steps done before) of each start, as the killed run's log tells."""
    log = log_of(output).read_text()
    return [(int(ranks), int(step)) for ranks, step in re.findall(r"(\d+) processes on \S+, from step (\d+)", log)]


def difference(killed: dict, calm: dict, done: int) -> float:
    """The largest difference between losses of the steps after a resume at `done`."""
    steps = sorted(calm)[done : done + STEPS_AFTER]
    return max(abs(killed[step][view] - loss) for step in steps for view, loss in calm[step].items())


def compare(output: Path, data: Path, seeds: list[int], kills: list[int]) -> tuple[str, bool]:
    """What is to be said of the runs, and whether all that must hold holds."""
    killed, calm = output / "killed", output / f"calm-{seeds[0]}"
    expected, seen = samples(calm), samples(killed)
    same = seen == expected and len(expected) == len(losses(calm))
    starts = resumes(killed)
    differences = [difference(losses(killed), losses(calm), done) for _, done in starts[1:]]
    went_on = [ranks for ranks, _ in starts] == list(RANKS)
    lines = [f"Sample ids of {len(expected)} steps: {'the same' if same else 'NOT the same'}.\n"]
    lines += [
        "| killed after step | resumed from | processes | largest difference of a loss over the next 5 steps |",
        "|--:|--:|--:|--:|",
    ]
    lines += [f"| {k} | {done} | {n} | {d:.1e} |" for k, (n, done), d in zip(kills, starts[1:], differences)]
    runs = {f"calm, seed {seed}": recalls(output / f"calm-{seed}", data) for seed in seeds}
    ended = recalls(killed, data)
    names = list(ended)
    lines += ["", f"| R@1 (%) | {' | '.join(names)} |", f"|---|{'--:|' * len(names)}"]
    runs[f"killed, seed {seeds[0]}"] = ended
    lines += [f"| {run} | {' | '.join(f'{values[name]:.1f}' for name in names)} |" for run, values in runs.items()]
    close = all(within_spread(name, list(runs.values())) for name in names)
    verdicts = {"restarts": went_on, "sample ids": same, "losses": max(differences, default=1) <= TOLERANCE, "recall": close}
    lines += ["", ", ".join(f"{what}: {'holds' if holds else 'DOES NOT HOLD'}" for what, holds in verdicts.items())]
    return "\n".join(lines) + "\n", all(verdicts.values())


def within_spread(name: str, runs: list[dict[str, float]]) -> bool:
    """runs: the calm ones, of which the first has the killed run's seed, and last the killed one."""
    *calm, killed = (run[name] for run in runs)
    return abs(killed - calm[0]) <= max(calm) - min(calm)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sources", type=int, default=176)
    parser.add_argument("--val-sources", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    if args.steps < MIN_STEPS:
        parser.error(f"--steps: at least {MIN_STEPS}")
    output = args.output.resolve()
    claim(output, {name: getattr(args, name) for name in ("sources", "val_sources", "steps")})
    data = expanded_world(output, args.sources, args.val_sources)
    write_text(output / "config.yaml", yaml.safe_dump(training(args.steps)))
    calm_run(output / f"calm-{args.seeds[0]}", data, RANKS[0], args.seeds[0])
    with ThreadPoolExecutor(os.cpu_count()) as lanes:  # the others only say how far seeds lie apart
        list(lanes.map(lambda seed: calm_run(output / f"calm-{seed}", data, 1, seed), args.seeds[1:]))
    moment = random.Random(args.steps)
    kills = [int(args.steps * moment.uniform(*share)) for share in ((0.2, 0.45), (0.55, 0.8))]
    killed_run(output / "killed", data, args.seeds[0], kills)
    text, holds = compare(output, data, args.seeds, kills)
    write_text(output / "elastic.md", text)
    print(text, end="")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
