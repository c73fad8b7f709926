"""Anybody's WebDataset tars as a dataset: found, sorted into splits and granularities, indexed once."""

import json
import os
import shutil
from pathlib import Path

import fsspec
import http_files
import numpy as np
import pytest
import simplejpeg
import torch
import webdataset
from make_dataset import make_dataset

from shards import plain
from shards.errors import DatasetError, UserError
from shards.mp4 import Encoder
from shards.plain import open_data
from shards.reader import iter_shard
from trainer.data_config import DataConfig, StreamConfig
from trainer.decode import Recipe, decode_sample
from trainer.stream import Streams

JPEG = simplejpeg.encode_jpeg(np.full((40, 48, 3), 90, np.uint8))


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory, monkeypatch):
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


def write(path: Path, samples: int, members: dict[str, bytes], first: int = 0) -> None:
    """A tar as webdataset's own writer makes it, with extended headers and modification times."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as tar:
        for number in range(first, first + samples):
            tar.write({"__key__": f"{number:08d}", **members})


def image(caption="a red ball") -> dict[str, bytes]:
    """As img2dataset writes one."""
    return {"jpg": JPEG, "txt": caption.encode(), "json": json.dumps({"caption": caption, "url": "u"}).encode()}


def film(frames=6) -> dict[str, bytes]:
    """As video2dataset writes one."""
    encoder = Encoder(crf=18)
    for number in range(frames):
        encoder.write(np.full((48, 64, 3), 30 * number, np.uint8), 40 * number)
    return {"mp4": encoder.close(), "txt": b"it gets brighter", "json": b'{"caption": "it gets brighter", "videoID": "7"}'}


def no_tokens(texts: list[str]) -> torch.Tensor:
    return torch.zeros(len(texts), 4, dtype=torch.int64)


def test_folders_say_split_and_granularity_and_otherwise_the_first_sample_does(tmp_path):
    write(tmp_path / "00000.tar", 3, image())
    write(tmp_path / "films/00000.tar", 2, film())
    write(tmp_path / "validation/00000.tar", 1, image())
    write(tmp_path / "val/long/00000.tar", 2, film())
    write(tmp_path / "summed/0.tar", 2, {"txt": b"a. b.", "summary.txt": b"a", "000.jpg": JPEG, "001.jpg": JPEG})
    write(tmp_path / ".hidden/0.tar", 2, image())
    dataset = open_data(str(tmp_path))
    assert {(s.path, s.split, s.granularity, s.samples) for s in dataset.shards} == {
        ("00000.tar", "train", "image", 3),
        ("films/00000.tar", "train", "short", 2),
        ("validation/00000.tar", "val", "image", 1),
        ("val/long/00000.tar", "val", "long", 2),
        ("summed/0.tar", "train", "long", 2),
    }


def test_a_sidecar_finds_every_sample(tmp_path):
    write(tmp_path / "a.tar", 5, image())
    dataset = open_data(f"{tmp_path}/a.tar")
    (shard,) = dataset.shards
    lines = dataset.sidecar(shard).to_pylist()
    for line, (key, members) in zip(lines, iter_shard(dataset.shard_url(shard)), strict=True):
        assert (line["key"], line["sample_id"], line["status"]) == (key, key, "ok")
        assert {name: bytes(data) for name, data in dataset.read_sample(shard, line).items()} == members


@pytest.mark.parametrize(
    "pattern, paths",
    [
        ("{root}/*/00001.tar", ["a/00001.tar", "b/00001.tar"]),
        ("{root}/a/{{00000..00001}}.tar", ["00000.tar", "00001.tar"]),
        ("{root}/{{a,b}}/0000[0].tar", ["a/00000.tar", "b/00000.tar"]),
        ("{root}/b", ["00000.tar", "00001.tar"]),
        ("{root}/b/00001.tar", ["00001.tar"]),
    ],
)
def test_patterns_name_tars_as_other_tools_do(tmp_path, pattern, paths):
    for folder in "ab":
        for number in range(2):
            write(tmp_path / folder / f"0000{number}.tar", 1, image())
    remote = f"memory://plain-{tmp_path.name}"
    fsspec.filesystem("memory").put(str(tmp_path), remote, recursive=True)
    for root in (str(tmp_path), remote):
        dataset = open_data(pattern.format(root=root))
        assert [shard.path for shard in dataset.shards] == paths
        assert all(len(list(iter_shard(dataset.shard_url(shard)))) == 1 for shard in dataset.shards)


@pytest.mark.parametrize("name", ["data[v2]", "data{a,b}", "what?", "all*"])
def test_what_exists_is_no_pattern_whatever_its_name(tmp_path, name):
    make_dataset(tmp_path / name / "published", shorts={"train": 4}, longs={})
    write(tmp_path / name / "a.tar", 1, image())
    remote = f"memory://literal-{tmp_path.name}"
    fsspec.filesystem("memory").put(str(tmp_path), remote, recursive=True)
    for root in (f"{tmp_path}/{name}", f"{remote}/{name}"):
        assert "counts" in open_data(f"{root}/published").manifest
        for url in (f"{root}/a.tar", f"{root}/published/train/short"):
            dataset = open_data(url)
            assert all(len(list(iter_shard(dataset.shard_url(shard)))) == shard.samples for shard in dataset.shards)


def test_a_tar_is_scanned_once_until_it_changes(tmp_path, own_home, monkeypatch):
    scanned = []
    real = plain.index_tar
    monkeypatch.setattr(plain, "index_tar", lambda url, **more: scanned.append(url) or real(url, **more))
    write(tmp_path / "a.tar", 3, image())
    digests = [open_data(str(tmp_path)).manifest["digest"] for _ in range(2)]
    assert len(scanned) == 1 and digests[0] == digests[1]
    assert sorted(os.listdir(tmp_path)) == ["a.tar", "a.tar.index.parquet"] and not os.listdir(own_home)
    write(tmp_path / "a.tar", 4, image())
    changed = open_data(str(tmp_path))
    assert changed.shards[0].samples == 4 and len(scanned) == 2
    assert changed.manifest["digest"] != digests[0]
    moved = shutil.copytree(tmp_path, tmp_path.with_name("moved"))
    assert open_data(str(moved)).manifest["digest"] == changed.manifest["digest"]


def test_a_corrected_caption_is_another_dataset_and_a_copy_is_the_same(tmp_path):
    for name, caption in {"old": "a red ball", "new": "a sad bull"}.items():
        write(tmp_path / name / "a.tar", 3, image(caption))
    sizes = {path.stat().st_size for path in tmp_path.glob("*/a.tar")}
    shutil.copy(tmp_path / "old/a.tar", tmp_path / "copy.tar")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy.tar").rename(tmp_path / "copy/a.tar")
    os.utime(tmp_path / "copy/a.tar", (1, 1))
    old, new, copy = (open_data(str(tmp_path / name)) for name in ("old", "new", "copy"))
    assert len(sizes) == 1 and old.manifest["digest"] == copy.manifest["digest"] != new.manifest["digest"]
    assert old.shards[0].sha256 != copy.shards[0].sha256  # which names cached pages


@pytest.mark.parametrize("header", [None, "ETag", "Last-Modified"])
def test_a_tar_rewritten_on_a_web_server_is_read_anew(tmp_path, header):
    """Of the same size: first with other captions in the same places, then in another order."""
    settings = {"size": 32, "workers": 0, "cache_dir": str(tmp_path / "pages"), "crop": "centre"}
    config = {"it": StreamConfig("image", ["caption"], {"video": 0, "caption": 1}, frames=1, batch=2)}
    with http_files.serve() as (server, root):
        for second, names in enumerate(("ab", "ab", "ba")):
            path, time = tmp_path / "a.tar", f"Mon, 01 Jan 2024 00:00:0{second} GMT"
            with webdataset.TarWriter(str(path), mtime=0) as tar:
                for name in names:
                    tar.write({"__key__": name, **image(f"{name} as of second {second}")})
            server.files["a.tar"], server.headers = path.read_bytes(), {header: time} if header else {}
            with Streams([open_data(f"{root}/a.tar")], config, DataConfig(**settings), 0, 0, 1, no_tokens) as streams:
                (batch,) = streams.batches(0, 1)
            assert not streams.failures
            assert sorted(batch.sentences["caption"]) == [[f"{name} as of second {second}"] for name in "ab"]


@pytest.mark.parametrize(
    "fault, size, reason",
    [
        ("whole", 100, "sends whole files where a part is asked for; serve it by"),
        ("whole", 6_000_000, "sends whole files where a part is asked for; serve it by"),
        ("cut", 100, "cannot read the tar: .*; try again"),
    ],
)
def test_a_web_server_that_sends_something_else_is_one_line(tmp_path, fault, size, reason):
    write(tmp_path / "a.tar", 2, {**image(), "bin": bytes(size)})
    config = {"it": StreamConfig("image", ["caption"], {"video": 0, "caption": 1}, frames=1, batch=2)}
    with http_files.serve() as (server, root):
        server.files["a.tar"], server.faults["a.tar"] = (tmp_path / "a.tar").read_bytes(), [fault]
        with pytest.raises(UserError, match=f"^{root}/a.tar: .*{reason}") as caught:
            data = open_data(f"{root}/a.tar")
            with Streams([data], config, DataConfig(size=32, workers=1), 0, 0, 1, no_tokens) as streams:
                list(streams.batches(0, 1))
        assert "\n" not in str(caught.value)


def test_pages_of_a_picture_changed_in_place_are_not_used_where_the_store_tells(tmp_path):
    write(tmp_path / "a.tar", 1, image())
    with http_files.serve() as (server, root):
        server.files["a.tar"], names = (tmp_path / "a.tar").read_bytes(), set()
        for tag in "ab":
            server.headers = {"ETag": tag}
            names.add(open_data(f"{root}/a.tar").shards[0].sha256)
        assert len(names) == 2


def test_where_nothing_can_be_written_the_index_goes_home_or_nowhere(tmp_path, own_home, monkeypatch):
    write(tmp_path / "a.tar", 3, image())
    real = plain.storage.write_bytes_atomic

    def read_only(url, data, allowed=()):
        if not url.startswith(tuple(allowed)):
            raise PermissionError(13, "Permission denied")
        real(url, data)

    monkeypatch.setattr(plain.storage, "write_bytes_atomic", lambda url, data: read_only(url, data, [str(own_home)]))
    assert open_data(str(tmp_path)).shards[0].samples == 3
    assert len(list(own_home.rglob("*.parquet"))) == 1 and os.listdir(tmp_path) == ["a.tar"]
    monkeypatch.setattr(plain, "index_tar", None)
    assert open_data(str(tmp_path)).shards[0].samples == 3
    monkeypatch.undo()
    monkeypatch.setattr(plain.storage, "write_bytes_atomic", read_only)
    assert open_data(str(tmp_path)).shards[0].samples == 3


def test_of_a_cut_tar_the_samples_before_the_cut_are_used_and_it_is_said(tmp_path, caplog):
    write(tmp_path / "a.tar", 4, image())
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data[: len(data) // 2])
    assert open_data(str(tmp_path)).shards[0].samples in (1, 2)
    assert "a.tar: truncated at byte" in caplog.text


def test_what_is_no_data_is_refused_by_name(tmp_path):
    (tmp_path / "empty").mkdir()
    for url in (tmp_path / "empty", tmp_path / "nowhere", tmp_path / "nowhere.tar", tmp_path / "*.tar"):
        with pytest.raises(DatasetError, match="no published dataset here .manifest.json is missing., and no tar files"):
            open_data(str(url))
    (tmp_path / "noise.tar").write_bytes(bytes(range(256)) * 8)
    for url, reason in (("noise.tar", "no samples in its 1 tar"), ("{a", "Unbalanced braces"), ("s3x://b/*.tar", "s3x")):
        with pytest.raises(UserError, match=reason):
            open_data(url if "://" in url else f"{tmp_path}/{url}")
    (tmp_path / "noise.tar").unlink()
    make_dataset(tmp_path / "unfinished", shorts={"train": 4}, longs={})
    (tmp_path / "unfinished/manifest.json").unlink()
    with pytest.raises(DatasetError, match="manifest.json is missing"):
        open_data(str(tmp_path / "unfinished"))


@pytest.mark.parametrize(
    "members, granularity, frames, caption",
    [
        (image(), "image", 1, "a red ball"),
        ({"jpeg": JPEG, "txt": b"no json"}, "image", 1, "no json"),
        ({"jpg": JPEG, "json": b'{"caption": "only there"}'}, "image", 1, "only there"),
        (film(), "short", 3, "it gets brighter"),
        (film(2), "short", 2, "it gets brighter"),
        ({**film(), "jpg": JPEG}, "image", 1, "it gets brighter"),
    ],
)
def test_samples_of_other_writers_decode(tmp_path, members, granularity, frames, caption):
    write(tmp_path / "a.tar", 1, members, first=5)
    dataset = open_data(str(tmp_path))
    line = dataset.sidecar(dataset.shards[0]).to_pylist()[0]
    data = (tmp_path / "a.tar").read_bytes()[line["offset"] : line["offset"] + line["size"]]
    recipe = Recipe(granularity, ("caption",), 3, 32, False, False, seed=0)
    out = np.empty((3, 32, 32, 3), np.uint8)
    decoded = decode_sample(data, recipe, 0, out)
    assert (decoded.sample_id, decoded.frames, decoded.sentences) == ("00000005", frames, {"caption": [caption]})
    shown = [round(float(frame.mean()) / 30) for frame in out[: decoded.frames]]
    expected = {3: [0, 2, 4], 2: [0, 1], 1: [3]}[frames]
    assert shown == expected and not out[frames:].any()
