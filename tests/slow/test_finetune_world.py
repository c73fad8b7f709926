"""The experiment on the rendered world at a small size: from annotation files to a table, and 4 ranks as one.

What fine-tuning adds is for the experiment at its own size to say; here every part has to run."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

import gexia
from ops.experiments.finetune_world import Size, experiment, table
from ops.runs import ON_CPU, ROOT, environment, launcher

NAMES = ["msrvtt", "activitynet", "coin", "lvu_like_ratio", "charades_ego", "how2qa", "msvd_qa"]  # a task each; texts of two kinds
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
        assert row["n"] > 0 and all(math.isfinite(row[key]) for key in ("before", "after", "chance")), row
    assert table(found).count("\n") == 1 + len(found)
    gathered = output / "comparison.md"
    assert gexia.main(["table", *map(str, sorted(output.glob("finetune/*"))), "--output", str(gathered)]) == 0
    assert gathered.read_text().count("## ") == len(found)


def test_four_ranks_score_what_one_scored(world, tmp_path):
    output, _ = world
    run = output / "finetune/how2qa-0"
    expected = json.loads((run / "results.json").read_text())["datasets"][0]
    asked = ["--task", "multiple_choice", "--data", expected["data"], "--split", expected["split"], "--output", str(tmp_path)]
    command = [sys.executable, *launcher(ranks=4), "trainer/evaluate.py", "--checkpoint", str(run / "model"), *asked]
    subprocess.run(command, cwd=ROOT, env=environment(**ON_CPU), check=True, timeout=600)
    found = json.loads((tmp_path / "multiple_choice.json").read_text())["datasets"][0]["results"]
    for one, four in zip(expected["results"], found, strict=True):
        assert four["metrics"] == pytest.approx(one["metrics"], abs=1e-4) and four["n"] == one["n"]
