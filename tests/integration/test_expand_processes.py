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


def test_a_second_driver_is_refused_and_one_that_is_killed_leaves_nothing_behind(catalog, footage, ray_agents, tmp_path):
    output = tmp_path / "out"
    process = start(catalog, output)
    wait_for(lambda: committed(output), process)
    process.send_signal(signal.SIGSTOP)  # it would end before the second one has started, on a busy machine
    second = start(catalog, output)
    said, _ = second.communicate(timeout=120)
    process.send_signal(signal.SIGCONT)
    assert second.returncode == 2 and "error: output.path: another run is writing" in said, said
    family = psutil.Process(process.pid).children(recursive=True)
    ray_agents += [child for child in family if child.name().endswith("Agent")]
    process.kill()
    process.wait()  # not for its output, which Ray's agents hold open
    process.stdout.close()
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


def ray_node(environment, log, *arguments, under=()) -> subprocess.Popen:
    """`ray start` as a process, with its output in `log`; up when it returns."""
    command = [*under, str(RAY), "start", "--block", "--num-cpus=1", "--disable-usage-stats", *arguments]
    command += [f"--{name}={free_port()}" for name in ("dashboard-agent-listen-port", "metrics-export-port")]
    with open(log, "w") as file:
        environment = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
        node = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    wait_for(lambda: "Ray runtime started" in log.read_text(), node)
    return node


def end(node: subprocess.Popen) -> None:
    family = psutil.Process(node.pid).children(recursive=True) if node.poll() is None else []
    node.terminate()
    for process in psutil.wait_procs([psutil.Process(node.pid), *family], timeout=60)[1]:
        process.kill()
    node.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Environment of the commands that talk to a Ray cluster of our own, of two nodes with a core each."""
    folder, port, dashboard = tmp_path_factory.mktemp("cluster"), free_port(), free_port()
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "HOME": str(folder), "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    environment["PATH"] = f"{RAY.parent}{os.pathsep}{environment['PATH']}"
    subprocess.run([str(RAY), "get-auth-token", "--generate"], env=environment, capture_output=True, check=True, timeout=60)
    ports = [f"--port={port}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={free_port()}"]
    nodes = [ray_node(environment, folder / "head.log", "--head", *ports)]
    try:
        nodes.append(ray_node(environment, folder / "second.log", f"--address=127.0.0.1:{port}"))
        yield environment | {"GCS": f"127.0.0.1:{port}"}
    finally:
        for node in reversed(nodes):
            end(node)


def submit(cluster, catalog, output) -> subprocess.CompletedProcess:
    command = ["ray", "job", "submit", "--working-dir", ".", "--", "python", "-m", "gex_pipeline.expand", *CONFIG]
    command += ["--input.path", os.path.abspath(catalog), "--output.path", str(output)]
    return subprocess.run(
        command, cwd=REPOSITORY, env=cluster, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240
    )


def test_ray_job_submit_runs_the_whole_expansion_on_two_nodes(cluster, catalog, footage, tmp_path):
    refused = submit(cluster, catalog, "out")
    assert refused.returncode != 0 and "output.path: out is relative" in refused.stdout
    done = submit(cluster, catalog, tmp_path / "out")
    assert done.returncode == 0, done.stdout
    assert tars(tmp_path / "out") == tars(footage)


def test_a_node_without_the_shared_output_is_one_line(cluster, catalog, tmp_path):
    """A third node, in a mount namespace of its own, has another disk where the others have the output."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("needs the right to make a mount namespace")
    output = tmp_path / "out"
    output.mkdir()
    elsewhere = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs tmpfs {output} && exec "$@"', "sh"]
    stray = ray_node(cluster, tmp_path / "stray.log", f"--address={cluster['GCS']}", under=elsewhere)
    try:
        refused = submit(cluster, catalog, output)
    finally:
        end(stray)
    lines = [line for line in refused.stdout.splitlines() if line.startswith("error: output.path: node ")]
    assert lines and "does not find what the driver wrote" in lines[0], refused.stdout
    assert refused.returncode != 0 and "Traceback" not in refused.stdout and not committed(output)


def test_a_cluster_that_is_not_there_is_one_line(catalog, tmp_path):
    process = start(catalog, tmp_path / "out", "--ray.address", f"127.0.0.1:{free_port()}")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2, said
    assert [line for line in said.splitlines() if line.startswith("error: ray.address")] and "Traceback" not in said
