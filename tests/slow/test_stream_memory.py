"""The stream's memory over many batches."""

import os
import sys
from pathlib import Path

import psutil
import pytest
from make_dataset import make_dataset

sys.path.append(str(Path(__file__).parents[1] / "integration"))
import test_stream
from test_stream import streams
from test_stream_faults import workers_of

server = test_stream.server  # a fixture


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    make_dataset(path, shorts={"train": 60}, longs={"train": 10}, rows=3)
    return path


@pytest.mark.parametrize("where, steps", [("folder", 5000), ("cached server", 5000), ("server", 1000)])
def test_memory_of_main_process_and_workers_stays_flat_over_many_batches(root, server, tmp_path, where, steps):
    """Local files, and fsspec over HTTP, with and without a cache. All streams, so that windows of all sizes open."""

    def resident():
        return [process.memory_info().rss for process in (psutil.Process(), *workers_of(os.getpid()))]

    settings = {"cache_dir": str(tmp_path)} if where == "cached server" else {}
    with streams(root if where == "folder" else server, workers=2, **settings) as stream:
        for batch in stream.batches(0, steps):
            if batch.step == steps // 5:
                early = resident()
        late = resident()
    assert len(early) == 3
    assert all(after - before < 10e6 for before, after in zip(early, late)), (early, late)
