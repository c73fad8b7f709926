"""What surrounds the steps of a training."""

import pytest

from shards.errors import UserError
from trainer import loop
from trainer.loop import Meter, check_trackers, run_id


def test_a_tracker_that_is_not_there_is_an_error(monkeypatch):
    check_trackers([])
    with pytest.raises(UserError, match="trackers: 'wdb' is none; there are .*tensorboard, wandb"):
        check_trackers(["wdb"])
    monkeypatch.setattr(loop, "get_available_trackers", lambda: [])
    with pytest.raises(UserError, match="wandb is not installed; pip install wandb"):
        check_trackers(["wandb"])


def test_records_of_steps_become_means_and_rates():
    meter = Meter()
    for seconds, waited, loss in ((1.0, 0.5, 3.0), (3.0, 0.5, 1.0)):
        cost = {"seconds": seconds, "data_wait": waited, "samples": 8, "frames": 32, "memory_gib": seconds, "mfu": 1 / seconds}
        meter.add({"stream": "lv", "loss": {"long": loss}, "R@1": {"long": 0.5}, **cost})
    rates = {"samples_per_second": 4.0, "frames_per_second": 16.0, "data_wait_share": 0.25, "mfu": 0.5, "memory_gib": 3.0}
    assert meter.summary() == {"loss/lv/long": 2.0, "R@1/lv/long": 0.5} | rates


def test_a_run_that_goes_on_keeps_its_id_and_one_that_begins_gets_its_own(tmp_path):
    first = run_id(tmp_path / "logs", 0)
    assert run_id(tmp_path / "logs", 5) == run_id(tmp_path / "logs", 9) == first
    assert run_id(tmp_path / "logs", 0) != first
    assert run_id(tmp_path / "copied", 5)  # from a checkpoint whose logs were left behind
