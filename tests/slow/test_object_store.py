"""What goes through Ray is small: a thousand queued rows leave its object store nearly empty."""

import threading

import pytest

from gex_pipeline import expand
from gex_pipeline.config import ExpandConfig

ROWS, STORE_BYTES = 1_000, 80 << 20


@pytest.fixture
def object_store():
    """A private Ray with a small store; the call gives the highest use seen so far, in bytes."""
    import ray
    from ray._private.internal_api import node_stats

    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        object_store_memory=STORE_BYTES,
    )  # fmt: skip
    (node,), peak, stop = ray.nodes(), [], threading.Event()

    def watch():
        while not stop.wait(0.05):
            stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False)
            peak.append(stats.store_stats.object_store_bytes_used)

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield lambda: max(peak)
    stop.set()
    watcher.join()
    ray.shutdown()


def test_a_thousand_rows_pass_as_small_dicts(object_store, tmp_path, monkeypatch):
    def work(root, row, config):
        """The stages' work lies on storage, and is left out here."""

    monkeypatch.setattr(expand, "extract_row", work)
    monkeypatch.setattr(expand, "compose_row", work)
    monkeypatch.setattr(expand, "Compressor", lambda config: lambda item: item)
    config = ExpandConfig()
    config.output.path = str(tmp_path)
    items = list(expand.pipeline(dict.fromkeys(range(ROWS), 100), config))
    assert sorted(item["row"] for item in items) == list(range(ROWS)) and not any(item["pending"] for item in items)
    print(f"peak of the object store: {object_store():,} bytes")  # shown by pytest -s
    assert object_store() < STORE_BYTES / 10
