"""The expansion job on real footage and on bad files: what comes out, what the ledger says, what a rerun does."""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
import webdataset
from make_video import pattern_video

from gex_pipeline import expand
from shards import reader
from shards.validate import validate

REPOSITORY = Path(__file__).parents[2]
BASE = ["--config", str(REPOSITORY / "configs/expand/local.yaml")]


@pytest.fixture(scope="module", autouse=True)
def private_ray():
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def run(catalog, output, *more) -> int:
    return expand.main([*BASE, "--input.path", str(catalog), "--output.path", str(output), *map(str, more)])


def tars(output) -> dict[str, str]:
    """Path -> sha256 of every tar."""
    files = sorted(Path(output).rglob("*.tar"))
    return {str(f.relative_to(output)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def samples(output, granularity) -> list[dict]:
    """The json of every sample, `text` and `summary_text` beside."""
    dataset, found = reader.open_dataset(str(output)), []
    for shard in dataset.select(granularity=granularity):
        for _, members in reader.iter_shard(dataset.shard_url(shard)):
            texts = {"text": members["txt"].decode(), "summary_text": members.get("summary.txt", b"").decode()}
            found.append(json.loads(members["json"]) | texts | {"jpgs": sum(name.endswith("jpg") for name in members)})
    return found


def ledger(output) -> dict[str, tuple[str, str]]:
    """clip_id -> (stage, kind) of everything in errors/."""
    table = pa.concat_tables(pq.read_table(f) for f in sorted(Path(output, "errors").glob("*.parquet")))
    return {line["clip_id"]: (line["stage"], line["kind"]) for line in table.to_pylist()}


def account(output) -> dict:
    return json.loads(Path(output, "run.json").read_text())


def test_footage_gives_every_clip_and_every_source(footage, shared_data):
    clips = [json.loads(line) for line in (shared_data / "footage/clips.jsonl").open()]
    short, long, image = (samples(footage, g) for g in ("short", "long", "image"))
    assert (len(short), len(long), len(image)) == (36, 7, 36)
    assert validate(str(footage)) == []
    assert {s["clip_id"] for s in short} == {s["clip_id"] for s in image} == {c["clip_id"] for c in clips}
    by_id = {clip["clip_id"]: clip for clip in clips}
    for sample in short:
        clip = by_id[sample["clip_id"]]
        assert sample["text"] == sample["caption"] == clip["caption"]
        assert sample["jpgs"] == len(sample["frame_ms"]) == 8 and sample["frame_ms"] == sorted(sample["frame_ms"])
        assert sample["start_ms"] <= sample["frame_ms"][0] and sample["frame_ms"][-1] < sample["end_ms"]
    run_json = account(footage)
    assert run_json["represented"] == 36 and not run_json["failures"] and not run_json["pending"]
    assert {g: cell["samples"] for g, cell in run_json["granularities"].items()} == {"short": 36, "long": 7, "image": 36}


def test_long_samples_follow_their_clips(footage):
    short = {sample["clip_id"]: sample for sample in samples(footage, "short")}
    for sample in samples(footage, "long"):
        shown = [short[clip["clip_id"]] for clip in sample["clips"]]
        assert [(c["video"], c["start_ms"]) for c in shown] == sorted((c["video"], c["start_ms"]) for c in shown)
        assert {c["source_id"] for c in shown} == {sample["source_id"]}
        assert sample["text"] == " ".join(f"{c['caption'].rstrip('.')}." for c in shown)
        assert [s.rstrip(".") for s in sample["sentences"]["long"]] == [s for c in shown for s in c["sentences"]["caption"]]
        assert sample["summary_text"] and sample["duration_ms"] == sum(c["duration_ms"] for c in shown)
        last = 0
        for clip, own in zip(sample["clips"], shown):
            first, end = clip["frames"]
            assert first == last < end and set(sample["frame_ms"][first:end]) <= set(own["frame_ms"])
            last = end
        assert last == sample["jpgs"] == min(32, 8 * len(shown))


def test_a_finished_dataset_is_only_verified(footage, shared_data, capsys):
    before = {f: f.stat().st_mtime_ns for f in footage.rglob("*.tar")}
    assert run(shared_data / "footage/clips.jsonl", footage) == 0
    assert {f: f.stat().st_mtime_ns for f in footage.rglob("*.tar")} == before
    assert account(footage)["rows"] == {"committed": 7, "this_run": 0, "pending": 0}
    printed = capsys.readouterr().out
    assert "36 rows in = 0 filtered + 0 duplicates + 0 failed + 36 represented" in printed
    assert "all rows were done already: 7 summaries" in printed


def test_settings_or_catalogs_that_differ_are_refused(footage, shared_data, tmp_path, capsys):
    catalog = shared_data / "footage/clips.jsonl"
    assert run(catalog, footage, "--frames.per_clip", 4) == 2
    assert "frames.per_clip: 8 there, 4 here" in capsys.readouterr().err
    fewer = tmp_path / "clips.jsonl"
    fewer.write_text("".join(catalog.open().readlines()[:30]))
    assert run(fewer, footage, "--input.video_root", catalog.parent) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: output.path: ")


@pytest.fixture(scope="module")
def bad_catalog(shared_data, tmp_path_factory):
    """Good clips of the footage beside every kind of bad one; clip_id -> what the ledger must say of it."""
    folder = tmp_path_factory.mktemp("bad")
    for name in ("av1_video.mkv", "corrupted.mp4", "h265_video.mp4", "unordered.mov"):
        shutil.copy(shared_data / "edge" / name, folder)
    shutil.copy(shared_data / "footage/videos/bottles.mp4", folder)
    (folder / "text.mp4").write_text("hello\n" * 1000)
    (folder / "empty.mp4").touch()
    os.mkfifo(folder / "fifo.mp4")
    good = [("bottles.mp4", start, start + 4) for start in range(0, 16, 4)]
    good += [("av1_video.mkv", 0, 2), ("av1_video.mkv", None, None), ("h265_video.mp4", None, None)]
    good += [("unordered.mov", None, None), ("corrupted.mp4", 0, 2.5)]
    bad = {
        ("missing.mp4", None, None): ("extract", "missing_file"),
        ("text.mp4", None, None): ("extract", "not_a_video"),
        ("empty.mp4", None, None): ("extract", "empty_file"),
        ("fifo.mp4", None, None): ("extract", "not_a_file"),
        ("corrupted.mp4", None, None): ("extract", "corrupt"),
        ("bottles.mp4", 1000, 1004): ("extract", "start_after_end_of_video"),
        ("bottles.mp4", 9, 5): ("catalog", "end_before_start"),
    }
    rows, expected = [], {}
    for i, (video, start, end) in enumerate([*good, *bad]):
        rows.append({"clip_id": f"../{i}", "source_id": video, "video": video, "start": start, "end": end})
        rows[-1]["caption"] = f"clip number {i} of the bad catalog"
        if (video, start, end) in bad:
            expected[f"../{i}"] = bad[video, start, end]
    rows.append({**rows[0], "clip_id": "mute", "caption": " "})
    rows.append(rows[0])  # a duplicate
    expected["mute"] = ("catalog", "empty_caption")
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "clips.jsonl", len(good), expected


def test_every_bad_clip_is_in_the_ledger_and_every_good_one_in_the_dataset(bad_catalog, tmp_path):
    catalog, good, expected = bad_catalog
    output = tmp_path / "out"
    started = time.monotonic()
    assert run(catalog, output, "--max_failed_fraction", 0.9) == 0
    assert time.monotonic() - started < 120
    assert ledger(output) == expected
    assert {s["clip_id"] for s in samples(output, "short")} == {f"../{i}" for i in range(good)}
    assert validate(str(output)) == []
    says = account(output)
    counts = says["catalog"]
    assert counts["rows_in"] == good + len(expected) + 1
    assert counts["rows_in"] == counts["filtered"] + counts["duplicates"] + sum(says["failures"].values()) + says["represented"]
    assert not list(tmp_path.parent.glob("0*")), "an id with ../ left the dataset"
    sidecars = [line for s in reader.open_dataset(str(output)).select(granularity="short")
                for line in reader.open_dataset(str(output)).sidecar(s).to_pylist()]  # fmt: skip
    assert {line["status"] for line in sidecars} == {"ok", "failed"}
    assert run(catalog, output, "--max_failed_fraction", 0.1) == 1


def small_catalog(folder, clips=6, seconds=6) -> Path:
    pattern_video(folder / "a.mp4", seconds=seconds)
    pattern_video(folder / "b.mp4", seconds=seconds)
    step = seconds / (clips // 2)
    rows = [
        {"clip_id": f"{name}{i}", "source_id": name, "video": f"{name}.mp4", "start": i * step, "end": (i + 1) * step,
         "caption": f"part {i} of {name}", "license": {"a": "CC-BY | 4.0"}.get(name), "attribution": f"by {name}"}
        for name in "ab" for i in range(clips // 2)
    ]  # fmt: skip
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "clips.jsonl"


def test_how_the_work_is_done_does_not_change_the_bytes(tmp_path):
    catalog = small_catalog(tmp_path)
    assert run(catalog, tmp_path / "calm") == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for video in tmp_path.glob("*.mp4"):
        video.rename(elsewhere / video.name)
    moved = elsewhere / "clips.jsonl"
    moved.write_text("".join(reversed(catalog.read_text().splitlines(keepends=True))))
    assert run(moved, tmp_path / "out", "--frames.timeout_seconds", 60, "--compress.batch_size", 3) == 0
    assert tars(tmp_path / "out") == tars(tmp_path / "calm")
    assert run(moved, tmp_path / "calm") == 0 and account(tmp_path / "calm")["rows"]["this_run"] == 0
    assert {sample["video"] for sample in samples(tmp_path / "out", "short")} == {"a.mp4", "b.mp4"}
    card = (tmp_path / "out/README.md").read_text()
    assert "| CC-BY \\| 4.0 | 3 |" in card and "| not stated | 3 |" in card
    [clip] = {
        json.dumps([c.get("license"), c["attribution"]])
        for s in samples(tmp_path / "out", "long")
        for c in s["clips"]
        if c["video"] == "a.mp4"
    }
    assert clip == '["CC-BY | 4.0", "by a"]'


def test_mp4_goes_through_the_whole_job(tmp_path):
    """What such samples hold is held in tests/unit/test_extract_policies.py."""
    catalog, output = small_catalog(tmp_path), tmp_path / "out"
    assert run(catalog, output, "--frames.format", "mp4") == 0 and validate(str(output)) == []
    dataset = reader.open_dataset(str(output))
    [shard, *_] = dataset.select(granularity="long")
    _, members = next(reader.iter_shard(dataset.shard_url(shard)))
    assert set(members) == {"json", "txt", "summary.txt", "mp4"}
    assert len(dataset.select(granularity="short")) == 2


def test_video2datasets_tars_are_expanded_in_place(tmp_path):
    for name in "ab":
        pattern_video(tmp_path / f"{name}.mp4", seconds=2)
    jpeg = simplejpeg.encode_jpeg(np.full((48, 64, 3), 200, np.uint8))
    streams = {"000000_00000": (tmp_path / "a.mp4").read_bytes(), "000000_00001": (tmp_path / "b.mp4").read_bytes()}
    streams |= {"000001": jpeg, "000002": b"no video" * 1000}
    with webdataset.TarWriter(str(tmp_path / "00000.tar")) as tar:
        for key, data in streams.items():
            meta = json.dumps({"key": key, "caption": f"this is {key}", "status": "success"})
            tar.write({"__key__": key, "mp4": data, "txt": f"this is {key}", "json": meta})
    assert run(tmp_path / "*.tar", tmp_path / "out") == 0
    assert ledger(tmp_path / "out") == {"000002": ("extract", "not_a_video")}
    short = {sample["clip_id"]: sample for sample in samples(tmp_path / "out", "short")}
    assert short.keys() == {"000000_00000", "000000_00001", "000001"}
    assert short["000000_00001"]["end_ms"] == 2000 and short["000001"]["frame_ms"] == [0] * 8
    [long] = samples(tmp_path / "out", "long")
    assert long["text"] == "this is 000000_00000. this is 000000_00001."
    assert validate(str(tmp_path / "out")) == []


def test_retry_failed_takes_in_a_video_that_came_back(tmp_path):
    catalog = small_catalog(tmp_path)
    assert run(catalog, tmp_path / "calm") == 0
    (tmp_path / "b.mp4").rename(tmp_path / "away.mp4")
    assert run(catalog, tmp_path / "out") == 0
    assert ledger(tmp_path / "out") == {f"b{i}": ("extract", "missing_file") for i in range(3)}
    (tmp_path / "away.mp4").rename(tmp_path / "b.mp4")
    assert run(catalog, tmp_path / "out") == 0 and len(ledger(tmp_path / "out")) == 3
    assert run(catalog, tmp_path / "out", "--retry_failed", "true") == 0
    assert ledger(tmp_path / "out") == {} and validate(str(tmp_path / "out")) == []
    assert tars(tmp_path / "out") == tars(tmp_path / "calm")


def test_rows_stay_pending_while_the_output_refuses_them(tmp_path):
    """A file lies where the folder of long samples should be: extraction is kept, the rows wait."""
    catalog, output = small_catalog(tmp_path), tmp_path / "out"
    (output / "train").mkdir(parents=True)
    (output / "train/long").touch()
    assert run(catalog, output) == 1
    assert account(output)["rows"]["pending"] == 2 and samples(output, "short") == []
    (output / "train/long").unlink()
    before = {f: f.stat().st_mtime_ns for f in output.rglob("short/*.tar")}
    assert run(catalog, output) == 0
    assert account(output)["rows"] == {"committed": 2, "this_run": 2, "pending": 0}
    assert {f: f.stat().st_mtime_ns for f in output.rglob("short/*.tar")} == before
    assert validate(str(output)) == []


def test_granularities_can_be_left_out(tmp_path):
    catalog, output = small_catalog(tmp_path), tmp_path / "out"
    assert run(catalog, output, "--output.granularities", "[image]") == 0
    assert (len(samples(output, "image")), samples(output, "short"), samples(output, "long")) == (6, [], [])
    assert validate(str(output)) == []


def test_dry_run_counts_and_writes_nothing(tmp_path, capsys):
    catalog = small_catalog(tmp_path)
    (tmp_path / "b.mp4").unlink()
    assert run(catalog, tmp_path / "out", "--dry_run", "true") == 0
    out = capsys.readouterr().out
    assert "2 groups, 2 rows" in out and [line.split()[:2] for line in out.splitlines()[1:4]] == [
        ["short", "6"], ["long", "2"], ["image", "6"],
    ]  # fmt: skip
    assert "estimated from 6 clips" in out and "3 failed (missing_file)" in out
    assert not (tmp_path / "out").exists()


def test_dry_run_estimates_what_a_run_makes(footage, shared_data, tmp_path, capsys):
    """The footage has fewer clips than the sample, so that nothing is left to chance."""
    assert run(shared_data / "footage/clips.jsonl", tmp_path / "out", "--dry_run", "true") == 0
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    for granularity, cell in account(footage)["granularities"].items():
        hours, megabytes = float(lines[granularity][4]), float(lines[granularity][6])
        assert hours == pytest.approx(cell["duration_ms"] / 3_600_000, abs=0.006)
        assert megabytes == pytest.approx(cell["bytes"] / 1e6, rel=0.05, abs=0.06)


def test_a_second_run_on_the_same_output_is_refused(tmp_path, capsys):
    import fcntl

    catalog, output = small_catalog(tmp_path), tmp_path / "out"
    output.mkdir()
    with open(output / ".expand.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run(catalog, output) == 2
    assert "another run is writing" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--frames.per_clop", "4"], "frames.per_clop"),
        (["--frames.per_clip", "four"], "frames.per_clip"),
        (["--frames.per_clip", "0"], "frames.per_clip is 0"),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml"),
        (["--output.path", "out"], "input.path is missing"),
        (["--input.path", "clips.jsonl"], "output.path is missing"),
        (["--input.path", "/nowhere.jsonl", "--output.path", "out"], "/nowhere.jsonl"),
        (["--output.granularities", "[long]"], "output.granularities: long"),
        (["--frames.per_long", "4"], "frames.per_long is 4"),
    ],
)
def test_what_is_wrong_with_the_config_is_one_line(tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    if says.startswith(("output.gran", "frames.per_long")):
        arguments = ["--input.path", str(small_catalog(tmp_path)), "--output.path", "out", *arguments]
    assert expand.main(arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and says in errors[0]
    assert not (tmp_path / "out").exists()


def test_a_job_refuses_an_output_that_would_vanish_with_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert expand.main(["--input.path", "clips.jsonl", "--output.path", "out"]) == 2
    assert "absolute path" in capsys.readouterr().err


def test_another_dataset_is_not_written_into(footage, shared_data, tmp_path, capsys):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    shutil.copy(footage / "manifest.json", foreign)
    assert run(shared_data / "footage/clips.jsonl", foreign) == 2
    assert "did not make" in capsys.readouterr().err
