"""Two runs started at once on one bucket, where no lock can be: both end, with one right dataset."""

import json
import logging

import boto3
import pytest
from expand_job import finish, start
from make_video import pattern_video
from moto.server import ThreadedMotoServer

from shards import reader
from shards.validate import validate

SETTINGS = ["--output.clips_per_shard", 3, "--integrate.max_clips", 3, "--frames.per_clip", 2, "--ray.num_cpus", 1]
SOURCES = 16


@pytest.fixture
def bucket(monkeypatch):
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
    for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    boto3.client("s3").create_bucket(Bucket="data")
    yield "s3://data"
    server.stop()


def test_two_runs_on_one_bucket_end_with_one_dataset(bucket, tmp_path):
    pattern_video(tmp_path / "video.mp4", seconds=6)
    rows = [
        {"clip_id": f"{s}-{i}", "source_id": f"s{s}", "video": "video.mp4", "start": 2 * i + s / 100, "end": 2 * i + 2,
         "caption": f"part {i} of {s}"} for s in range(SOURCES) for i in range(3)
    ]  # fmt: skip
    catalog = tmp_path / "clips.jsonl"
    catalog.write_text("".join(json.dumps(row) + "\n" for row in rows))
    finish(start(catalog, tmp_path / "alone", *SETTINGS))
    said = [finish(run) for run in [start(catalog, f"{bucket}/out", *SETTINGS) for _ in range(2)]]
    assert not any("Traceback" in text for text in said)
    both, alone = reader.open_dataset(f"{bucket}/out"), reader.open_dataset(str(tmp_path / "alone"))
    assert both.manifest["digest"] == alone.manifest["digest"] and validate(f"{bucket}/out") == []
