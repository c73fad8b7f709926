"""Any table in, one clip schema out; a bad row costs that row and is told of, and no row is lost."""

import csv
import gzip
import json
import subprocess
from decimal import ROUND_HALF_EVEN, Decimal

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_video import pattern_video

from gex_pipeline import catalog, plan
from gex_pipeline.config import ExpandConfig, InputConfig
from shards.errors import UserError

ROWS = [
    {"clip_id": "a", "source_id": "s", "video": "v/1.mp4", "start": 0.5, "end": 2, "caption": 'a "quoted", cat', "score": 0.9},
    {"clip_id": "b", "source_id": "s", "video": "v/1.mp4", "start": 2, "end": 3.25, "caption": "two\nlines", "score": 0.1},
    {"clip_id": "c", "source_id": "t", "video": "/abs/2.mp4", "start": None, "end": None, "caption": "é", "score": 0.5},
]


def load(path, **keys):
    """Clips as dicts sorted by id, ledger as dicts, counts; keys are input's."""
    config = ExpandConfig()
    config.input.path = str(path)
    for key, value in keys.items():
        setattr(config.input, key, value)
    clips, ledger, counts = catalog.load(config)
    assert clips.schema == catalog.CLIP_SCHEMA
    assert counts["rows_in"] == sum(counts[key] for key in ("filtered", "duplicates", "ledger", "clips"))
    assert (counts["clips"], counts["ledger"]) == (clips.num_rows, ledger.num_rows)
    return sorted(clips.to_pylist(), key=lambda clip: clip["clip_id"]), ledger.to_pylist(), counts


def places(clips, path, video_root=None):
    root = catalog.video_root(InputConfig(path=str(path), video_root=video_root))
    return [catalog.located(clip["video"], root) for clip in clips]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def clip(**fields):
    return {"video": "v.mp4", "start": 0, "end": 1, "caption": "a cat"} | fields


def write_table(path, rows):
    if path.suffix == ".parquet":
        pl.DataFrame(rows).write_parquet(path)
    elif path.suffix in (".csv", ".tsv"):
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    else:
        jsonl(path, rows)
    return path


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.tsv", "t.parquet"])
def test_every_format_gives_the_same_clips(tmp_path, name):
    clips, ledger, _ = load(write_table(tmp_path / name, ROWS))
    assert ledger == []
    assert [(c["start_ms"], c["end_ms"], c["duration_ms"]) for c in clips] == [
        (500, 2000, 1500),
        (2000, 3250, 1250),
        (None,) * 3,
    ]
    assert [c["caption"] for c in clips] == [row["caption"] for row in ROWS]
    assert [c["video"] for c in clips] == ["v/1.mp4", "v/1.mp4", "/abs/2.mp4"]
    assert [json.loads(c["extra"]) for c in clips] == [{"score": row["score"]} for row in ROWS]


def test_compressed_remote_and_globbed_tables_are_read(tmp_path):
    import fsspec

    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(jsonl(tmp_path / "t.jsonl", ROWS).read_bytes()))
    assert load(tmp_path / "t.jsonl.gz")[0] == load(tmp_path / "t.jsonl")[0]
    with fsspec.open("memory://catalogs/in/t.jsonl", "wb") as file:
        file.write((tmp_path / "t.jsonl").read_bytes())
    remote, _, _ = load("memory://catalogs/in/*.jsonl")
    assert remote == load(tmp_path / "t.jsonl")[0], "what is stored does not depend on where the data lies"
    assert places(remote, "memory://catalogs/in/*.jsonl") == ["memory:///catalogs/in/v/1.mp4"] * 2 + ["/abs/2.mp4"]
    assert places(remote, tmp_path / "t.jsonl") == [f"{tmp_path}/v/1.mp4"] * 2 + ["/abs/2.mp4"]
    (tmp_path / "x").mkdir()
    (
        jsonl(tmp_path / "x" / "1.jsonl", ROWS[:1]),
        jsonl(tmp_path / "x" / "2.jsonl", [row | {"score": "high"} for row in ROWS[1:]]),
    )
    clips, _, _ = load(tmp_path / "x" / "*.jsonl", video_root="gs://bucket/videos/")
    there = ["gs://bucket/videos/v/1.mp4"] * 2 + ["/abs/2.mp4"]
    assert places(clips, tmp_path / "x" / "*.jsonl", video_root="gs://bucket/videos/") == there


SECONDS = [
    (13.9996, 14000), ("00:00:13.9996", 14000), ("13.9996", 14000), (0.0005, 0), (0.0015, 2), (1.0015, 1002), (2.0005, 2000),
    ("01:02:03.004", 3_723_004), ("62:03", 3_723_000), ("00:00:01,5", 1500), (" 7 ", 7000), (7, 7000), ("1e1", 10_000),
]  # fmt: skip


@pytest.mark.parametrize("text, expected", SECONDS)
def test_times_are_read_to_the_millisecond(tmp_path, text, expected):
    clips, ledger, _ = load(jsonl(tmp_path / "t.jsonl", [clip(start=text, end=10_000)]))
    assert ledger == [] and clips[0]["start_ms"] == expected


def test_parquets_own_durations_and_times_of_day_are_times(tmp_path):
    from datetime import date, time, timedelta

    given = {"start": timedelta(seconds=5, microseconds=1500), "end": time(0, 1, 9, 500_000)}
    frame = pl.DataFrame([clip(**given), clip(**given | {"start": None})])
    for unit in ("ms", "us", "ns"):
        frame.with_columns(pl.col("start").cast(pl.Duration(unit))).write_parquet(tmp_path / "t.parquet")
        clips, _, _ = load(tmp_path / "t.parquet")
        start = 5001 if unit == "ms" else 5002
        assert {(c["start_ms"], c["end_ms"]) for c in clips} == {(start, 69_500), (None, 69_500)}
    pl.DataFrame([clip(start=date(1970, 1, 2), end=None)]).write_parquet(tmp_path / "t.parquet")
    assert load(tmp_path / "t.parquet")[1][0]["message"].endswith("start is not a time: 1970-01-02")


@given(st.integers(0, 10**11))
@settings(max_examples=200, deadline=None)
def test_microseconds_round_half_to_even_as_decimals_do(micros):
    from gex_pipeline.times import milliseconds

    exact = int((Decimal(micros) / 1000).quantize(Decimal(1), ROUND_HALF_EVEN))
    for value in (micros / 10**6, f"{micros // 10**6}.{micros % 10**6:06d}"):
        frame = pl.DataFrame({"start": [value]})
        assert frame.select(milliseconds(frame.schema, "start")).item() == exact


BAD = [
    (clip(caption=" "), "empty_caption", "caption is empty"),
    (clip(caption=None), "empty_caption", "caption is empty"),
    (clip(video=""), "empty_video", "video is empty"),
    (clip(start=3, end=3), "end_before_start", "end 3000 ms is not after start 3000 ms"),
    (clip(start=None, end=-1), "end_before_start", "not after start 0 ms"),
    (clip(start=-0.5), "negative_start", "-500 ms"),
    (clip(start="soon"), "bad_time", "start is not a time: soon"),
    (clip(end="00:75"), "bad_time", "end is not a time: 00:75"),
    (clip(duration="-"), "bad_time", "duration is not a time: -"),
    (clip(end=None, duration=0), "bad_time", "duration is not positive"),
    (clip(order="first"), "bad_order", "order is not a number: first"),
    (clip(split="../x"), "bad_split", "../x"),
    (clip(split="plan"), "bad_split", "plan"),
]


@pytest.mark.parametrize("row, kind, message", BAD)
def test_a_bad_row_is_a_ledger_line_that_names_its_place(tmp_path, row, kind, message):
    path = jsonl(tmp_path / "t.jsonl", [clip(clip_id="good"), row])
    clips, ledger, counts = load(path)
    assert [c["clip_id"] for c in clips] == ["good"] and counts["ledger"] == 1
    assert (ledger[0]["stage"], ledger[0]["kind"]) == ("catalog", kind)
    assert ledger[0]["message"].startswith(f"{path}:2: ") and message in ledger[0]["message"]


def test_a_label_or_a_question_excuses_a_missing_caption(tmp_path):
    rows = [
        clip(start=0, caption=None, label="dog"),
        clip(start=0.1, caption="", question="who?"),
        clip(start=0.2, caption=None),
    ]
    clips, ledger, _ = load(jsonl(tmp_path / "t.jsonl", rows))
    assert len(clips) == 2 and [row["kind"] for row in ledger] == ["empty_caption"]


@pytest.mark.parametrize("bad", [b'{"video": ', b"[1, 2]", b"3", b'{"video": "\xff"}', b"null", b'{"a": 1} {"b": 2}', b"\x00"])
def test_a_malformed_json_line_costs_that_line(tmp_path, bad):
    good = [json.dumps(clip(clip_id=name)).encode() for name in "abc"]
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + good[0] + b"\r\n\n" + bad + b"\n" + good[1] + b"\n  \n" + good[2])
    clips, ledger, counts = load(path)
    assert [c["clip_id"] for c in clips] == ["a", "b", "c"] and counts["rows_in"] == 4
    assert [row["kind"] for row in ledger] == ["bad_row"] and ledger[0]["message"].startswith(f"{path}:3: not JSON")


def test_a_number_that_json_has_not_is_null(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(
        "".join(json.dumps(clip(start=i, end=9, score=s)) + "\n" for i, s in enumerate([0.5, float("nan"), float("inf")]))
    )
    assert sorted(c["extra"] for c in load(path)[0]) == ['{"score":0.5}', "{}", "{}"]


@pytest.mark.parametrize("bad, reason", [(b"y,0,1,cat,dog", "5 fields"), (b"y,0,1,\xff", "not UTF-8")])
def test_a_malformed_csv_line_costs_that_line(tmp_path, bad, reason):
    path = tmp_path / "t.csv"
    path.write_bytes(b'video,start,end,caption\nx,0,1,"a\nb"\n' + bad + b"\nz,0,,d\n")
    clips, ledger, _ = load(path)
    assert sorted(c["caption"] for c in clips) == ["a\nb", "d"]
    assert ledger[0]["kind"] == "bad_row" and ledger[0]["message"].startswith(f"{path}:4: ") and reason in ledger[0]["message"]


def test_a_repeated_name_is_numbered_with_and_without_a_malformed_line(tmp_path):
    path, header = tmp_path / "t.csv", "video,caption,tag,tag,tag,caf\xe9\n"
    found = []
    for lines in ("v.mp4,a,x,y,z,c\n", "v.mp4,a,x,y,z,c\nv.mp4\n"):
        path.write_bytes((header + lines).encode("latin-1"))
        found.append(json.loads(load(path)[0][0]["extra"]))
    assert found[0] == found[1] == {"tag": "x", "tag_duplicated_0": "y", "tag_duplicated_1": "z", "caf\ufffd": "c"}


def test_csv_keeps_ids_as_they_are_written_and_counts_lines_through_quotes(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('clip_id,video,start,end,caption,zip,score\n007,1.mp4,0,1,"a\nb",010,1\n\n008,2.mp4,5,1,c,,2.5\n')
    clips, ledger, counts = load(path)
    assert clips[0]["clip_id"] == "007" and json.loads(clips[0]["extra"]) == {"zip": "010", "score": 1.0}
    assert ledger[0]["message"].startswith(f"{path}:5: ") and counts["rows_in"] == 2


@pytest.mark.parametrize("ids", [("1.1", "1.10"), ("12345678901234567890", "12345678901234567891"), ("1e3", "1000")])
def test_csv_ids_that_are_equal_as_numbers_are_different_ids(tmp_path, ids):
    path = tmp_path / "t.csv"
    path.write_text("name,video,start,caption,score\n" + "".join(f"{name},{name},1.50,{name},2.5\n" for name in ids))
    clips, _, _ = load(path, columns={"clip_id": "name"}, filter="score > 2")
    assert {(c["clip_id"], c["video"], c["caption"], c["start_ms"]) for c in clips} == {(i, i, i, 1500) for i in ids}


def test_a_filter_counts_what_it_leaves_out(tmp_path):
    clips, _, counts = load(jsonl(tmp_path / "t.jsonl", ROWS), filter="score > 0.3 AND source_id = 's'")
    assert [c["clip_id"] for c in clips] == ["a"] and counts["filtered"] == 2


@pytest.mark.parametrize("bad", ["nothing > 1", "score >", "score", "__import__('os')", "score > 'x'", "(SELECT 1)"])
def test_a_bad_filter_is_one_line_that_names_the_key(tmp_path, bad):
    with pytest.raises(UserError, match=r"^input\.filter: [^\n]*$"):
        load(jsonl(tmp_path / "t.jsonl", ROWS), filter=bad)


def test_columns_are_mapped_and_the_others_pass_through(tmp_path):
    row = {
        "url": "v.mp4",
        "from": 1,
        "to": 2,
        "text": "cat",
        "tags": ["x", {"y": 1}],
        "meta": {"b": 1, "a": 'q"'},
        "none": None,
    }
    mapping = {"video": "url", "start": "from", "end": "to", "caption": "text", "topic": "meta"}
    path = jsonl(tmp_path / "t.jsonl", [row])
    [found], _, _ = load(path, columns=mapping)
    assert (found["start_ms"], found["end_ms"], found["caption"]) == (1000, 2000, "cat")
    extra = json.loads(found["extra"])
    assert extra["topic"] == row["meta"] and "none" not in extra and list(extra) == sorted(extra)
    assert json.loads(load(path, columns=mapping, passthrough=["topic"])[0][0]["extra"]) == {"topic": row["meta"]}
    licensed = jsonl(tmp_path / "l.jsonl", [row | {"Licence": "CC0", "attribution": "me"}])
    kept = json.loads(load(licensed, columns=mapping, passthrough=[])[0][0]["extra"])
    assert kept == {"Licence": "CC0", "attribution": "me"}, "whose a video is travels along, asked for or not"


def test_one_column_can_have_two_names_and_a_mapped_one_takes_the_name_of_another(tmp_path):
    row = clip(url="u.mp4", caption="short", long="a long one", start=1, end=2)
    mapping = {"video": "url", "source_id": "url", "caption": "long"}
    [found], _, _ = load(jsonl(tmp_path / "t.jsonl", [row]), columns=mapping)
    assert (found["video"], found["source_id"], found["caption"]) == ("u.mp4", "u.mp4", "a long one")
    assert found["extra"] == "{}"
    [found], _, _ = load(tmp_path / "t.jsonl", columns=mapping | {"brief": "caption"})
    assert json.loads(found["extra"]) == {"brief": "short"}


def test_passthrough_values_keep_their_type_and_nan_is_null(tmp_path):
    import datetime

    frame = pl.DataFrame([clip(i=3, f=0.5, b=True, n=float("nan"), d=datetime.date(2026, 1, 2), s='\x01"\\é')])
    frame.write_parquet(tmp_path / "t.parquet")
    [found], _, _ = load(tmp_path / "t.parquet")
    assert json.loads(found["extra"]) == {"i": 3, "f": 0.5, "b": True, "d": "2026-01-02", "s": '\x01"\\é'}


def test_ids_and_sources_are_derived_where_missing(tmp_path):
    rows = [clip(start=0), clip(start=0.25), clip(start=0, clip_id="named", source_id="")]
    (tmp_path / "x").mkdir()
    clips, _, _ = load(jsonl(tmp_path / "t.jsonl", rows))
    moved, _, _ = load(jsonl(tmp_path / "x" / "t.jsonl", rows))
    assert len({c["clip_id"] for c in clips}) == 3 and {c["source_id"] for c in clips} == {"v.mp4"}
    assert [c["clip_id"] for c in clips] == [c["clip_id"] for c in moved]
    both, _, counts = load(tmp_path / "**" / "t.jsonl")
    assert counts["duplicates"] == 1, "only the id that is written twice: videos of two folders are two videos"
    assert len({c["source_id"] for c in both}) == 2
    assert set(places(both, tmp_path / "**" / "t.jsonl")) == {f"{tmp_path}/v.mp4", f"{tmp_path}/x/v.mp4"}


def test_duplicates_are_dropped_whatever_the_order_or_refused(tmp_path):
    rows = [clip(clip_id="a", caption=c) for c in ("one", "two", "two")] + [clip(clip_id="b")]
    path = tmp_path / "t.jsonl"
    kept, _, counts = load(jsonl(path, rows))
    assert counts["duplicates"] == 2 and load(jsonl(path, rows[::-1]))[0] == kept
    with pytest.raises(UserError, match="input.duplicates: 1 clip_ids .*'a'"):
        load(path, duplicates="refuse")


def test_captions_and_sentences_are_lists_in_every_format(tmp_path):
    rows = [clip(caption=None, captions=["a", "b"], sentences=["s"])]
    [from_jsonl], _, _ = load(jsonl(tmp_path / "t.jsonl", rows))
    [from_csv], _, _ = load(
        write_table(tmp_path / "t.csv", [{k: json.dumps(v) if isinstance(v, list) else v for k, v in rows[0].items()}])
    )
    assert (from_jsonl["captions"], from_jsonl["sentences"], from_jsonl["caption"]) == (["a", "b"], ["s"], "a")
    assert from_csv == from_jsonl
    [one], _, _ = load(write_table(tmp_path / "u.csv", [clip(captions="just text")]))
    assert one["captions"] == ["just text"]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("[music]", ["[music]"]),
        ("[music] a man sings [loudly]", ["[music] a man sings [loudly]"]),
        ("['a', 'b']", ["['a', 'b']"]),
        ('["a",\n "b", null, 3, {"x": 1}]', ["a", "b", "3", '{"x": 1}']),
        ("[" * 50_000 + "]" * 50_000, ["[" * 50_000 + "]" * 50_000]),
    ],
)
def test_text_that_only_looks_like_a_list_is_a_list_of_one(tmp_path, text, expected):
    rows = [clip(clip_id="a", sentences=text), clip(clip_id="b", sentences='["x", "y"]'), clip(clip_id="c")]
    clips, _, _ = load(jsonl(tmp_path / "t.jsonl", rows))
    assert [c["sentences"] for c in clips] == [expected, ["x", "y"], None]


WRONG = [
    ({"path": ""}, r"input\.path is not set"),
    ({"path": "none.jsonl"}, r"input\.path: no file"),
    ({"path": "none-*.jsonl"}, r"input\.path: no file"),
    ({"path": "."}, r"is a folder; name its tables"),
    ({"path": "t.txt"}, r"set input\.format"),
    ({"path": "nope://x/t.csv"}, r"input\.path: cannot read"),
    ({"path": "broken.parquet"}, r"cannot read as parquet"),
    ({"path": "empty.csv"}, r"empty; its first line"),
    ({"path": "reserved.jsonl"}, r"column 'key' has a name that the dataset format uses"),
    ({"path": "lists.jsonl"}, r"column 'video' should hold video, and holds values of type List"),
    ({"path": "bytes.parquet"}, r"column 'raw' holds bytes"),
    ({"path": "bytes_in_struct.parquet"}, r"column 'raw' holds bytes"),
    ({"path": "cut.jsonl.gz"}, r"cannot read .*cut\.jsonl\.gz: Compressed file ended"),
    ({"path": "damaged.jsonl.gz"}, r"cannot read .*damaged\.jsonl\.gz: Error -3"),
    ({"path": "no.jsonl.xz"}, r"cannot read .*no\.jsonl\.xz: Input format"),
    ({"path": "quote.csv"}, r"quote\.csv: line 3: field larger than .*; is a quote there not closed\?"),
    ({"path": "none_at_all.jsonl"}, r"has no rows"),
    ({"path": "all_bad.jsonl"}, r"no line can be read as a row; the first is .*all_bad\.jsonl:1: not JSON"),
    ({"path": "t.jsonl", "columns": {"video": "url"}}, r"input\.columns: video: the table has no column 'url'; it has clip_id"),
    ({"path": "t.jsonl", "columns": {"sample_id": "score"}}, r"input\.columns: 'sample_id' is no catalog column"),
    ({"path": "t.jsonl", "columns": {"url": "video"}}, r"input\.columns: no column 'video'"),
    ({"path": "t.jsonl", "passthrough": ["scor"]}, r"input\.passthrough: the table has no column 'scor'"),
]


@pytest.mark.parametrize("keys, message", WRONG)
def test_wrong_use_is_one_line_with_the_key(tmp_path, monkeypatch, keys, message):
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "t.jsonl", ROWS), jsonl(tmp_path / "reserved.jsonl", [clip(key=1)])
    (
        jsonl(tmp_path / "lists.jsonl", [clip(video=["v"])]),
        pl.DataFrame([clip(raw=b"x")]).write_parquet(tmp_path / "bytes.parquet"),
    )
    pl.DataFrame([clip(raw=[{"bytes": b"x"}])]).write_parquet(tmp_path / "bytes_in_struct.parquet")
    packed = gzip.compress(b"".join(b"%d" % i for i in range(9999)))
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[:-99])
    (tmp_path / "damaged.jsonl.gz").write_bytes(packed[:20] + b"\xff\x00" * 20 + packed[60:])
    (tmp_path / "no.jsonl.xz").write_bytes(b"hello")
    (tmp_path / "quote.csv").write_text('video,caption\nv.mp4,a\nv.mp4,"a\n' + "w.mp4,a line\n" * 20_000)
    unreadable = {"all_bad.jsonl": b"{a\n{b\n", "none_at_all.jsonl": b"\n", "t.txt": b"x", "broken.parquet": b"PAR1 no"}
    for name, data in {**unreadable, "empty.csv": b""}.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        load(**keys)
    assert "\n" not in str(caught.value)


def test_probe_finds_the_durations_of_whole_files(tmp_path):
    source = ["-f", "lavfi", "-i", "color=size=64x64:rate=10:duration=2"]
    subprocess.run(["ffmpeg", "-v", "error", *source, str(tmp_path / "v.mp4")], check=True)
    rows = [clip(clip_id="a", start=None, end=None), clip(clip_id="b", start=0.5, end=None), clip(clip_id="c")]
    rows += [clip(clip_id="d", video="none.mp4", end=None)]
    config = ExpandConfig()
    config.input.path, config.catalog.probe = str(jsonl(tmp_path / "t.jsonl", rows)), True
    clips = sorted(catalog.load(config)[0].to_pylist(), key=lambda c: c["clip_id"])
    assert [c["duration_ms"] for c in clips] == [2000, 1500, 1000, None]
    assert [c["end_ms"] for c in clips] == [None, None, 1000, None]


def test_a_planned_clip_keeps_its_duration_when_its_file_comes_back(tmp_path):
    pattern_video(tmp_path / "v.mp4", seconds=2)
    rows = [clip(clip_id="a", end=None), clip(clip_id="b", video="gone.mp4", end=None)]
    config = ExpandConfig()
    config.input.path, config.output.path = str(jsonl(tmp_path / "t.jsonl", rows)), str(tmp_path / "out")
    config.catalog.probe = True

    def planned():
        return plan.write(plan.build(catalog.load(config)[0], config), config.output.path)["digest"]

    first = planned()
    (tmp_path / "v.mp4").rename(tmp_path / "gone.mp4")
    assert planned() == first


anything = st.one_of(
    st.none(), st.integers(-5, 5), st.floats(), st.text(max_size=4), st.sampled_from(["00:00:01", "2.5", "x", "train"])
)
messy = st.fixed_dictionaries({}, optional={name: anything for name in catalog.COLUMNS[:9]} | {"label": anything})


@given(st.lists(st.one_of(messy, st.just("{broken"), st.just("")), max_size=12))
@settings(max_examples=60, deadline=None)
def test_no_row_is_lost_whatever_the_table_holds(tmp_path_factory, rows):
    lines = [row if isinstance(row, str) else json.dumps({"video": "v", "score": 1} | row) for row in rows]
    path = tmp_path_factory.mktemp("messy") / "t.jsonl"
    path.write_text("\n".join([json.dumps(clip(score=1)), *lines]))
    _, _, counts = load(path, filter="score > 0")
    assert counts["rows_in"] == 1 + sum(line != "" for line in lines)
