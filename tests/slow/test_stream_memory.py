"""The stream's memory over many batches."""

import os
import sys
from pathlib import Path

import psutil
from make_dataset import make_dataset

sys.path.append(str(Path(__file__).parents[1] / "integration"))
from test_stream import STREAMS, streams, workers_of


def test_memory_of_main_process_and_workers_stays_flat_over_5000_batches(tmp_path):
    make_dataset(tmp_path, shorts={"train": 60}, longs={"train": 10}, rows=3)

    def resident():
        return [process.memory_info().rss for process in (psutil.Process(), *workers_of(os.getpid()))]

    with streams(tmp_path, {"it": STREAMS["it"]}, workers=2) as stream:
        for batch in stream.batches(0, 5000):
            if batch.step == 1000:
                early = resident()
        late = resident()
    assert len(early) == 3
    assert all(after - before < 10e6 for before, after in zip(early, late))
