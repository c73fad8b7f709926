"""Real launches of trainer/pretrain.py and trainer/evaluate.py on the CPU: any number of ranks, any interruption."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from make_dataset import make_dataset

from ops.runs import ON_CPU, environment, kill_all, launcher
from trainer import evaluate
from trainer.config import EvaluateConfig, parse

ROOT = Path(__file__).parents[2]
ARCH = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
CONFIG = {
    "streams": {
        "svst": {"folder": "short", "texts": ["caption"], "iter": {"video": 1, "caption": 1}, "frames": 3, "batch": 8},
        "lv": {
            "folder": "long",
            "texts": ["long", "summary"],
            "iter": {"video": 3, "long": 2, "summary": 1},
            "frames": 6,
            "batch": 4,
        },
        "it": {"folder": "image", "texts": ["caption"], "iter": {"video": 0, "caption": 1}, "frames": 1, "batch": 8},
    },
    "loader": {"size": 32, "workers": 1},
    "optim": {"lr": 1e-3, "towers_lr": 3e-4, "warmup": 4},
    "checkpoint": {"every_steps": 5, "keep": 2},
    "log_every": 5,
    "trackers": [],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a dataset (`data`), an architecture and a config (`config.yaml`), dropout off."""
    home = tmp_path_factory.mktemp("pretrain")
    make_dataset(home / "data", size=(48, 40))
    (home / "arch.json").write_text(json.dumps(ARCH))
    config = CONFIG | {"model": {"name": str(home / "arch.json"), "heads": 2}, "data": [str(home / "data")]}
    (home / "config.yaml").write_text(yaml.safe_dump(config))
    return home


VIEWS = {("svst", "caption"): 10, ("lv", "long"): 4, ("lv", "summary"): 4, ("it", "caption"): 10}  # val samples

STARTED: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def leave_nothing_behind():
    yield
    for process in STARTED:
        if process.poll() is None:
            kill_all(process)
    STARTED.clear()


def launch(script: str, ranks: int, *arguments) -> subprocess.Popen:
    """`accelerate launch` of a script with so many gloo processes."""
    command = [sys.executable, *launcher(ranks, threads=1), str(ROOT / "trainer" / script), *map(str, arguments)]
    env = environment(**ON_CPU, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    STARTED.append(subprocess.Popen(command, env=env, cwd=ROOT, **pipes))
    return STARTED[-1]


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def records(output: Path) -> dict[int, dict]:
    """metrics.jsonl by step; every step is there once."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in lines] == list(range(1, len(lines) + 1))
    return {record["step"]: record for record in lines}


def wait_for_step(output: Path, step: int, process: subprocess.Popen) -> None:
    path = output / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (path.exists() and f'{{"step": {step},' in path.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.02)


def ranks_of(process: subprocess.Popen) -> list[psutil.Process]:
    """The processes that run the script (not their workers)."""
    children = psutil.Process(process.pid).children()
    return [child for child in children if "pretrain.py" in " ".join(child.cmdline())]


@pytest.fixture(scope="module")
def any_ranks(home) -> dict[int, Path]:
    """Six steps on 1 rank, on 2 in chunks, and on 4, of the same global batches, dropout on."""
    outputs = {ranks: home / f"ranks-{ranks}" for ranks in (1, 2, 4)}
    config = ["--config", home / "config.yaml", "--model.dropout", 0.2, "--steps", 6]
    config += ["--validate_every", 4]
    chunks = {1: [], 2: ["--grad_cache_chunk", 1], 4: []}
    running = [launch("pretrain.py", n, *config, *chunks[n], "--output", output) for n, output in outputs.items()]
    for process in running:
        finish(process)
    return outputs


@pytest.mark.parametrize("ranks", [2, 4])
def test_any_number_of_ranks_has_the_losses_of_one_over_all_streams(any_ranks, ranks):
    one, many = records(any_ranks[1]), records(any_ranks[ranks])
    assert {record["stream"] for record in one.values()} == {"svst", "lv", "it"}
    for step in range(1, 7):
        assert many[step]["stream"] == one[step]["stream"]
        assert many[step]["loss"] == pytest.approx(one[step]["loss"], rel=0, abs=1e-5)
        assert many[step]["R@1"] == pytest.approx(one[step]["R@1"])
        assert many[step]["grad_norm"] == pytest.approx(one[step]["grad_norm"], rel=1e-3)


def test_held_out_samples_are_searched_during_training_with_the_same_numbers_on_any_ranks(any_ranks, home):
    one, two = (
        map(json.loads, (output / "validation.jsonl").read_text().splitlines()) for output in (any_ranks[1], any_ranks[2])
    )
    for first, second, step in zip(one, two, (4, 6), strict=True):
        assert first == second and first["step"] == step
        names = [(row["stream"], row["view"], row["direction"], row["candidates"]) for row in first["results"]]
        assert sorted(names[::2]) == sorted((*view, "text to video", n) for view, n in VIEWS.items()) and len(names) == 8
    arguments = ["--checkpoint", any_ranks[1] / "model", "--data", home / "data", "--cache", "none"]
    evaluate.evaluate(parse(EvaluateConfig, [*map(str, arguments), "--output", str(home / "eval-last")]))
    (last,) = json.loads((home / "eval-last" / "retrieval.json").read_text())["datasets"]
    validated = [row["metrics"] for row in first["results"]]
    assert sorted(map(str, validated)) == sorted(str(row["metrics"]) for row in last["results"])


def test_two_ranks_refuse_a_bad_config_with_one_line(home):
    process = launch("pretrain.py", 2, "--config", home / "config.yaml", "--output", home / "bad", "--stepz", 3)
    output, _ = process.communicate(timeout=240)
    assert process.returncode != 0  # the launcher's code and report are its own
    assert output.count("error: unrecognized arguments: --stepz") == 1


def test_evaluation_gives_the_same_numbers_on_one_rank_and_on_two(home, any_ranks):
    """On four: tests/slow/test_finetune_world.py."""
    common = ["--checkpoint", any_ranks[1] / "model", "--data", home / "data", "--task", "retrieval"]
    fresh = [*common, "--cache", "none"]
    on_two = launch("evaluate.py", 2, *fresh, "--output", home / "eval-2", "--batch", 3)
    for kept in ("made", "taken"):
        arguments = [*map(str, common), "--output", str(home / f"eval-{kept}"), "--batch", "4"]
        evaluate.evaluate(parse(EvaluateConfig, arguments))
    printed = finish(on_two)
    one, *others = (json.loads((home / f"eval-{how}" / "retrieval.json").read_text()) for how in ("made", "taken", 2))
    assert [one] * 2 == others
    results = one["datasets"][0]["results"]
    assert [(r["granularity"], r["view"]) for r in results[::2]] == [
        ("short", "caption"),
        ("long", "long"),
        ("long", "summary"),
        ("image", "caption"),
    ]
    assert results[0]["candidates"] == 10 and results[0]["chance"]["R@1"] == pytest.approx(10)
    assert one["settings"]["long"] == {"iter": {"video": 3, "long": 2, "summary": 1}, "frames": 6}
    table = (home / "eval-2" / "retrieval.md").read_text()
    assert table in printed and "chance" in table and printed.count("| protocol |") == 1


@pytest.mark.timeout(900)
def test_a_run_that_was_stopped_and_killed_ends_as_an_uninterrupted_one(home):
    """SIGUSR1 to one of two ranks, then kill -9 of everything; dropout, augmentation and the average of the weights on.
    Worker processes do not matter."""
    common = ["--config", home / "config.yaml", "--model.dropout", 0.2, "--model.patch_dropout", 0.3, "--steps", 20]
    common += ["--optim.ema_decay", 0.9]
    calm, shaken = home / "calm", home / "shaken"
    calm_run = launch("pretrain.py", 2, *common, "--output", calm, "--loader.workers", 0)
    first = launch("pretrain.py", 2, *common, "--output", shaken)
    wait_for_step(shaken, 3, first)
    first_rank = int((shaken / "pid").read_text())
    (other_rank,) = (rank for rank in ranks_of(first) if rank.pid != first_rank)
    other_rank.send_signal(signal.SIGUSR1)
    assert "stopped after step" in finish(first)
    assert not (shaken / "pid").exists()
    stopped_at = len(records(shaken))
    assert 3 <= stopped_at < 20
    finish(calm_run)

    second = launch("pretrain.py", 2, *common, "--output", shaken)
    wait_for_step(shaken, 12, second)
    kill_all(second)
    last = launch("pretrain.py", 2, *common, "--output", shaken)
    assert f"from step {(len(records(shaken)) // 5) * 5}" in finish(last)

    expected, found = records(calm), records(shaken)
    assert found.keys() == expected.keys()
    for step, record in expected.items():
        assert found[step]["loss"] == pytest.approx(record["loss"], rel=0, abs=1e-6), step
    assert (shaken / "model" / "model.safetensors").read_bytes() == (calm / "model" / "model.safetensors").read_bytes()
