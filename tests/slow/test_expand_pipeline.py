"""What Ray makes of rows, their work left out: a thousand of them, two at once, and one that kills every worker."""

import os
import signal
import threading
import time

import pytest

from gex_pipeline import cluster, expand, summary
from gex_pipeline.config import ExpandConfig, RayConfig
from gex_pipeline.progress import Progress

STORE_BYTES = 80 << 20


@pytest.fixture(scope="module")
def object_store():
    """A private Ray with a small object store; the call gives the highest use since the last call, in bytes."""
    import ray
    from ray._private.internal_api import node_stats

    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        object_store_memory=STORE_BYTES,
    )  # fmt: skip
    cluster.Session(RayConfig()).start()
    (node,), used, stop = ray.nodes(), [], threading.Event()

    def watch():
        while not stop.wait(0.05):
            stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False)
            used.append(stats.store_stats.object_store_bytes_used)

    def peak() -> int:
        highest = max(used)
        used.clear()
        return highest

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield peak
    stop.set()
    watcher.join()
    ray.shutdown()


@pytest.fixture
def config(tmp_path, monkeypatch):
    def work(root, row, config):
        """What the stages do lies on storage."""
        return {"fetch_seconds": 0.0}

    monkeypatch.setattr(expand, "extract_row", work)
    monkeypatch.setattr(expand, "compose_row", work)
    monkeypatch.setattr(expand, "Compressor", lambda config: lambda row: {})
    config = ExpandConfig()
    config.output.path = str(tmp_path)
    return config


def test_a_thousand_rows_pass_as_small_dicts(object_store, config):
    items = list(expand.pipeline(dict.fromkeys(range(1_000), 100), config))
    assert sorted(item["row"] for item in items) == list(range(1_000)) and not any(item["pending"] for item in items)
    peak = object_store()
    print(f"peak of the object store: {peak:,} bytes")  # shown by pytest -s
    assert peak < STORE_BYTES / 10


def test_two_cores_decode_two_rows_at_once_to_the_end(object_store, config, monkeypatch):
    def extract(root, row, config):
        time.sleep(2)
        return {"fetch_seconds": 0.0}

    monkeypatch.setattr(expand, "extract_row", extract)
    spans = [item["extract"] for item in expand.pipeline(dict.fromkeys(range(16), 10), config)]
    busy = sum(end - start for start, end in spans)
    wall = max(end for _, end in spans) - min(start for start, _ in spans)
    print(f"{busy / wall:.2f} rows at once")
    assert wall > 12, "Ray Data looks at the cluster's size again after ten seconds: go on for longer"
    assert busy / wall > 1.6


@pytest.mark.parametrize("stage", ["extract_row", "Compressor"])
def test_a_row_that_kills_every_worker_stays_pending_and_the_others_are_done(object_store, config, monkeypatch, capfd, stage):
    def kill(row):
        if row == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    def extract(root, row, config):
        kill(row)
        return {"fetch_seconds": 0.0}

    monkeypatch.setattr(expand, stage, extract if stage == "extract_row" else lambda config: lambda row: kill(row) or {})
    rows, work = dict.fromkeys(range(8), 10), summary.Work()
    with Progress(80, 0) as progress:
        expand.process(rows, config, work, progress)
    assert work.pending == {3: expand._LOST} and work.rows == 7
    assert "Traceback" not in capfd.readouterr().err
