"""The experiment on the rendered world at a small size: from annotation files to a table, and 4 ranks as one.

What fine-tuning adds is for the experiment at its own size to say; here every part has to run."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

import gexia
from ops.experiments.finetune_world import RUNS, Size, experiment, table
from ops.runs import ON_CPU, ROOT, environment, launcher

# A task each; texts of two kinds; one that is only tested on.
NAMES = ["msrvtt", "activitynet", "coin", "lvu_like_ratio", "charades_ego", "how2qa", "msvd_qa", "imagenet"]
TINY = Size(clips=60, films=30, sources=40, pretrain_steps=8, steps=4, batch=16)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Path, list[dict]]:
    output = tmp_path_factory.mktemp("world")
    return output, experiment(output, NAMES, [0], TINY)


@pytest.mark.timeout(1200)
def test_tasks_run_from_annotation_files_to_a_table(world):
    output, found = world
    assert list(dict.fromkeys(row["benchmark"] for row in found)) == NAMES
    for row in found:
        values = [row[key] for key in ("before", "after", "chance") if key in row]
        assert row["n"] > 0 and len(values) == 2 + (row["benchmark"] in RUNS) and all(map(math.isfinite, values)), row
    assert table(found).count("\n") == 1 + len(found)
    gathered = output / "comparison.md"
    assert gexia.main(["table", *map(str, sorted(output.glob("finetune/*"))), "--output", str(gathered)]) == 0
    assert gathered.read_text().count("## ") == sum(row["benchmark"] in RUNS for row in found)


def test_four_ranks_score_what_one_scored(world, tmp_path):
    output, _ = world
    runs = sorted(output.glob("finetune/*-0"))
    command = [sys.executable, *launcher(ranks=4), "tests/evaluate_tasks.py", str(tmp_path), *map(str, runs)]
    subprocess.run(command, cwd=ROOT, env=environment(**ON_CPU, PYTHONPATH=str(ROOT)), check=True, timeout=900)
    for run in runs:
        told = json.loads((run / "results.json").read_text())
        found = json.loads((tmp_path / run.name / f"{told['task']}.json").read_text())["datasets"][0]["results"]
        for one, four in zip(told["datasets"][0]["results"], found, strict=True):
            assert four["metrics"] == pytest.approx(one["metrics"], abs=1e-4), run.name
            assert (four["n"], four["videos"]) == (one["n"], one["videos"])
