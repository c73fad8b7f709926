"""The whole expansion from a bucket into a bucket: moto's server speaks S3 over HTTP."""

import json
import logging
import threading
import time
from pathlib import Path

import boto3
import numpy as np
import pytest
from expand_job import CONFIG, start, wait_for
from make_video import pattern_video
from moto.server import ThreadedMotoServer

import gexia
from gex_pipeline import expand, probe
from shards import reader
from trainer.index import Index

SETTINGS = "--output.clips_per_shard 3 --frames.per_clip 2 --integrate.max_clips 3 --ray.num_cpus 2".split()
CLIPS = [(video, i) for video in ("a/1", "b/2", "b/3") for i in range(3)]


@pytest.fixture(scope="module", autouse=True)
def private_ray(bucket):
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """A bucket with a table and videos; yields (client, folder of the same files)."""
    folder = tmp_path_factory.mktemp("s3")
    for name in ("a/1", "b/2", "b/3"):
        path = folder / "in/videos" / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        pattern_video(path, seconds=3)
    rows = [
        {"clip_id": f"{video}-{i}", "source_id": video[0], "video": f"videos/{video}.mp4", "start": i, "end": i + 1,
         "caption": f"second {i} of {video}"} for video, i in CLIPS
    ]  # fmt: skip
    rows.append(rows[0] | {"clip_id": "lost", "video": "videos/lost.mp4"})
    (folder / "in/clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    environment = {"AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port())}
    environment |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        logging.getLogger("werkzeug").setLevel(logging.WARNING)
        client = boto3.client("s3")
        client.create_bucket(Bucket="data")
        for path in filter(Path.is_file, folder.rglob("*")):
            client.upload_file(str(path), "data", str(path.relative_to(folder)))
        yield client, folder
    server.stop()


def listed(client) -> dict[str, tuple]:
    """Key -> (ETag, when it was written) of all that anybody can see of the output."""
    found = client.list_objects_v2(Bucket="data", Prefix="out/").get("Contents", [])
    return {entry["Key"]: (entry["ETag"], entry["LastModified"]) for entry in found}


def tars(client) -> dict[str, tuple]:
    return {key: state for key, state in listed(client).items() if ".tar" in key}


class Watcher:
    """Lists the output again and again. `seen`: key -> every ETag that it has had."""

    def __init__(self, client):
        self.client, self.seen, self._stop = client, {}, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self):
        while not self._stop.is_set():
            for key, (etag, _) in listed(self.client).items():
                self.seen.setdefault(key, set()).add(etag)
            time.sleep(0.2)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._stop.set()
        self._thread.join()


def run(source, output) -> int:
    return expand.main([*CONFIG, "--input.path", str(source), "--output.path", str(output), *SETTINGS])


def test_from_a_bucket_into_a_bucket_through_a_kill(bucket, tmp_path, capsys):
    client, folder = bucket
    with Watcher(client) as watcher:
        killed = start("s3://data/in/clips.jsonl", "s3://data/out", *SETTINGS)
        wait_for(lambda: any(".tar" in key for key in listed(client)), killed)
        killed.kill()
        killed.communicate()
        assert run("s3://data/in/clips.jsonl", "s3://data/out") == 0
    assert {key.split(".")[1] for key in watcher.seen if "/." in key} <= {"probe"}, "only the nodes' probe has a hidden name"
    assert all(len(etags) == 1 for key, etags in watcher.seen.items() if ".tar" in key), "a tar was seen before it was whole"

    after = tars(client)
    assert run("s3://data/in/clips.jsonl", "s3://data/out") == 0
    assert "(0 by this run)" in capsys.readouterr().out and tars(client) == after

    assert probe.file_duration_ms("s3://data/in/videos/a/1.mp4", 30) == 3000
    assert gexia.main(["shards", "validate", "s3://data/out"]) == 0
    assert gexia.main(["shards", "report", "s3://data/out"]) == 0
    dataset = reader.open_dataset("s3://data/out")
    shards = dataset.select("train", "short")
    assert sum(shard.samples for shard in shards) == 9
    offsets, sizes = Index([(dataset, shard) for shard in shards]).spans(np.array([0, 0]), np.array([0, 1]))
    assert offsets[0] == 0 and offsets[1] == sizes[0] > 0

    assert run(folder / "in/clips.jsonl", tmp_path / "out") == 0
    assert reader.open_dataset(str(tmp_path / "out")).manifest["digest"] == dataset.manifest["digest"]
