"""What surrounds the steps of a training."""

import json
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from accelerate import Accelerator
from accelerate.utils import DistributedType

from shards.errors import UserError
from trainer import loop
from trainer.config import PretrainConfig
from trainer.loop import Meter, StopSignal, check_trackers, create_accelerator, run_id


def test_a_tracker_that_is_not_there_is_an_error(monkeypatch):
    check_trackers([])
    with pytest.raises(UserError, match="trackers: 'wdb' is none; there are .*tensorboard, wandb"):
        check_trackers(["wdb"])
    monkeypatch.setattr(loop, "get_available_trackers", lambda: [])
    with pytest.raises(UserError, match="wandb is not installed; pip install wandb"):
        check_trackers(["wandb"])


def test_the_launchers_gradient_accumulation_divides_no_loss(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert create_accelerator(PretrainConfig(output=str(tmp_path), trackers=[])).gradient_accumulation_steps == 1


def test_a_launcher_that_cuts_up_the_model_is_refused(monkeypatch, tmp_path):
    """A mock: accelerate starts FSDP on GPUs alone."""
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(UserError, match="asks for FSDP; only plain data parallelism is supported"):
        create_accelerator(PretrainConfig(output=str(tmp_path), trackers=[]))


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


def longest(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = StopSignal(1e9, Path(folder) / "pid").longest((0.25, 3.5)[rank])
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def test_the_wait_for_data_is_the_slowest_ranks(tmp_path):
    """The others wait for it inside the step, where it would count as work."""
    multiprocessing.set_forkserver_preload(["trainer.loop"])  # imported once
    multiprocessing.start_processes(longest, (str(tmp_path),), nprocs=2, start_method="forkserver")
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [3.5, 3.5]
