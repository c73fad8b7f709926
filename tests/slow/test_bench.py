"""The benchmarks run, at a small size; what they measure there means nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
FOOTAGE = ["../shared/data/footage/videos/onebyone.mp4", "../shared/data/footage/videos/bottles.mp4"]

WORK = ["--work", ".cache/bench/small", "--sources", "1"]  # made once, kept


@pytest.mark.parametrize(
    "name, size",
    [
        ("plan", ["--clips", "20000"]),
        ("model", ["--small"]),
        ("retrieval", ["--rows", "3000"]),
        ("expand", [*WORK, "--copies", "1"]),
        ("decoders", WORK),
        ("keyframe", WORK),
        ("order", ["--clips", "50000", "--samples", "200000", "--steps", "20"]),
        ("decode_jpeg", ["--footage", *FOOTAGE, "--frames", "10", "--rounds", "1"]),
        ("step", ["--sources", "8", "--warmup", "2", "--steps", "4"]),
        ("stream", ["--footage", *FOOTAGE, "--sources", "2", "--gb", "0.02", "--rounds", "1"]),
    ],
)
def test_a_benchmark_prints_its_table_and_its_line(name, size, shared_data):
    command = [sys.executable, "-m", f"ops.bench.{name}", *size]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.strip().splitlines()[-1])
    assert line["benchmark"] == name and line["ratio"] > 0 and line["target"]
