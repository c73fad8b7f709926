"""Every task on the rendered world, from annotation files to a table: what fine-tuning adds, on any number of ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ops.experiments.finetune_world import RUNS, Size, experiment, table

ROOT = Path(__file__).parents[2]
# What a fine-tuning reaches at least over the better of chance and the model before it, in points; of regression, its
# error as a share of theirs.
MARGIN = 3
MAX_ERROR = {"lvu_like_ratio": 0.8}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Path, list[dict]]:
    output = tmp_path_factory.mktemp("world")
    found = experiment(output, list(RUNS), [0], Size())
    print(f"\n{table(found)}")
    return output, found


@pytest.mark.timeout(3600)
def test_every_fine_tuning_beats_the_model_before_it_and_chance_by_a_margin(world):
    _, found = world
    assert {row["benchmark"] for row in found} == RUNS.keys()
    for row in found:
        if row["benchmark"] in MAX_ERROR:
            assert row["after"] < MAX_ERROR[row["benchmark"]] * min(row["before"], row["chance"]), row
        else:
            assert row["after"] > MARGIN + max(row["before"], row["chance"]), row


@pytest.mark.parametrize("name, task", [("how2qa", "multiple_choice"), ("charades_ego", "multilabel"), ("msvd_qa", "open_qa")])
def test_four_ranks_score_what_one_scored(world, name, task, tmp_path):
    output, _ = world
    expected = json.loads((output / f"finetune/{name}-0/results.json").read_text())["datasets"][0]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "4"]
    launcher += ["--main_process_port=0", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    asked = ["--task", task, "--data", expected["data"], "--split", expected["split"], "--output", str(tmp_path)]
    command = [*launcher, "trainer/evaluate.py", "--checkpoint", str(output / f"finetune/{name}-0/model"), *asked]
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=env, check=True, timeout=600)
    found = json.loads((tmp_path / f"{task}.json").read_text())["datasets"][0]["results"]
    for one, four in zip(expected["results"], found, strict=True):
        assert four["metrics"] == pytest.approx(one["metrics"], abs=1e-4) and four["n"] == one["n"]
