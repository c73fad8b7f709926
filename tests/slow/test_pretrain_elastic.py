"""Runs under `accelerate launch`: killed on two ranks and continued on one and on four; a store that does not answer."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

sys.path.append(str(Path(__file__).parents[1] / "integration"))
import test_pretrain
from test_pretrain import finish, kill_all, launch, records, wait_for_step

from ops.experiments import elastic, noted
from ops.experiments.noted import samples

home, leave_nothing_behind = test_pretrain.home, test_pretrain.leave_nothing_behind  # fixtures

STEPS = 18
NOTED = Path(noted.__file__)


@pytest.mark.timeout(1500)
def test_killed_on_two_ranks_and_continued_on_one_and_on_four_it_sees_the_same_samples_and_losses(home):
    common = ["--config", home / "config.yaml", "--steps", STEPS, "--checkpoint.every_steps", 4]
    calm, killed = home / "elastic-calm", home / "elastic-killed"
    finish(launch(NOTED, 2, *common, "--output", calm))
    run = launch(NOTED, 2, *common, "--output", killed)
    wait_for_step(killed, 9, run)
    kill_all(run)
    done = len((killed / "metrics.jsonl").read_text().splitlines())
    assert 9 <= done < STEPS
    expected, losses = samples(calm), records(calm)
    assert expected.keys() == set(range(STEPS)) and len({i for ids in expected.values() for i in ids}) > 20
    for ranks in (1, 4):
        output = home / f"elastic-{ranks}"
        shutil.copytree(killed, output)
        assert "from step 8" in finish(launch(NOTED, ranks, *common, "--output", output))
        continued = samples(output)
        assert continued == {step: expected[step] for step in range(8, STEPS)}
        for step, record in records(output).items():
            assert record["stream"] == losses[step]["stream"]
            assert record["loss"] == pytest.approx(losses[step]["loss"], rel=0, abs=2e-5), step


@pytest.mark.timeout(600)
@pytest.mark.parametrize("what", ["tar", "parquet"])
def test_a_store_that_does_not_answer_ends_the_run_on_all_ranks_and_is_named(home, tmp_path, what):
    """One shard becomes a pipe that nobody writes to: no rank waits for another for ever."""
    shutil.copytree(home / "data", tmp_path / "data")
    stuck = tmp_path / f"data/train/short/00001.{what}"
    stuck.unlink()
    os.mkfifo(stuck)
    patience = ["--loader.read_seconds", 1000, "--loader.stall_seconds", 3]
    run = launch(
        "pretrain.py", 2, "--config", home / "config.yaml", "--data", tmp_path / "data", *patience, "--output", tmp_path
    )
    family = []
    while run.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess, subprocess.TimeoutExpired):
            family = psutil.Process(run.pid).children(recursive=True) or family
            run.wait(1)
    output, _ = run.communicate(timeout=10)
    assert run.returncode != 0 and str(stuck.with_suffix(".tar")) in output and "loader.stall_seconds" in output
    assert "Thread 0x" in output  # the stacks
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive


@pytest.mark.timeout(900)
def test_the_experiment_with_two_kills_runs_at_its_smallest(tmp_path, monkeypatch, capsys):
    sizes = ["--sources", "40", "--val-sources", "12", "--steps", "24", "--seeds", "0"]
    monkeypatch.setattr("sys.argv", ["elastic", "--output", str(tmp_path), *sizes])
    elastic.main()  # with one seed the recall has no spread to be within
    text = capsys.readouterr().out
    assert "restarts: holds, sample ids: holds, losses: holds" in text and text == (tmp_path / "elastic.md").read_text()
