"""Small files in each benchmark's own schema, with what trips readers of it; and videos found by name."""

import gzip
import json
import math
import os
import pickle

import fsspec
import polars as pl
import pytest

import gexia
from gex_pipeline.benchmarks import records, registry, videos
from shards.errors import UserError


@pytest.fixture
def parse(tmp_path):
    """Write the files of a benchmark and parse them."""

    def run(name, files, variant=None, **more):
        for path, content in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            data = content if isinstance(content, (str, bytes)) else json.dumps(content)
            (tmp_path / path).write_bytes(data if isinstance(data, bytes) else data.encode())
        return registry.parse(name, str(tmp_path), variant, **more).to_pylist()

    return run


def fields(rows, *names):
    return [tuple(row[name] for name in names) for row in rows]


def lsmdc_line(clip, sentence):
    return f"{clip}\t00.00.10.1\t00.00.14.2\t00.00.10.0\t00.00.15.0\t{sentence}\n"


def test_lsmdc_repeated_clip_ids_keep_all_their_captions(parse):
    train = lsmdc_line("0001_Film_00.00.10-00.00.14", 'SOMEONE says "hi", waves.')
    train += lsmdc_line("0002_Other_00.01.00-00.01.04", "A car.") + lsmdc_line("0001_Film_00.00.10-00.00.14", "He leaves.")
    test = lsmdc_line("0003_Film_00.00.01-00.00.02", '"Unbalanced.')
    rows = parse("lsmdc", {"LSMDC16_annos_training.csv": train, "LSMDC16_challenge_1000_publictect.csv": test})
    assert fields(rows, "clip_id", "split", "captions") == [
        ("0001_Film_00.00.10-00.00.14", "train", ['SOMEONE says "hi", waves.', "He leaves."]),
        ("0002_Other_00.01.00-00.01.04", "train", ["A car."]),
        ("0003_Film_00.00.01-00.00.02", "test", ['"Unbalanced.']),
    ]


def test_lsmdc_line_of_other_columns_is_named(parse):
    with pytest.raises(UserError, match=r"LSMDC16_annos_val.csv, line 2: 2 tab-separated columns, expected 6"):
        parse("lsmdc", {"LSMDC16_annos_val.csv": lsmdc_line("a", "b") + "0001\tone sentence\n"})


def test_didemo_joins_descriptions_within_the_annotated_window(parse):
    data = [
        {"video": "x_1.mov", "description": "cat  jumps\n", "times": [[0, 1]], "annotation_id": 5, "num_segments": 6},
        {"video": "y_2.avi", "description": "left out", "times": [[0, 0]]},
        {"video": "x_1.mov", "description": "then sleeps", "times": [[3, 4]]},
    ]
    rows = parse("didemo", {"train_data.json": data, "train_list.txt": "x_1.mov\n"})
    assert fields(rows, "video", "start", "end", "caption", "sentences") == [
        ("x_1.mov", 0.0, 31.0, "cat jumps then sleeps", ["cat jumps", "then sleeps"])
    ]


MSVD_LISTS = {"train_list.txt": "a_0_5\n", "val_list.txt": "b_1_2\n", "test_list.txt": "-c_3_4\n"}


def test_msvd_pickle_is_refused_in_favour_of_json(parse):
    bomb = pickle.dumps({"a_0_5": [["a", "man"]]})
    with pytest.raises(UserError, match="raw-captions.pkl: pickles can run code and are not opened; convert it to"):
        parse("msvd", MSVD_LISTS | {"raw-captions.pkl": bomb})
    captions = {"a_0_5": [["a", "man", "sings"], ["someone"]], "b_1_2": ["x"], "-c_3_4": ["y", "z"], "unlisted": ["w"]}
    rows = parse("msvd", {"raw-captions.json": captions})
    assert fields(rows, "clip_id", "split", "captions") == [
        ("a_0_5", "train", ["a man sings", "someone"]),
        ("b_1_2", "val", ["x"]),
        ("-c_3_4", "test", ["y", "z"]),
    ]


def test_activitynet_ids_lose_v_once_and_id_lists_restrict(parse):
    entry = {"duration": 12.5, "timestamps": [[0.8, 19.9], [17, 60]], "sentences": ["A man.", " He\u2028runs. "]}
    train = {"v_v_abcdefghi": entry, "v_-bcdefghijk": entry}
    rows = parse("activitynet", {"train.json": train, "train_ids.json": ["v_v_abcdefghi", "v_gone_______"]})
    assert fields(rows, "video", "alt_video", "duration", "caption") == [
        ("v_abcdefghi", "v_v_abcdefghi", 12.5, "A man. He runs.")
    ]
    with pytest.raises(UserError, match="val_1.json, v_x: 1 timestamps for 2 sentences"):
        parse("activitynet", {"val_1.json": {"v_x": entry | {"timestamps": [[0, 1]]}}})


LVU_HEADER = "class_id class_name youtube_id imdb_id\n"


def test_lvu_rows_are_split_by_white_space(parse):
    rows = parse("lvu", {"genre/train.csv": LVU_HEADER + "2 action  crime\tabcDEF12345 tt04\n\n"}, "genre")
    assert fields(rows, "label", "label_id", "video") == [("action crime", 2, "abcDEF12345")]


def test_lvu_refuses_another_tasks_file(parse, tmp_path):
    parse("lvu", {"scene/test.csv": LVU_HEADER + "2 office abcDEF12345 tt04\n"}, "scene")
    with pytest.raises(UserError, match="is the task scene, but --variant is genre"):
        registry.parse("lvu", str(tmp_path / "scene/test.csv"), "genre")


def test_annotations_of_no_sample_are_refused(tmp_path, capsys):
    (tmp_path / "COIN.json").write_text('{"database": {}}')
    places = ["--annotations", tmp_path, "--videos", tmp_path, "--output", tmp_path / "out"]
    assert gexia.main(["import", "coin", *map(str, places)]) == 2
    assert capsys.readouterr().err == f"error: --annotations {tmp_path}: no sample of coin in it\n"


def test_lvu_regression_targets_are_the_published_ones(parse, tmp_path):
    rows = parse("lvu", {"like_ratio/test.csv": "like_count dislike_count youtube_id imdb_id\n30 10 v1 tt\n"}, "like_ratio")
    assert rows[0]["target"] == 10 * 30 / 40 - 9.138220535629456
    rows = parse("lvu", {"view_count/val.csv": "view_count youtube_id imdb_id\n1000 v2 tt\n"}, "view_count")
    assert rows[0]["target"] == math.log(1000) - 11.76425435683139
    with pytest.raises(UserError, match="train.csv, line 3: .*zero"):
        header = "like_count dislike_count youtube_id imdb_id\n1 1 v tt\n"
        parse("lvu", {"like_ratio/train.csv": header + "0 0 v1 tt\n"}, "like_ratio")


def test_coin_validation_is_the_test_set(parse):
    entry = {"duration": 131.0, "class": "ReplaceCDDriveWithSSD", "recipe_type": 131, "start": 5.0, "end": 80.0}
    database = {"LtRSn-ntcLY": entry | {"subset": "training"}, "b": entry | {"subset": "validation"}}
    rows = parse("coin", {"COIN.json": {"database": database}})
    assert fields(rows, "video", "split", "label", "label_id") == [
        ("LtRSn-ntcLY", "train", "Replace CD Drive With SSD", 131),
        ("b", "test", "Replace CD Drive With SSD", 131),
    ]
    with pytest.raises(UserError, match="COIN.json, c: no 'subset'"):
        parse("coin", {"COIN.json": {"database": {"c": entry}}})


def test_charades_ego_v1_first_person_test_and_empty_actions(parse):
    header = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length\n"
    first = header + "AEGO,,,,,,,,,c001 1.0 2.0;c000 0.0 3.5;c001 4.0 5.0,28.25\nBEGO,,,,,,,,,,\n"
    files = {
        "Charades_v1_classes.txt": "c000 Holding some clothes\nc001 Putting clothes somewhere\n",
        "CharadesEgo_v1_test_only1st.csv": first,
        "CharadesEgo_v1_test.csv": header,
        "CharadesEgo_v1_train_only1st.csv.gz": gzip.compress((header + 'CEGO,,,,,,"A, b",,,c000 0 1,9\n').encode()),
    }
    rows = parse("charades_ego", files)
    assert fields(rows, "video", "split", "labels", "duration", "caption") == [
        ("CEGO", "train", ["Holding some clothes"], 9.0, "A, b"),
        ("AEGO", "test", ["Holding some clothes", "Putting clothes somewhere"], 28.25, None),
        ("BEGO", "test", [], None, None),
    ]
    with pytest.raises(UserError, match="only1st.csv, line 2: action c007 is not in the class file"):
        parse("charades_ego", {"CharadesEgo_v1_test_only1st.csv": header + "X,,,,,,,,,c007 0 1,9\n"})


def test_how2qa_windows_and_missing_answers(parse):
    row = {
        "qid": 1,
        "vid_name": "x_y_60_120",
        "ts": "3.1-9.0",
        "q": "why?",
        "a0": "w0",
        "a1": "w1",
        "a2": "r",
        "a3": "w3",
    }
    lines = json.dumps(row | {"answer_idx": 2}) + "\n" + json.dumps(row) + "\n"
    csv = 'abc,[134.15:181.52],same,"b, c",d,what?,same\n'
    rows = parse("how2qa", {"how2qa_train_release.jsonl": lines, "how2QA_val_release.csv": csv})
    assert fields(rows, "video", "alt_video", "alt_shift", "start", "answer_id", "answer") == [
        ("x_y_60_120", "x_y", 60.0, 3.1, 2, "r"),
        ("x_y_60_120", "x_y", 60.0, 3.1, None, None),
        ("abc", "abc_120_180", -120.0, 134.15, 3, "same"),
    ]
    with pytest.raises(UserError, match="val_release.csv and how2qa_val_release.jsonl hold the same part"):
        parse("how2qa", {"how2qa_val_release.jsonl": lines})


def test_open_questions_share_their_videos_sample(parse):
    def question(video, text, answer):
        return {"id": 0, "video_id": video, "question": text, "answer": answer}

    train = [question(42, "what is a dog riding?", "bike"), question(7, "who?", "man"), question(42, "what?", "dog")]
    files = {"train_qa.json": train, "test_qa.json": [question(9, "a?", "b")]}
    assert fields(parse("msrvtt_qa", files), "video", "split", "questions", "answers") == [
        ("video42", "train", ["what is a dog riding?", "what?"], ["bike", "dog"]),
        ("video7", "train", ["who?"], ["man"]),
        ("video9", "test", ["a?"], ["b"]),
    ]
    mapping = {"youtube_mapping.txt": "-x_1_5 vid42\ny_2_3 vid7\nz_0_1 vid9\n"}
    assert fields(parse("msvd_qa", mapping), "video", "alt_video")[0] == ("-x_1_5", "vid42")
    with pytest.raises(UserError, match="test_qa.json, entry 0: vid9 is not in youtube_mapping.txt"):
        parse("msvd_qa", {"youtube_mapping.txt": "-x_1_5 vid42\ny_2_3 vid7\n"})


def test_ucf101_takes_the_class_from_the_folder(parse):
    files = {
        "classInd.txt": "1 ApplyEyeMakeup\n2 Archery\n",
        "trainlist02.txt": "Archery/v_Archery_g08_c01.avi 2\r\n",
        "testlist02.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\n",
    }
    assert fields(parse("ucf101", files, "2"), "video", "split", "label", "label_id") == [
        ("v_Archery_g08_c01.avi", "train", "Archery", 1),
        ("v_ApplyEyeMakeup_g01_c01.avi", "test", "Apply Eye Makeup", 0),
    ]
    with pytest.raises(UserError, match="no trainlist01.txt"):
        parse("ucf101", {})


def test_hmdb51_leaves_unused_clips_out(parse):
    files = {
        "brush_hair_test_split1.txt": "a_[1].x#_0.avi 1 \nb.avi 2 \n",
        "wave_test_split1.txt": "c.avi 0 \nd.avi 2 \n",
        "wave_test_split2.txt": "c.avi 1 \n",
    }
    assert fields(parse("hmdb51", files), "video", "split", "label", "label_id") == [
        ("a_[1].x#_0.avi", "train", "brush hair", 0),
        ("b.avi", "test", "brush hair", 0),
        ("d.avi", "test", "wave", 1),
    ]
    with pytest.raises(UserError, match="split1.txt, line 1: no '3'"):
        parse("hmdb51", {"wave_test_split1.txt": "c.avi 3 \n"})


def test_imagenet_class_names_follow_the_order_of_wnids(parse):
    images = ["/d/n02/b.JPEG", "/d/n01/a.JPEG", "/d/n02/c.JPEG"]
    rows = parse("imagenet", {"imagenet_classnames.json": ["tench", "goldfish"]}, paths=images)
    assert fields(rows, "video", "label", "label_id") == [
        ("b.JPEG", "goldfish", 1),
        ("a.JPEG", "tench", 0),
        ("c.JPEG", "goldfish", 1),
    ]
    with pytest.raises(UserError, match="1 class folders, but .* names 2 classes"):
        parse("imagenet", {}, paths=images[:1])


@pytest.mark.parametrize(
    "name, variant, message",
    [
        ("nothing", None, "benchmark 'nothing' is unknown; there are msrvtt, activitynet"),
        ("lvu", None, "lvu needs --variant, one of relationship"),
        ("msrvtt", "8k", "--variant 8k: msrvtt needs --variant, one of 9k, 7k"),
        ("coin", "1", "--variant 1: coin has no variants"),
        ("coin", None, "no COIN.json"),
    ],
)
def test_wrong_use_is_one_line(parse, name, variant, message):
    with pytest.raises(UserError, match=message):
        parse(name, {}, variant)


@pytest.mark.parametrize("content, message", [(b"\xff\xfe", "cannot be read"), (b"{", "not JSON"), (b"[]", "holds a list")])
def test_broken_files_are_named(parse, content, message):
    with pytest.raises(UserError, match=f"COIN.json: {message}"):
        parse("coin", {"COIN.json": content})


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def found(root, *rows):
    rows = pl.from_arrow(records.table(list(rows)))
    frame, coverage = videos.resolve(rows, str(root), videos.index(videos.listing(str(root))))
    return [os.path.relpath(path, root) for path in frame["video"]], frame.to_dicts(), coverage


def test_videos_are_found_by_name_under_any_ending(tmp_path):
    touch(
        tmp_path,
        "deep/er/a.webm",
        "a.mp4",
        "0001_Film_00.00.10-00.00.14.avi",
        "b.MKV",
        "x.mov.mp4",
        "notes.txt",
        ".c.mp4",
    )
    touch(tmp_path, "c.mp4.part", "d.flv")
    names = ["a", "0001_Film_00.00.10-00.00.14", "b.avi", "x.mov", "Archery/d.avi", "c", "c"]
    paths, _, coverage = found(tmp_path, *({"video": name} for name in names))
    assert paths[:5] == ["a.mp4", "0001_Film_00.00.10-00.00.14.avi", "b.MKV", "x.mov.mp4", "d.flv"]
    assert paths[5:] == ["c.mp4", "c.mp4"]
    assert coverage.missing == ["c"] and str(coverage) == "5 of 6 videos"
    touch(tmp_path, "c.mp4")  # downloaded since: the catalog stays what it was, so the dataset can be gone on with
    assert found(tmp_path, *({"video": name} for name in names))[0] == paths


def test_second_names_shift_the_segment(tmp_path):
    touch(tmp_path, "x.mp4", "abc_120_180.mp4", "v_abcdefghijk.mkv")
    jsonl = {"video": "x_60_120", "alt_video": "x", "alt_shift": 60.0, "start": 3.0, "end": 9.0}
    csv = {"video": "abc", "alt_video": "abc_120_180", "alt_shift": -120.0, "start": 134.5, "end": 181.5}
    whole = {"video": "abcdefghijk", "alt_video": "v_abcdefghijk"}
    paths, rows, _ = found(tmp_path, jsonl, csv, whole)
    assert paths == ["x.mp4", "abc_120_180.mp4", "v_abcdefghijk.mkv"]
    assert fields(rows, "start", "end") == [(63.0, 69.0), (14.5, 61.5), (None, None)]
    assert "alt_video" not in rows[0]
    touch(tmp_path, "x_60_120.mp4")
    paths, rows, _ = found(tmp_path, jsonl)
    assert paths == ["x_60_120.mp4"] and rows[0]["start"] == 3.0


def test_videos_are_listed_once_through_links_and_urls(tmp_path):
    touch(tmp_path, "real/a.mp4")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "real")
    assert videos.listing(str(tmp_path / "root")) == [str(tmp_path / "root/linked/a.mp4")]

    memory = fsspec.filesystem("memory")
    memory.pipe_file("/benchmark-videos/deep/a.webm", b"")
    try:
        rows, coverage = videos.resolve(
            pl.DataFrame({"video": ["a", "b"]}),
            "memory://benchmark-videos",
            videos.index(videos.listing("memory://benchmark-videos")),
        )
    finally:
        memory.rm("/benchmark-videos", recursive=True)
    assert rows["video"].to_list() == ["memory:///benchmark-videos/deep/a.webm", "memory://benchmark-videos/b.mp4"]
    assert videos.named_from(rows, "memory://benchmark-videos")["video"].to_list() == ["deep/a.webm", "b.mp4"]
    assert coverage.missing == ["b"]
    with pytest.raises(UserError, match="no folder of videos"):
        videos.listing(str(tmp_path / "nowhere"))


def test_a_store_that_is_down_is_one_line(monkeypatch):
    def down(*_):
        raise RuntimeError("Could not connect\nto the endpoint")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "exists", down)
    with pytest.raises(UserError, match="^cannot list the folder of videos memory://away: Could not connect to the endpoint$"):
        videos.listing("memory://away")


def test_a_half_found_video_counts_as_missing(tmp_path):
    touch(tmp_path, "x_0_60.mp4")
    windows = [{"video": "x", "alt_video": f"x_{s}_{s + 60}", "alt_shift": -float(s), "start": s + 1.0} for s in (0, 60)]
    paths, rows, coverage = found(tmp_path, *windows)
    assert paths == ["x_0_60.mp4", "x.mp4"] and fields(rows, "start") == [(1.0,), (61.0,)]
    assert str(coverage) == "0 of 1 videos"


def test_whole_read_drops_columns_that_nobody_fills(parse, tmp_path):
    touch(tmp_path / "v", "a.mp4")
    parse(
        "coin",
        {"COIN.json": {"database": {"a": {"duration": 1, "class": "X", "subset": "training", "recipe_type": 0}}}},
    )
    rows, coverage = registry.read("coin", str(tmp_path / "COIN.json"), str(tmp_path / "v"))
    assert rows.columns == ["clip_id", "source_id", "video", "duration", "split", "label", "label_id"]
    assert str(coverage) == "1 of 1 videos"


VALID = {
    "activitynet": {"val_1.json": {"v_x": {"duration": 2, "timestamps": [[0, 1]], "sentences": ["a"]}}},
    "coin": {"COIN.json": {"database": {"a": {"duration": 1, "class": "X", "subset": "training", "recipe_type": 0}}}},
    "didemo": {"val_data.json": [{"video": "a", "description": "b"}]},
    "msrvtt": {
        "MSRVTT_train.9k.csv": "video_id\nvideo1\n",
        "MSRVTT_data.json": {"sentences": [{"video_id": "video1", "caption": "a"}]},
    },
    "msvd": {"raw-captions.json": {"a": ["b"]}, "val_list.txt": "a\n"},
    "msrvtt_qa": {"val_qa.json": [{"video_id": 1, "question": "a", "answer": "b"}]},
    "imagenet": {"classnames.json": ["a"]},
    "how2qa": {
        "how2qa_val_release.jsonl": {"vid_name": "x_0_60", "ts": "0-1", "q": "?", "answer_idx": 3}
        | {f"a{i}": "b" for i in range(4)}
    },
}


def paths_of(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield from paths_of(child, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize("name", VALID)
def test_any_value_of_another_kind_is_read_or_refused_in_one_line(parse, name):
    file = next(file for file, content in VALID[name].items() if not isinstance(content, str))
    assert parse(name, VALID[name], paths=["/d/n/a.jpg"] if name == "imagenet" else [])
    for path in paths_of(VALID[name][file]):
        for new in (None, 7, -0.5, True, "", "w\nz", [], [[]], {}, {"a": None}):
            try:
                parse(name, {file: replaced(VALID[name][file], path, new)}, paths=["/d/n/a.jpg"])
            except UserError as error:
                assert "\n" not in str(error)
