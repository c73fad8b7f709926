"""A video of two hours does not make a worker grow: the process that Ray starts, with the decoder that it starts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from make_video import ffmpeg

LIMIT_MB = 1500
REPOSITORY = Path(__file__).parents[2]
# What a Ray worker does for a row, with the modules that it has loaded.
CODE = """
import json, sys
import ray.data, gex_pipeline.expand
from gex_pipeline import catalog, plan
from gex_pipeline.extract import extract_row
from gex_pipeline.options import check, parse
from gex_pipeline.output import Output
from ops.bench.common import PeakMemory

config = parse(sys.argv[1:])
check(config)
clips, _, _ = catalog.load(config)
config.input.video_root = catalog.video_root(config.input)
with Output(config.output.path) as output, PeakMemory() as memory:
    output.claim(config)
    plan.write(plan.build(clips, config), output.root)
    receipts = [extract_row(output.root, row, config) for row in output.open_rows()]
made = sum(receipt["shards"]["short"]["samples"] for receipt in receipts)
print(json.dumps({"peak_mb": memory.peak / 1e6, "samples": made}))
"""


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Two hours at 5 frames a second: 36,000 frames, cut by a clip over everything, one at the end, and others between,
    which start every so many seconds."""
    folder = tmp_path_factory.mktemp("long")
    source = ["-f", "lavfi", "-i", "testsrc2=s=480x270:r=5:d=20"]
    ffmpeg(*source, "-c:v", "libx264", "-preset", "ultrafast", "-g", "50", folder / "part.mp4")
    ffmpeg("-stream_loop", "359", "-i", folder / "part.mp4", "-c", "copy", folder / "long.mp4")

    def write(every: int) -> Path:
        spans = [(None, None), (7190, None)] + [(start, start + 10) for start in range(0, 7200, every)]
        lines = [
            {"clip_id": str(i), "source_id": "s", "video": "long.mp4", "start": start, "end": end, "caption": "colours move"}
            for i, (start, end) in enumerate(spans)
        ]
        path = folder / f"every-{every}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return write


@pytest.mark.parametrize(
    "every, frames", [(24, ["--frames.per_clip", "64"]), (360, ["--frames.format", "mp4", "--frames.policy", "fps"])]
)
def test_a_worker_stays_under_its_limit(table, tmp_path, every, frames):
    arguments = ["--input.path", table(every), "--output.path", tmp_path / "out", "--output.clips_per_shard", "400", *frames]
    command = [sys.executable, "-c", CODE, *map(str, arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    print(told)
    assert told["samples"] == 2 + 7200 // every
    assert told["peak_mb"] < LIMIT_MB
