"""The whole way through the system on a rendered world: what `make demo` runs.

    python -m ops.demo.run --output demo [--small]

Five stages, each by the command a person would type, each with its log in OUT/logs. A stage that was done before
with the same settings is skipped; one that was interrupted goes on; one whose settings changed is redone, with all
after it.

Exit codes: 0 done; 1 a stage failed, or the trained model misses a target; 2 bad usage; 130 stopped by Ctrl-C.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from ops.demo import world
from ops.runs import ROOT, environment, launcher
from shards.format import digest

EXPAND_CONFIG, TRAIN_CONFIG = "configs/expand/demo.yaml", "configs/pretrain/demo.yaml"
STAGE_NAMES = ("render", "expand", "train", "evaluate", "page")
REPORT, STAMPS = "report.html", "stages"
LOG_TAIL = 15  # lines of a failed stage's log that are shown


@dataclass(frozen=True)
class Size:
    """How much is rendered and trained."""

    sources: int
    scenes: int
    val_sources: int
    steps: int


FULL = Size(sources=176, scenes=4, val_sources=64, steps=300)
SMALL = Size(sources=36, scenes=3, val_sources=8, steps=12)

# What the full demo promises, for text-to-video retrieval on held-out sources.
MIN_SAMPLES = {"short": 200, "long": 60}
MIN_TIMES_CHANCE = 8


class StageFailed(Exception):
    """A stage's command failed; the message names its log."""


@dataclass(frozen=True)
class Stage:
    name: str
    about: str
    result: Path  # folder or file that it writes, removed before it is redone
    command: list[str]
    settings: list[str]  # beside the command, what its result depends on


def stages(output: Path, size: Size) -> list[Stage]:
    """The demo's stages, in order."""
    data, train, results = output / "data", output / "train", output / "results"
    python = [sys.executable, "-m"]
    launch = [sys.executable, *launcher(ranks=1)]
    world_size = ["--sources", size.sources, "--scenes", size.scenes, "--val-sources", size.val_sources]
    catalog = ["--input.path", output / "world/clips.jsonl", "--output.path", data]
    training = ["--data", data, "--output", train, "--steps", size.steps]
    trained = ["--checkpoint", train / "model", "--data", data, "--task", "retrieval", "--output", results]
    commands = [
        (f"{size.sources} videos of {size.scenes} scenes, with exact captions", output / "world",
         [*python, "ops.demo.world", "--output", output / "world", *world_size]),
        ("captioned clips to short, long and image samples, summaries by SmolLM2", data,
         [*python, "gex_pipeline.expand", "--config", EXPAND_CONFIG, *catalog]),
        (f"{size.steps} steps from scratch on the CPU", train,
         [*launch, "trainer/pretrain.py", "--config", TRAIN_CONFIG, *training]),
        ("retrieval among the held-out sources", results,
         [*launch, "trainer/evaluate.py", *trained]),
        ("samples, curves and searches as one page", output / REPORT,
         [*python, "ops.demo.page", output]),
    ]  # fmt: skip
    return [_stage(name, *parts) for name, parts in zip(STAGE_NAMES, commands, strict=True)]


def _stage(name: str, about: str, result: Path, command: list) -> Stage:
    command = [str(part) for part in command]
    files = [file for part in command if part.endswith(".yaml") for file in sorted((ROOT / part).parent.glob("demo*"))]
    return Stage(name, about, result, command, [file.read_text() for file in files])


def run(plan: list[Stage], output: Path) -> None:
    """Run what is not done yet. Raises StageFailed."""
    for name in ("logs", STAMPS):
        (output / name).mkdir(parents=True, exist_ok=True)
    identity = ""
    for number, stage in enumerate(plan, start=1):
        identity = digest([identity, stage.command, stage.settings])  # what came before is part of what a stage is
        _run_stage(stage, f"[{number}/{len(plan)}] {stage.name:<8}", identity, output)


def _run_stage(stage: Stage, title: str, identity: str, output: Path) -> None:
    path, log = output / STAMPS / f"{stage.name}.json", output / "logs" / f"{stage.name}.log"
    stamp = json.loads(path.read_text()) if path.exists() else {}
    if stamp.get("identity") != identity:
        _remove(stage.result)
        log.unlink(missing_ok=True)
        stamp = {"identity": identity, "seconds": 0.0, "done": False}
        world.write_text(path, json.dumps(stamp))
    if stamp["done"] and stage.result.exists():
        print(f"{title} done before, in {stamp['seconds']:.0f} s", flush=True)
        return
    print(f"{title} {stage.about} …", flush=True)
    started = time.monotonic()
    try:
        _call(stage, log)
        stamp["done"] = True
    finally:
        stamp["seconds"] += time.monotonic() - started
        world.write_text(path, json.dumps(stamp))
    print(f"{title} done in {stamp['seconds']:.0f} s", flush=True)


def _remove(result: Path) -> None:
    if result.is_dir():
        shutil.rmtree(result)
    else:
        result.unlink(missing_ok=True)


def _call(stage: Stage, log: Path) -> None:
    with log.open("a") as file:
        print(f"$ {shlex.join(stage.command)}", file=file, flush=True)
        done = subprocess.run(stage.command, cwd=ROOT, env=environment(), stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL:])
        raise StageFailed(f"{tail}\n\n{stage.name} failed with exit code {done.returncode}; its whole log is {log}")


def seconds(output: Path) -> dict[str, float]:
    """Finished stage -> how long it took, over all runs that worked on it; in order."""
    paths = {name: output / STAMPS / f"{name}.json" for name in STAGE_NAMES}
    stamps = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
    return {name: stamp["seconds"] for name, stamp in stamps.items() if stamp["done"]}


def summary(output: Path) -> str:
    """What the demo came to: the retrieval table, the time, the page."""
    times = seconds(output)
    spent = ", ".join(f"{name} {value:.0f} s" for name, value in times.items())
    table = (output / "results/retrieval.md").read_text()
    return f"\n{table}\n{spent}; {sum(times.values()) / 60:.1f} minutes in all\n{output / REPORT}"


def misses(results: list[dict]) -> list[str]:
    """Where text-to-video retrieval among held-out sources stays under what the demo promises."""
    found = []
    for result in results:
        granularity, what = result["granularity"], f"{result['granularity']} samples by {result['view']}"
        if granularity not in MIN_SAMPLES or result["direction"] != "text to video":
            continue
        if result["candidates"] < MIN_SAMPLES[granularity]:
            found.append(f"{what}: {result['candidates']} held out, {MIN_SAMPLES[granularity]} promised")
        reached, chance = result["metrics"]["R@1"], result["chance"]["R@1"]
        if reached < MIN_TIMES_CHANCE * chance:
            found.append(f"{what}: R@1 {reached:.2f} %, promised {MIN_TIMES_CHANCE} times chance ({chance:.2f} %)")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Render a small world, expand it, train on it, search it.")
    parser.add_argument("--output", type=Path, required=True, help="folder of everything that the demo makes")
    parser.add_argument("--sources", type=int, default=FULL.sources, help="videos to render")
    parser.add_argument("--steps", type=int, default=FULL.steps, help="training steps")
    parser.add_argument("--small", action="store_true", help="a few minutes less: shows that all parts run, no more")
    args = parser.parse_args()
    if args.sources <= FULL.val_sources or args.steps < 1:
        parser.error(f"--sources must be over {FULL.val_sources}, which are held out, and --steps positive")
    output = args.output.resolve()
    try:
        size = SMALL if args.small else replace(FULL, sources=args.sources, steps=args.steps)
        run(stages(output, size), output)
    except StageFailed as error:
        print(f"{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(summary(output))
    results = json.loads((output / "results/retrieval.json").read_text())["datasets"][0]["results"]
    missed = [] if args.small else misses(results)
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
