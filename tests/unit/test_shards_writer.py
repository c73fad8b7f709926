"""What is written is read back by every reader, is the same bytes every time, and is never seen half."""

import hashlib
import io
import os
import random
import resource
import signal
import subprocess
import sys
import tarfile
import time
import uuid
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import format, publish, reader, storage
from shards.tar import scan
from shards.writer import ShardWriter

FRAME = b"\xff\xd8 stands for a JPEG \xff\xd9"

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
blobs = st.binary(max_size=1600)


@st.composite
def samples(draw, granularity: str) -> dict:
    count = 1 if granularity == format.IMAGE else draw(st.integers(1, 4))
    views = list(format.TEXT_VIEWS[granularity])
    fields = {field: None for field in format.json_fields(granularity)}
    extra = draw(st.dictionaries(st.text(max_size=8).filter(lambda k: k not in format.RESERVED_FIELDS), texts, max_size=2))
    return {
        "sample_id": draw(st.uuids()).hex[:16],
        "source_id": draw(texts),
        "clip_ids": draw(st.lists(texts, min_size=1, max_size=3)),
        "meta": {**fields, **extra, "frame_ms": list(range(count)), "sentences": {}},
        "texts": {view: draw(texts) for view in views},
        "frames": [draw(blobs) for _ in range(count)],
        "duration_ms": draw(st.integers(0, 10**9)),
        "decoder": "none",
    }


shards = st.sampled_from(format.GRANULARITIES).flatmap(
    lambda granularity: st.tuples(st.just(granularity), st.lists(samples(granularity), min_size=1, max_size=5))
)


def sample(**changes) -> dict:
    fields = {field: None for field in format.json_fields(format.SHORT)}
    given = {
        "sample_id": "00",
        "source_id": "source",
        "clip_ids": ["clip"],
        "meta": {**fields, "frame_ms": [0], "sentences": {"caption": ["a text"]}},
        "texts": {"caption": "a text"},
        "frames": [FRAME],
        "duration_ms": 1000,
        "decoder": "none",
    }
    return {**given, **changes}


def write(root, granularity, row, contents) -> tuple[dict, list[str]]:
    with ShardWriter(str(root), "train", granularity, row) as writer:
        keys = [writer.add(**content) for content in contents]
        return writer.close(), keys


def expected_members(granularity: str, content: dict) -> dict[str, bytes]:
    names = ["jpg"] if granularity == format.IMAGE else [f"{i:03d}.jpg" for i in range(len(content["frames"]))]
    views = format.TEXT_VIEWS[granularity].items()
    return {**{name: content["texts"][view].encode() for view, name in views}, **dict(zip(names, content["frames"]))}


@settings(max_examples=40, deadline=None)
@given(shard=shards, row=st.integers(0, 123_456))
def test_every_reader_reads_back_what_was_written(tmp_path_factory, shard, row):
    granularity, contents = shard
    root = tmp_path_factory.mktemp("dataset")
    record, keys = write(root, granularity, row, contents)
    url = str(root / record["path"])
    expected = {key: expected_members(granularity, content) for key, content in zip(keys, contents)}

    def texts_and_frames(found):
        return {key: {k: bytes(v) for k, v in fields.items() if k != "json"} for key, fields in found}

    assert texts_and_frames(reader.iter_shard(url)) == expected
    sidecar = pq.read_table(format.sidecar_path(url)).to_pylist()
    assert texts_and_frames(by_offsets(url, sidecar)) == expected
    assert texts_and_frames(by_tarfile(url)) == expected
    plain = webdataset.WebDataset(url, shardshuffle=False)
    assert texts_and_frames((s["__key__"], {k: v for k, v in s.items() if k[:2] != "__"}) for s in plain) == expected

    for content, line, (_, fields) in zip(contents, sidecar, reader.iter_shard(url), strict=True):
        assert list(fields) == format.expected_members(granularity, len(content["frames"]))
        assert (line["sample_id"], line["clip_ids"]) == (content["sample_id"], content["clip_ids"])
        assert line["frames"] == len(content["frames"])
    assert record["samples"] == len(contents)
    assert record["bytes"] == os.path.getsize(url)
    assert record["sha256"] == hashlib.sha256(Path(url).read_bytes()).hexdigest()
    assert record["duration_ms"] == sum(content["duration_ms"] for content in contents)


def by_offsets(url, sidecar):
    for line in sidecar:
        ((key, fields),) = reader.group_samples(reader.parse_members(storage.read_range(url, line["offset"], line["size"])))
        assert key == line["key"] and len(fields) == line["members"]
        yield key, fields


def by_tarfile(url):
    with tarfile.open(url) as archive:
        yield from reader.group_samples((info.name, archive.extractfile(info).read()) for info in archive)


@settings(max_examples=20, deadline=None)
@given(shard=shards)
def test_the_index_of_a_tar_equals_its_sidecar(tmp_path_factory, shard):
    granularity, contents = shard
    root = tmp_path_factory.mktemp("dataset")
    record, _ = write(root, granularity, 3, contents)
    url = str(root / record["path"])
    assert reader.index_tar(url).equals(pq.read_table(format.sidecar_path(url)).select(reader.INDEX_SCHEMA.names))


@settings(max_examples=15, deadline=None)
@given(shard=shards)
def test_equal_samples_give_equal_bytes_wherever_they_are_written(tmp_path_factory, shard):
    granularity, contents = shard
    first, second = (tmp_path_factory.mktemp("dataset") for _ in range(2))
    remote = f"memory://{uuid.uuid4().hex}"
    reversed_meta = [{**c, "meta": dict(reversed(c["meta"].items()))} for c in contents]
    records = [
        write(root, granularity, 7, c)[0] for root, c in ((first, contents), (second, reversed_meta), (remote, contents))
    ]
    assert records[0] == records[1] == records[2]
    for path in (records[0]["path"], format.sidecar_path(records[0]["path"])):
        assert (first / path).read_bytes() == (second / path).read_bytes() == storage.read_bytes(f"{remote}/{path}")


def test_a_tar_of_a_committed_row_is_not_replaced(tmp_path):
    """A writer that was overtaken by another run gives way and leaves nothing behind."""
    write(tmp_path, format.SHORT, 3, [sample()])
    publish.write_commit(str(tmp_path), 3, {"row": 3, "shards": {}})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match="its row was committed meanwhile"):
        write(tmp_path, format.SHORT, 3, [sample(), sample()])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_headers_hold_no_time_and_no_user(tmp_path):
    record, _ = write(tmp_path, format.SHORT, 0, [sample()])
    with tarfile.open(tmp_path / record["path"]) as archive:
        for info in archive:
            assert (info.mtime, info.uid, info.gid, info.mode, info.uname, info.gname) == (0, 0, 0, 0o644, "", "")
    assert (tmp_path / record["path"]).read_bytes().endswith(bytes(1024))


def test_a_failed_sample_is_a_line_of_the_sidecar_and_takes_no_key(tmp_path):
    with ShardWriter(str(tmp_path), "train", format.SHORT, 0) as writer:
        writer.fail(sample_id="f0", source_id="s", clip_ids=["c"], kind="corrupt", error="no frame\n at all")
        assert writer.add(**sample()) == "000000000"
        record = writer.close()
    lines = pq.read_table(tmp_path / format.sidecar_path(record["path"])).to_pylist()
    assert [(line["status"], line["key"], line["kind"], line["error"]) for line in lines] == [
        ("failed", None, "corrupt", "no frame at all"),
        ("ok", "000000000", None, None),
    ]
    assert record["samples"] == 1


def test_a_row_of_failures_publishes_nothing_and_keeps_nothing_of_an_earlier_attempt(tmp_path):
    write(tmp_path, format.SHORT, 0, [sample()])
    with ShardWriter(str(tmp_path), "train", format.SHORT, 0) as writer:
        writer.fail(sample_id="f0", source_id="s", clip_ids=["c"], kind="corrupt", error="no frame")
        assert writer.close() is None
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"frames": []}, "0 frames for 1 timestamps"),
        ({"frames": [FRAME, FRAME]}, "2 frames for 1 timestamps"),
        ({"meta": {"frame_ms": [0], "sentences": {}}}, "json lacks caption, clip_id"),
        ({"texts": {"long": "of another granularity"}}, "texts long, a short sample has caption"),
    ],
)
def test_a_sample_that_the_format_forbids_is_refused_and_leaves_nothing(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message), ShardWriter(str(tmp_path), "train", format.SHORT, 0) as writer:
        writer.add(**sample())
        writer.add(**sample(**changes))
    assert files(tmp_path) == []


def test_a_remote_row_leaves_nothing_in_the_work_folder(tmp_path):
    root = f"memory://{uuid.uuid4().hex}"
    with ShardWriter(root, "train", format.SHORT, 0, work_dir=str(tmp_path)) as writer:
        writer.add(**sample())
        assert len(files(tmp_path)) == 1
        writer.close()
    assert files(tmp_path) == []
    assert storage.list_dir(f"{root}/train/short") == ["00000.parquet", "00000.tar"]


WRITE_ROWS = """
import sys
from shards import format
from shards.writer import ShardWriter
meta = {{field: None for field in format.json_fields("short")}} | {{"frame_ms": [0, 1], "sentences": {{}}}}
for row in range(10_000):
    with ShardWriter({root!r}, "train", "short", row) as writer:
        for index in range(20):
            writer.add(sample_id=str(index), source_id="s", clip_ids=["c"], meta=meta, texts={{"caption": "a text"}},
                       frames=[bytes(20_000)] * 2, duration_ms=1, decoder="none")
        writer.close()
    print(row, flush=True)
"""


def test_kill_9_at_any_moment_leaves_only_whole_shards_under_final_names(tmp_path):
    choose = random.Random(0)
    for attempt in range(5):
        root = tmp_path / f"attempt-{attempt}"
        child = run_writer(WRITE_ROWS, root)
        assert child.stdout.readline() == "0\n"
        time.sleep(choose.uniform(0, 0.05))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        visible = [path for path in files(root) if not path.name.startswith(".")]
        assert visible
        for path in visible:
            rows = reader.index_tar(str(path)) if path.suffix == ".tar" else pq.read_table(path)
            assert len(rows) == 20


def run_writer(script: str, root: Path, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", script.format(root=str(root))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_a_disk_that_fills_up_is_an_error_and_leaves_nothing(tmp_path):
    limit = 500_000
    child = run_writer(WRITE_ROWS, tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 1 and "OSError" in errors
    assert files(tmp_path) == []


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


# --- tars of other writers ---


def test_tars_with_pax_and_gnu_long_names_are_read_and_indexed(tmp_path):
    key = "folder/" + "long-name-" * 12
    for number, tar_format in enumerate((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)):
        name = "folder/short" if tar_format == tarfile.USTAR_FORMAT else key
        path = str(tmp_path / f"{number}.tar")
        with tarfile.open(path, "w", format=tar_format) as archive:
            archive.addfile(directory("folder"))
            for sample_name in ("a", name):
                for extension in ("JPG", "txt"):
                    info = tarfile.TarInfo(f"{sample_name}.{extension}")
                    info.size, info.mtime = 3, 1234.5  # a fraction makes a pax header
                    archive.addfile(info, io.BytesIO(b"abc"))
        expected = {sample_name: {"jpg": b"abc", "txt": b"abc"} for sample_name in ("a", name)}
        assert dict(reader.iter_shard(path)) == expected
        index = reader.index_tar(path).to_pylist()
        assert [(line["key"], line["members"]) for line in index] == [("a", 2), (name, 2)]
        assert {k: {e: bytes(v) for e, v in f.items()} for k, f in by_offsets(path, index)} == expected


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_folders_long_name_stays_its_own(tmp_path, tar_format):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tar_format) as archive:
        archive.addfile(directory("folder" * 20))
        for name in ("0001.jpg", "0001.txt"):
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
    with open(path, "rb") as file:
        assert [member.name for member in scan(file)] == ["0001.jpg", "0001.txt"]
    assert [name for name, _ in reader.parse_members(path.read_bytes())] == ["0001.jpg", "0001.txt"]


def directory(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    return info


@pytest.mark.parametrize("cut", [1, 511, 512, 700, 2000])
def test_a_cut_tar_is_an_error_of_one_line_not_a_shorter_dataset(tmp_path, cut):
    record, _ = write(tmp_path, format.SHORT, 0, [sample(), sample()])
    path = tmp_path / record["path"]
    path.write_bytes(path.read_bytes()[:-1024][:-cut])
    for read in (reader.index_tar, lambda url: list(reader.iter_shard(url))):
        with pytest.raises(reader.DatasetError, match="truncated at byte|no tar header") as caught:
            read(str(path))
        assert "\n" not in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_tars_are_read_or_refused_but_never_hang_or_crash(data):
    whole = bytearray(pax_tar())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255) | st.sampled_from(b"-0 x"))
    for read in (lambda: reader.parse_members(whole), lambda: list(scan(io.BytesIO(whole)))):
        try:
            read()
        except reader.TarError as error:
            assert "\n" not in str(error)


def pax_tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("a.json", "long-" * 30 + ".txt"):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 3, 0.5
            archive.addfile(info, io.BytesIO(b"abc"))
    return out.getvalue()[: 9 * 512]


@given(data=st.binary(max_size=2048))
def test_bytes_that_are_no_tar_are_refused(data):
    if any(data[:512]):
        with pytest.raises(reader.TarError):
            reader.parse_members(data)
