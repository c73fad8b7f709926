"""Rows extracted and composed without Ray: what each frames policy and format stores, down to the pixels."""

import json
import sys

import numpy as np
import pytest
from make_video import H264, pattern_video, shown_ms

from gex_pipeline import catalog, decoder, extract, plan
from gex_pipeline.compose import compose_row
from gex_pipeline.compress import Compressor
from gex_pipeline.config import ExpandConfig
from gex_pipeline.options import check
from gex_pipeline.output import Output
from shards import format, reader, validate, video
from shards.errors import UserError

# Of two videos: clips that overlap, that start between frames, and one that lies between two key frames (2 s apart).
CLIPS = [
    ("a", "one.mp4", 0.0, 1.0), ("b", "one.mp4", 0.5, 2.51), ("c", "one.mp4", 3.3, None),
    ("d", "two.mp4", 0.1, 1.9), ("e", "two.mp4", None, None),
]  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("input")
    pattern_video(folder / "one.mp4", *H264, "-sc_threshold", "0")
    pattern_video(folder / "two.mp4", *H264, "-sc_threshold", "0", filter="setpts='round((N+8*floor(N/7))/25/TB)'", seconds=2)
    lines = [
        {"clip_id": name, "source_id": "s", "video": path, "start": start, "end": end, "caption": f"clip {name}"}
        for name, path, start, end in CLIPS
    ]
    (folder / "clips.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "clips.jsonl"


def expand(table, output, **frames) -> tuple[reader.Dataset, dict]:
    """The dataset, and the account of its only row."""
    config = ExpandConfig()
    config.input.path, config.input.video_root, config.output.path = str(table), str(table.parent), str(output)
    for name, value in frames.items():
        setattr(config.frames, name, value)
    check(config)
    with Output(str(output)) as out:
        out.claim(config)
        record = plan.write(plan.build(catalog.load(config)[0], config), out.root)
        receipt = extract.extract_row(out.root, 0, config)
        Compressor(config)(0)
        compose_row(out.root, 0, config)
        out.publish(config, record["digest"])
    assert validate.validate(str(output)) == []
    return reader.open_dataset(str(output)), receipt


def samples(dataset, granularity) -> dict[str, tuple[dict, dict]]:
    """First clip -> json and members."""
    (shard,) = dataset.select(granularity=granularity)
    found = {}
    for line in dataset.sidecar(shard).to_pylist():
        members = {name: bytes(data) for name, data in dataset.read_sample(shard, line).items()}
        found[line["clip_ids"][0]] = json.loads(members["json"]), members
    return found


def times_in(table, name: str, start: int, end: int) -> list[int]:
    return [ms for ms in video.scan(str(table.parent / name)).ms.tolist() if start <= ms < end]


@pytest.fixture(scope="module")
def as_mp4(table, tmp_path_factory):
    return expand(table, tmp_path_factory.mktemp("mp4"), format="mp4")[0]


def test_an_mp4_holds_exactly_the_frames_of_its_clip(table, as_mp4):
    found = samples(as_mp4, format.SHORT)
    for name, path, start, end in CLIPS:
        fields, members = found[name]
        inside = times_in(table, path, round((start or 0) * 1000), round((end or 99) * 1000))
        assert fields["frame_ms"] == inside and list(members) == ["json", "txt", "mp4"]
        assert [shown_ms(f) for f in video.read_frames(members["mp4"], range(len(inside)))] == inside
    pictures = samples(as_mp4, format.IMAGE)
    assert list(pictures["a"][1]) == ["json", "txt", "jpg"]


def test_a_long_mp4_joins_the_videos_of_its_clips(as_mp4):
    ((fields, members),) = samples(as_mp4, format.LONG).values()
    assert [clip["clip_id"] for clip in fields["clips"]] == ["a", "b", "c", "e", "d"]
    frames = video.read_frames(members["mp4"], range(len(fields["frame_ms"])))
    assert [shown_ms(frame) for frame in frames] == fields["frame_ms"]


def test_mp4_tars_are_the_same_bytes_again(table, as_mp4, tmp_path):
    again, _ = expand(table, tmp_path / "again", format="mp4")
    assert again.manifest["digest"] == as_mp4.manifest["digest"]


def test_fps_stores_a_frame_for_each_stretch_once(table, tmp_path):
    dataset, receipt = expand(table, tmp_path / "fps", policy="fps", fps=2.0, max_per_clip=3)
    found = {name: fields["frame_ms"] for name, (fields, _) in samples(dataset, format.SHORT).items()}
    # Every 500 ms from 250 ms after the start, the frame that is then shown (25 fps); b has 4, of which 3 are kept.
    assert found["a"] == [240, 720] and found["b"] == [720, 1720, 2240] and found["c"] == [3520]
    assert receipt["policy_fallbacks"] == 0
    as_video, _ = expand(table, tmp_path / "video", policy="fps", fps=2.0, max_per_clip=3, format="mp4")
    assert samples(as_video, format.SHORT)["b"][0]["frame_ms"] == [720, 1240, 1720, 2240]


def test_keyframe_stores_key_frames_of_the_clip_alone(table, tmp_path):
    dataset, receipt = expand(table, tmp_path / "key", policy="keyframe", per_clip=3)
    found = samples(dataset, format.SHORT)
    assert found["a"][0]["frame_ms"] == [0] and found["b"][0]["frame_ms"] == [2000]
    assert len(found["c"][0]["frame_ms"]) == 3  # without a key frame: as many as the policy uniform gives
    assert receipt["policy_fallbacks"] == sum(name in "cd" for name in found)
    for fields, members in found.values():
        assert sum(name.endswith("jpg") for name in members) == len(fields["frame_ms"])
    (long,) = samples(dataset, format.LONG).values()
    assert [np.diff(clip["frames"])[0] for clip in long[0]["clips"]][:3] == [1, 1, 3]


def test_a_video_is_one_job_of_its_row(table, tmp_path, monkeypatch):
    jobs, read = [], decoder.read_clips
    monkeypatch.setattr(
        decoder, "read_clips", lambda path, requests, frames: jobs.append(len(requests)) or read(path, requests, frames)
    )
    expand(table, tmp_path / "jobs", per_clip=2)
    assert sorted(jobs) == [2, 3]


def test_the_sidecar_says_which_decoder_read_a_clip(table, tmp_path):
    dataset, _ = expand(table, tmp_path / "decord", decoders=["decord", "pyav"])
    decoders = {g: set(dataset.sidecar(dataset.select(granularity=g)[0])["decoder"].to_pylist()) for g in format.GRANULARITIES}
    assert decoders == {g: {"decord"} for g in format.GRANULARITIES}


@pytest.mark.parametrize("limit", [{"max_megapixels": 0.01}, {"max_hours": 0.0005}, {"max_frames": 40}])
def test_absurd_videos_are_ledger_rows(table, tmp_path, limit):
    _, receipt = expand(table, tmp_path / "small", **limit)
    assert {error["kind"] for error in receipt["errors"]} == {"too_large"}


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"decoders": []}, "frames.decoders"), ({"decoders": ["pyav", "pyav"]}, "frames.decoders"),
        ({"fps": 0.0}, "frames.fps"), ({"max_per_clip": 1001}, "frames.max_per_clip"),
        ({"format": "mp4", "policy": "keyframe"}, "frames.policy"), ({"format": "mp4", "crf": 52}, "frames.crf"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_named(table, tmp_path, wrong, told):
    with pytest.raises(UserError, match=told):
        expand(table, tmp_path / "never", **wrong)


def test_a_torchcodec_that_finds_no_ffmpeg_is_told_at_the_start(table, tmp_path, monkeypatch):
    folder = tmp_path / "torchcodec"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('Could not load libtorchcodec.\\nmany more lines')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "torchcodec"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match="torchcodec cannot be loaded .Could not load libtorchcodec"):
        expand(table, tmp_path / "never", decoders=["torchcodec"])
