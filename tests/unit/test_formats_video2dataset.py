"""Tars as video2dataset writes them (webdataset's TarWriter, its keys and json fields) -> the one clip schema."""

import json

import polars as pl
import pytest
import webdataset
from http_files import serve
from make_video import pattern_video

from gex_pipeline import catalog, fetch, probe
from gex_pipeline.config import ExpandConfig
from shards import storage
from shards.errors import UserError


def write_tar(path, samples):
    """`samples`: (key, streams {extension: bytes}, caption, further fields of the json)."""
    path.parent.mkdir(exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for key, streams, caption, fields in samples:
            meta = {"url": "https://example.org/x", "caption": caption, "key": key, "status": "success", "error_message": None}
            text = {"txt": "" if caption is None else caption}
            writer.write({"__key__": key, **streams, **text, "json": json.dumps(meta | fields, indent=4)})
    return path


def load(path, **keys):
    config = ExpandConfig()
    config.input.path = str(path)
    for key, value in keys.items():
        setattr(config.input, key, value)
    clips, ledger, counts = catalog.load(config)
    assert counts["rows_in"] == sum(counts[key] for key in ("filtered", "duplicates", "ledger", "clips"))
    return sorted(clips.to_pylist(), key=lambda clip: clip["clip_id"]), ledger.to_pylist(), config


@pytest.fixture(scope="module")
def set_of_tars(tmp_path_factory):
    folder = tmp_path_factory.mktemp("v2d") / "set"
    more = {"yt_meta_dict": {"info": {"id": "x", "fps": 30}}, "views": 3}
    first = [
        ("000000012_00000", {"mp4": b"a" * 70_000}, "a cat", {"clips": [["00:00:01.500", "00:00:04.000"]], **more}),
        ("000000012_00010", {"mp4": b"b" * 1_000}, "a dog", {"clips": [[40.0, 41.25]], "views": "many", "width": 320}),
        ("000000013", {"mp4": b"\xff\xd8jpeg"}, None, {"caption": "a still", "clips": []}),
        ("000000014", {}, "gone", {"status": "failed_to_download", "error_message": "HTTP Error 404"}),
    ]
    write_tar(folder / "00000.tar", first)
    write_tar(folder / "00001.tar", [("000010000", {"mp4": b"c" * 2_000}, "other shard", {"start": 5, "end": 9})])
    return folder


def test_samples_are_clips_whose_videos_are_byte_ranges(set_of_tars):
    clips, ledger, config = load(set_of_tars / "*.tar")
    assert [(c["clip_id"], c["source_id"], c["order"], c["caption"], c["duration_ms"]) for c in clips] == [
        ("000000012_00000", "000000012", 0, "a cat", 2500),
        ("000000012_00010", "000000012", 10, "a dog", 1250),
        ("000000013", "000000013", None, "a still", None),
        ("000010000", "000010000", None, "other shard", None),
    ]
    assert all(c["start_ms"] is None and c["end_ms"] is None for c in clips), "the file is the clip"
    root = catalog.video_root(config.input)
    spans = [fetch.range_of(catalog.located(c["video"], root)) for c in clips]
    assert [storage.read_range(*span)[:6] for span in spans] == [b"aaaaaa", b"bbbbbb", b"\xff\xd8jpeg", b"cccccc"]
    assert [span[2] for span in spans] == [70_000, 1_000, 6, 2_000]
    assert [(line["kind"], line["message"]) for line in ledger] == [
        ("bad_row", f"{set_of_tars}/00000.tar:4: sample 000000014: no video (failed_to_download: HTTP Error 404)")
    ]


def test_the_jsons_fields_pass_through_whatever_their_types(set_of_tars):
    clips, _, _ = load(set_of_tars / "*.tar", columns={"topic": "url"})
    extra = [json.loads(clip["extra"]) for clip in clips]
    assert extra[0]["views"] == "3" and extra[1]["views"] == "many"
    assert json.loads(extra[0]["yt_meta_dict"]) == {"info": {"id": "x", "fps": 30}}
    assert extra[1]["v2d_width"] == 320 and extra[3]["v2d_start"] == 5 and extra[0]["topic"] == "https://example.org/x"
    assert not {"key", "status", "error_message", "caption"} & set().union(*extra)


def test_json_that_no_text_can_hold_costs_a_sample_or_a_sign(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "t.tar")) as tar:
        tar.write(
            {
                "__key__": "0",
                "mp4": b"a",
                "txt": "x",
                "json": b'{"title": "cut \\ud83d", "tags": ["\\ud83d", "\\ud83d\\ude00"]}',
            }
        )
        tar.write({"__key__": "1", "mp4": b"a", "txt": "x", "json": b"[" * 100_000})
    clips, ledger, _ = load(tmp_path / "t.tar")
    assert [json.loads(clip["extra"]) for clip in clips] == [{"title": "cut ?", "tags": '["?", "\U0001f600"]'}]
    assert "t.tar:2: sample 1: maximum recursion depth exceeded" in ledger[0]["message"]


def test_a_cut_tar_costs_what_was_cut(set_of_tars, tmp_path):
    data = (set_of_tars / "00000.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[:74_000])  # inside the second sample
    clips, ledger, _ = load(tmp_path / "cut.tar")
    assert [c["clip_id"] for c in clips] == ["000000012_00000"]
    assert "the tar is damaged here: truncated" in ledger[-1]["message"]
    (tmp_path / "not.tar").write_text("hello" * 1000)
    with pytest.raises(UserError, match="not.tar: cannot read as tar: no tar header at byte 0"):
        load(tmp_path / "not.tar")


def test_remote_tars_are_scanned_by_their_headers(set_of_tars, tmp_path):
    big = write_tar(tmp_path / "big.tar", [(f"{i:09d}", {"mp4": bytes(2_000_000)}, "x", {}) for i in range(4)])
    with serve() as (state, url):
        state.files["big.tar"] = big.read_bytes()
        remote, _, _ = load(f"{url}/big.tar")
        assert remote == load(big)[0]
        assert sum(end - start for _, start, end in state.ranges) < 1_000_000


def test_durations_of_members_are_probed_in_the_tar(tmp_path):
    pattern_video(tmp_path / "v.mp4", seconds=2)
    tar = write_tar(tmp_path / "00000.tar", [("0", {"mp4": (tmp_path / "v.mp4").read_bytes()}, "x", {})] * 1)
    [clip], _, config = load(tar)
    assert probe.file_duration_ms(catalog.located(clip["video"], str(tmp_path)), 30) == 2000


def test_types_of_a_column_are_kept_where_all_agree():
    from gex_pipeline.formats.video2dataset import _column

    kept = {"int": [1, None], "float": [0.5, 1], "bool": [True, None], "str": ["a", "b"], "none": [None, None]}
    types = [_column(name, values).dtype for name, values in kept.items()]
    assert types == [pl.Int64, pl.Float64, pl.Boolean, pl.String, pl.String]
    assert _column("big", [2**70]).to_list() == [str(2**70)] and _column("mixed", [True, 1]).to_list() == ["true", "1"]
