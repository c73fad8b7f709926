"""Two runs on one dataset that no lock keeps apart, as on an object store: whoever is first, one right result."""

import contextlib
import json
import shutil

import fsspec
import pytest
from make_video import pattern_video

from gex_pipeline import catalog, commit, compress, expand, plan
from gex_pipeline.config import ExpandConfig
from gex_pipeline.output import Output
from shards import storage
from shards.validate import validate

ROOT, ROW = "memory://two-runs/out", 0
STAGES = ("extract", "compress", "compose")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for name in "ab":
        pattern_video(folder / f"{name}.mp4", seconds=2)
    rows = [{"clip_id": f"{v}{s}", "source_id": "s", "video": f"{v}.mp4", "start": s, "end": s + 1, "caption": f"{v} {s}"}
            for v in "ab" for s in range(2)]  # fmt: skip
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def job(clips, tmp_path, monkeypatch):
    """`do(stage, healthy)`: one stage of the one row; a run that is not healthy misses a video."""
    shutil.copytree(clips, tmp_path / "in")
    config = ExpandConfig()
    config.input.path, config.output.path = str(tmp_path / "in/clips.jsonl"), ROOT
    with contextlib.suppress(FileNotFoundError):
        fsspec.filesystem("memory").rm("/two-runs", recursive=True)
    plan.write(plan.build(catalog.load(config)[0], config), ROOT)
    config.input.video_root = catalog.video_root(config.input)
    compressor = compress.Compressor(config)
    works = {"extract": expand.extract_row, "compress": lambda root, row, _: compressor(row), "compose": expand.compose_row}
    video, away = tmp_path / "in/b.mp4", tmp_path / "in/away.mp4"

    def do(stage: str, healthy: bool = True) -> str:
        """Why the row is pending afterwards, "" where it is not."""
        there, elsewhere = (video, away) if healthy else (away, video)
        if elsewhere.exists():
            elsewhere.rename(there)
        return expand.stage(stage, works[stage], config)({"row": ROW, "pending": ""})["pending"]

    def finish():
        for _ in range(10):
            if not any(do(stage) for stage in STAGES):
                return
        raise AssertionError("the row stays pending")

    do.finish, do.config = finish, config
    return do


def is_whole(job) -> bool:
    """The row is committed, and the dataset says nothing that its files do not."""
    with Output(ROOT) as output:
        output.publish(job.config, plan.read(ROOT)[0]["digest"])
    return commit.is_done(ROOT, ROW) and validate(ROOT) == []


ORDERS = [
    "Ae Be Ac Bc Ao Bo",  # the second extraction counts, since it replaced the first before any record
    "Ae Ac Be Ao Bo",  # summaries of other texts lie there
    "Ae Ac Ao Be Bc Bo",  # the second run finds the row done
]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("healthy", ["A", "B"])
def test_runs_that_take_turns_end_with_one_whole_row(job, order, healthy):
    for step in order.split():
        run, stage = step[0], {"e": "extract", "c": "compress", "o": "compose"}[step[1]]
        job(stage, healthy=run == healthy)
    job.finish()
    assert is_whole(job)


@pytest.mark.parametrize("moment", range(1, 6))
@pytest.mark.parametrize("healthy", [True, False])
def test_a_run_that_is_overtaken_while_it_publishes_leaves_no_mixture(job, monkeypatch, moment, healthy):
    """At one of its uploads the other run does the whole row."""
    upload, calls = storage.publish_file, []

    def publish(local, url):
        calls.append(url)
        if len(calls) == moment:
            for stage in STAGES:
                job(stage, healthy=not healthy)
        upload(local, url)

    monkeypatch.setattr(storage, "publish_file", publish)
    job("extract", healthy)
    job("compress", healthy)
    job("compose", healthy)
    job.finish()
    assert is_whole(job)


def test_a_committed_row_is_not_written_again(job):
    job.finish()
    record = storage.read_bytes(storage.join(ROOT, "commits/00000.json"))
    assert [job(stage, healthy=False) for stage in STAGES] == ["", "", ""]
    assert storage.read_bytes(storage.join(ROOT, "commits/00000.json")) == record


def test_a_row_that_is_redone_while_its_videos_are_away_keeps_nothing_of_the_first_time(job, tmp_path):
    job.finish()
    commit.withdraw(ROOT, ROW)
    for video in tmp_path.glob("in/*.mp4"):
        video.unlink()
    assert [job(stage, healthy=False) for stage in STAGES] == ["", "", ""]
    record = json.loads(storage.read_bytes(storage.join(ROOT, "commits/00000.json")))
    assert record["shards"] == {"short": None, "image": None, "long": None} and is_whole(job)
