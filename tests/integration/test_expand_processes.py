"""The expansion job as processes: kill -9 of each kind, and `ray job submit` to a real cluster."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from expand_job import CONFIG, REPOSITORY, committed, finish, start, tars, wait_for, working

from shards.validate import validate

RAY = Path(sys.executable).with_name("ray")


@pytest.fixture
def catalog(shared_data):
    return shared_data / "footage/clips.jsonl"


@pytest.fixture(scope="module")
def ray_agents():
    """Ray's own agents, which look for their dead cluster for a minute: gone by the end of this module."""
    agents = []
    yield agents
    assert not psutil.wait_procs(agents, timeout=100)[1]


def test_a_driver_that_is_killed_leaves_nothing_behind_and_the_next_run_goes_on(catalog, footage, ray_agents, tmp_path):
    output, chance = tmp_path / "out", random.Random(0)
    process = start(catalog, output)
    wait_for(lambda: committed(output), process)
    time.sleep(chance.uniform(0, 1.5))
    family = psutil.Process(process.pid).children(recursive=True)
    ray_agents += [child for child in family if child.name().endswith("Agent")]
    process.kill()
    process.communicate()
    done = committed(output)
    _, alive = psutil.wait_procs(set(family) - set(ray_agents), timeout=30)
    assert not alive
    finish(start(catalog, output))
    assert tars(output) == tars(footage) and validate(str(output)) == []
    assert not list(output.rglob(".*.tmp"))
    assert {name: committed(output)[name] for name in done} == done


def test_killed_workers_and_decoders_change_nothing(catalog, footage, tmp_path):
    output, chance = tmp_path / "out", random.Random(1)
    process = start(catalog, output)
    decoder = wait_for(lambda: working(process, "gex_pipeline.decode_child"), process)
    time.sleep(chance.uniform(0, 0.5))
    decoder[0].send_signal(signal.SIGKILL)
    worker = wait_for(lambda: working(process, "ray::", "Map(step)"), process)
    time.sleep(chance.uniform(0, 0.5))
    worker[0].send_signal(signal.SIGKILL)
    actor = wait_for(lambda: working(process, "ray::", "MapWorker"), process)
    actor[0].send_signal(signal.SIGKILL)
    finish(process)
    assert tars(output) == tars(footage) and validate(str(output)) == []
    assert not list(output.rglob("errors/0*.parquet"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def cluster(tmp_path):
    """Environment of the commands that talk to a Ray cluster of our own."""
    home = tmp_path / "home"
    home.mkdir()
    port, dashboard = free_port(), free_port()
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "HOME": str(home), "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    environment["PATH"] = f"{RAY.parent}{os.pathsep}{environment['PATH']}"
    ports = [f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}"]
    ports += [f"--metrics-export-port={free_port()}", f"--ray-client-server-port={free_port()}"]
    subprocess.run([str(RAY), "get-auth-token", "--generate"], env=environment, capture_output=True, check=True, timeout=60)
    command = [str(RAY), "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats", *ports]
    with open(tmp_path / "head.log", "w") as log:
        head = subprocess.Popen(command, env={k: v for k, v in environment.items() if k != "RAY_ADDRESS"}, stdout=log, stderr=log)
    try:
        wait_for(lambda: "Ray runtime started" in (tmp_path / "head.log").read_text(), head)
        yield environment
    finally:
        family = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
        head.terminate()
        for process in psutil.wait_procs([psutil.Process(head.pid), *family], timeout=60)[1]:
            process.kill()
        head.wait()


def test_ray_job_submit_runs_the_whole_expansion(cluster, catalog, footage, tmp_path):
    output = tmp_path / "out"
    submit = ["ray", "job", "submit", "--working-dir", ".", "--", "python", "-m", "gex_pipeline.expand", *CONFIG]
    submit += ["--input.path", os.path.abspath(catalog)]
    refused = subprocess.run([*submit, "--output.path", "out"], cwd=REPOSITORY, env=cluster, capture_output=True, text=True, timeout=120)
    assert refused.returncode != 0 and "output.path: out is relative" in refused.stdout + refused.stderr
    done = subprocess.run([*submit, "--output.path", str(output)], cwd=REPOSITORY, env=cluster, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert tars(output) == tars(footage)


def test_a_cluster_that_is_not_there_is_one_line(catalog, tmp_path):
    process = start(catalog, tmp_path / "out", "--ray.address", f"127.0.0.1:{free_port()}")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2, said
    assert [line for line in said.splitlines() if line.startswith("error: ray.address")] and "Traceback" not in said
