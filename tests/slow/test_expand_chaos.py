"""An expansion on two Ray nodes under a storm of faults ends with the tars of a calm one, and no clip is lost.

Faults, in seeded order: kill -9 of a Ray worker, a decoder, a raylet (another node takes its place) and the driver;
the output's disk full; reads that fail, break off and stall.
"""

import json
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from expand_job import REPOSITORY, committed, tars
from storm import Nodes, VideoServer, filled, small_disk

from shards.validate import validate

SOURCES, CLIPS = 48, 4
STORM = {"worker": 6, "decoder": 4, "raylet": 2, "driver": 4, "full disk": 3, "fails": 2, "drops": 2, "stalls": 2}
SETTINGS = ["--input.filter", "keep", "--integrate.max_clips", 4, "--output.clips_per_shard", 4, "--frames.per_clip", 4]
SETTINGS += ["--frames.timeout_seconds", 20, "--fetch.timeout_seconds", 4]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """SOURCES good videos, one that is none; a further name is not there."""
    video = tmp_path_factory.mktemp("videos") / "video.mp4"
    source = "testsrc2=s=640x360:r=25:d=8"
    subprocess.run(["ffmpeg", "-v", "error", "-f", "lavfi", "-i", source, "-g", "100", str(video)], check=True, timeout=120)
    data = video.read_bytes()
    server = VideoServer({f"{i:02d}.mp4": data for i in range(SOURCES)} | {"text.mp4": b"no video\n" * 1000})
    yield server
    server.close()


@pytest.fixture(scope="module")
def catalog(server, tmp_path_factory):
    """The clips, four of each video, and rows that must be counted otherwise: filtered, duplicate, bad, unreadable."""
    videos = [f"{i:02d}.mp4" for i in range(SOURCES)] + ["text.mp4", "gone.mp4"]
    rows = [
        {"clip_id": f"{v}-{i}", "source_id": v, "video": f"{server.url}/{v}", "start": 2 * i + n % 10 / 10, "end": 2 * i + 2,
         "caption": f"part {i} of video {v}", "keep": True}
        for n, v in enumerate(videos) for i in range(CLIPS)
    ]  # fmt: skip
    rows += rows[:3]
    rows += [rows[9] | {"clip_id": "mute", "caption": ""}, rows[8] | {"clip_id": "late", "start": 700, "end": 701}]
    rows += [row | {"keep": False} for row in rows[:5]]
    path = tmp_path_factory.mktemp("catalog") / "clips.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Driver:
    """The command, started again and again; what it prints stays in `log`."""

    def __init__(self, catalog, output, address, log):
        self.output, self.log, self.kept = output, open(log, "w+"), {}
        command = ["-m", "gex_pipeline.expand", "--config", "configs/expand/local.yaml", "--input.path", catalog]
        command += ["--output.path", output, "--ray.address", address, *SETTINGS]
        self._command = [sys.executable, *map(str, command)]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, cwd=REPOSITORY, stdout=self.log, stderr=subprocess.STDOUT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.check_kept()

    def check_kept(self) -> None:
        """What is committed is never written again."""
        now = committed(self.output)
        assert self.kept.items() <= now.items()
        self.kept = now

    def finish(self, runs: int) -> None:
        """Until it says that nothing is pending."""
        for _ in range(runs):
            if self.process.wait(timeout=400) == 0:
                return self.check_kept()
            assert self.process.returncode == 1, self.said()
            self.start()
        raise AssertionError(self.said())

    def said(self) -> str:
        self.log.flush()
        self.log.seek(0)
        return self.log.read()


def strike(fault: str, driver: Driver, nodes: Nodes, server: VideoServer, chance: random.Random) -> bool:
    """One fault; False where there was nothing to hit."""
    if fault in ("worker", "decoder"):
        victims = nodes.family("ray::", "Map") if fault == "worker" else nodes.family("gex_pipeline.decode_child")
        with suppress(IndexError, psutil.NoSuchProcess):
            chance.choice(victims).send_signal(signal.SIGKILL)
            return True
        return False
    if fault == "raylet":
        nodes.replace_second()
    elif fault == "driver":
        driver.kill()
        driver.start()
    elif fault == "full disk":
        with filled(driver.output):
            time.sleep(chance.uniform(2, 5))
    else:
        server.mood = fault
        time.sleep(chance.uniform(3, 7))
        server.mood = "well"
    return True


def storm(driver: Driver, nodes: Nodes, server: VideoServer, faults: list[str], chance: random.Random) -> list[str]:
    """Strike until all faults have struck; returns those that did. Reads are slow, and slower when half is done, so that
    the job outlasts the storm."""
    struck, waiting, deadline = [], list(faults), time.monotonic() + 240
    while waiting and time.monotonic() < deadline:
        server.pace = 1 if len(committed(driver.output)) < SOURCES // 2 else 5
        time.sleep(chance.uniform(0.5, 2.5))
        if driver.process.poll() is not None:
            if driver.process.returncode == 0:
                break
            assert driver.process.returncode == 1, driver.said()
            driver.start()
        fault = waiting.pop(0)
        if strike(fault, driver, nodes, server, chance):
            struck.append(fault)
            print(f"{time.strftime('%H:%M:%S')} {fault}: {len(committed(driver.output))} rows", flush=True)
        else:
            waiting.insert(chance.randrange(len(waiting) + 1), fault)
    return struck


def ledger(output) -> set[tuple]:
    tables = [pq.read_table(file) for file in output.glob("errors/*.parquet")]
    return {(line["clip_id"], line["stage"], line["kind"]) for line in pa.concat_tables(tables).to_pylist()}


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", [0])
def test_a_storm_of_faults_changes_no_byte_and_loses_no_clip(server, catalog, tmp_path, monkeypatch, seed):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # a socket's path must be short
    chance, calm, output, nodes = random.Random(seed), tmp_path / "calm", tmp_path / "out", Nodes()
    try:
        Driver(catalog, calm, nodes.address, tmp_path / "calm.log").finish(runs=1)
        with small_disk(output, megabytes=64) as mounted:
            faults = [fault for fault, times in STORM.items() for _ in range(times) if mounted or fault != "full disk"]
            chance.shuffle(faults)
            driver = Driver(catalog, output, nodes.address, tmp_path / "out.log")
            struck = storm(driver, nodes, server, faults, chance)
            server.pace = 0
            driver.finish(runs=4)
            print(driver.said())
            assert len(struck) >= 20, (struck, driver.said())
            assert "Traceback" not in driver.said()
            assert tars(output) == tars(calm) and ledger(output) == ledger(calm) and validate(str(output)) == []
            run = json.loads((output / "run.json").read_text())
            counts, failed = run["catalog"], sum(run["failures"].values())
            assert counts["rows_in"] == counts["filtered"] + counts["duplicates"] + failed + run["represented"]
            assert (counts["filtered"], counts["duplicates"], failed) == (5, 3, 10)
            assert not [file for file in output.rglob(".*.tmp")] and not list(scratch.glob("gexia*"))
    finally:
        left = nodes.shutdown()
    assert not left
