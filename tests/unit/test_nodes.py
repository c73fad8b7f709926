"""What is asked of a cluster before rows go out; the real thing with two nodes is in integration/test_expand_processes."""

import os

import pytest

from gex_pipeline import nodes
from gex_pipeline.config import ResourcesConfig, StageResources
from shards import storage
from shards.errors import UserError

SMALL, LARGE = {"CPU": 2.0, "memory": 4e9}, {"CPU": 8.0, "memory": 16e9}


def test_a_stage_reserves_what_its_config_says():
    assert nodes.reserved(StageResources(cpus=0.95)) == {"num_cpus": 0.95}
    assert nodes.reserved(StageResources(cpus=2, memory_gb=1.5)) == {"num_cpus": 2, "memory": 1.5e9}
    assert nodes.reserved(StageResources(cpus=1, gpus=2)) == {"num_cpus": 1, "num_gpus": 2}


def test_the_defaults_leave_no_core_idle_and_fit_one_core():
    stages = ResourcesConfig()
    assert sum(stage.cpus for stage in vars(stages).values()) <= 1 < 2 * stages.extract.cpus
    nodes.check_room(stages, [{"CPU": 1.0}])


@pytest.mark.parametrize(
    "stage, message",
    [
        (StageResources(cpus=9), "resources.extract.cpus is 9, and the largest node has 8; lower it"),
        (StageResources(cpus=1, gpus=1), "resources.extract.gpus is 1, and the largest node has 0"),
        (StageResources(cpus=1, memory_gb=20), "resources.extract.memory_gb is 20, and the largest node has 16"),
    ],
)
def test_a_stage_that_fits_no_node_is_refused_by_name(stage, message):
    nodes.check_room(ResourcesConfig(extract=StageResources(cpus=8, memory_gb=16)), [SMALL, LARGE])
    with pytest.raises(UserError, match=message):
        nodes.check_room(ResourcesConfig(extract=stage), [SMALL, LARGE])


def test_a_node_says_what_keeps_it_from_using_the_output(tmp_path, monkeypatch):
    token = f"{tmp_path}/.probe.000000000000.tmp"
    assert nodes._tried(str(tmp_path), token) == "it does not find what the driver wrote"
    storage.write_bytes_atomic(token, b"something else")
    assert nodes._tried(str(tmp_path), token) == "it finds another file where the driver wrote one"
    storage.write_bytes_atomic(token, token.encode())
    assert nodes._tried(str(tmp_path), token) == ""
    assert os.listdir(tmp_path) == [os.path.basename(token)]

    def full(url, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "write_bytes_atomic", full)
    assert nodes._tried(str(tmp_path), token) == "OSError: [Errno 28] No space left on device"
