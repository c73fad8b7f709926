"""Public captioned sets in their own files, as `input.format` reads them: one clip schema out."""

import json
from pathlib import Path

import polars as pl
import pytest

from gex_pipeline import catalog
from gex_pipeline.config import ExpandConfig
from shards.errors import UserError

REAL = Path(__file__).parents[2] / "../shared/data/annotations"
needs_real_files = pytest.mark.skipif(not REAL.exists(), reason="../shared/data/annotations is not here")


def load(path, format, videos, **more):
    config = ExpandConfig()
    config.input.path, config.input.format, config.input.video_root = str(path), format, videos and str(videos)
    for key, value in more.items():
        setattr(config.input, key, value)
    clips, ledger, counts = catalog.load(config)
    assert counts["rows_in"] == sum(counts[name] for name in ("filtered", "duplicates", "ledger", "clips"))
    return pl.from_arrow(clips).sort("source_id", "start_ms", "end_ms"), pl.from_arrow(ledger)


@needs_real_files
@pytest.mark.parametrize(
    "file, format, clips, bad, videos",
    [
        ("activitynet/train_modified.json", "activitynet", 37_419, 2, 10_009),  # two sentences last no time
        ("activitynet/val_1.json", "activitynet", 17_505, 0, 4_917),
        ("youcook2/yc2_val.json", "youcook2", 3_492, 0, 457),
    ],
)
def test_timed_sentences_are_clips_of_their_video(tmp_path, file, format, clips, bad, videos):
    (tmp_path / "v_uqiMw7tQ1Cc.mkv").write_bytes(b"")
    table, ledger = load(REAL / file, format, tmp_path)
    assert (table.height, ledger.height, table["source_id"].n_unique()) == (clips, bad, videos)
    assert set(ledger["kind"]) <= {"end_before_start"}
    if "val_1" in file:
        one = table.filter(source_id="uqiMw7tQ1Cc")
        assert one["video"].to_list() == ["v_uqiMw7tQ1Cc.mkv"] * 2
        assert one.select("start_ms", "end_ms", "caption").row(0) == (280, 55150, "A weight lifting tutorial is given.")
        assert table.filter(source_id="bXdq2zI1Ms0")["video"][0] == "bXdq2zI1Ms0.mp4"


@needs_real_files
def test_webvid(tmp_path):
    (tmp_path / "027701_027750").mkdir()
    (tmp_path / "027701_027750" / "1053841541.mp4").write_bytes(b"")
    table, ledger = load(REAL / "webvid/test_webvid.csv", "webvid", tmp_path)
    assert (table.height, ledger.height) == (20, 0)
    row = table.filter(clip_id="1053841541").to_dicts()[0]
    assert (row["video"], row["duration_ms"]) == ("027701_027750/1053841541.mp4", 17_000)
    assert row["caption"].startswith("Travel blogger shoot a story") and json.loads(row["extra"])["page_idx"] == 27732
    assert table["duration_ms"].max() == 60_000


INTERNVID = {"YoutubeID": "-a_bcdefghi", "Caption": "a dog", "UMT_Score": 0.4, "Aesthetic_Score": 4.5}


def test_internvid(tmp_path):
    times = [("00:00:01.500", "00:00:13.9996"), ("01:00:00.000", "01:00:02.250")]
    rows = [INTERNVID | {"Start_timestamp": start, "End_timestamp": end} for start, end in times]
    rows.append(rows[0] | {"YoutubeID": "other", "UMT_Score": 0.2})
    (tmp_path / "flt.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "-a_bcdefghi.webm").write_bytes(b"")
    table, _ = load(tmp_path / "flt.jsonl", "internvid", tmp_path, filter="UMT_Score > 0.3")
    assert table.select("clip_id", "start_ms", "end_ms").rows() == [
        ("-a_bcdefghi_00:00:01.500_00:00:13.9996", 1_500, 14_000),
        ("-a_bcdefghi_01:00:00.000_01:00:02.250", 3_600_000, 3_602_250),
    ]
    assert set(table["video"]) == {"-a_bcdefghi.webm"}
    assert json.loads(table["extra"][0]) == {"Aesthetic_Score": 4.5, "UMT_Score": 0.4}


def test_ids_and_durations_may_be_numbers(tmp_path):
    row = INTERNVID | {"YoutubeID": 12345, "Start_timestamp": "00:00:01.000", "End_timestamp": "00:00:02.000"}
    (tmp_path / "i.jsonl").write_text(json.dumps(row))
    (tmp_path / "w.jsonl").write_text(json.dumps({"videoid": 12345, "name": "a dog", "duration": 17}))
    table, _ = load(tmp_path / "i.jsonl", "internvid", tmp_path)
    assert table.select("clip_id", "video").row(0) == ("12345_00:00:01.000_00:00:02.000", "12345.mp4")
    table, _ = load(tmp_path / "w.jsonl", "webvid", tmp_path)
    assert table.select("video", "duration_ms").row(0) == ("12345.mp4", 17_000)


@pytest.mark.parametrize("text, message", [("{}", "a.json: no timed sentence in it"), ("[" * 100_000, "a.json: not JSON: ")])
def test_a_file_without_sentences_is_one_line(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "a.json", "activitynet", tmp_path)


def test_wrong_use_is_one_line(tmp_path):
    (tmp_path / "n.jsonl").write_text('{"videoid": ["a"], "name": "x", "duration": 2}')
    with pytest.raises(UserError, match="n.jsonl: column 'videoid' holds values of type List"):
        load(tmp_path / "n.jsonl", "webvid", tmp_path)
    (tmp_path / "x.jsonl").write_text('{"YoutubeID": "a"}')
    with pytest.raises(UserError, match="x.jsonl: no column 'Start_timestamp'; it has YoutubeID"):
        load(tmp_path / "x.jsonl", "internvid", tmp_path)
    (tmp_path / "a.json").write_text('{"v_a": {"duration": 2, "timestamps": [[0, 1]], "sentences": ["x"]}}')
    with pytest.raises(UserError, match="input.video_root is not set: activitynet names its videos by id"):
        load(tmp_path / "a.json", "activitynet", None)
