"""The parsers read the real annotation files to their exact counts (formats: the benchmarks' own)."""

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from gex_pipeline.benchmarks import lvu, registry, timed_sentences
from shards.errors import UserError

REAL = Path(__file__).parents[2] / "../shared/data/annotations"
pytestmark = pytest.mark.skipif(not REAL.exists(), reason="real annotation files (../shared/data/annotations) not here")


def parse(name, path, variant=None):
    table = registry.parse(name, str(REAL / path), variant)
    ids = table["clip_id"].to_pylist()
    assert len(set(ids)) == len(ids) and None not in ids
    return table.to_pylist()


def splits(rows):
    return dict(Counter(row["split"] for row in rows))


@pytest.mark.parametrize(
    "path, counts, sentences",
    [
        ("activitynet", {"train": 10_009, "test": 4_917}, 37_421 + 17_505),
        ("activitynet/val_1.json", {"test": 4_917}, 17_505),
        ("activitynet/val_2.json", {"val_2": 4_885}, 17_031),
    ],
)
def test_activitynet_paragraphs(path, counts, sentences):
    rows = parse("activitynet", path)
    assert splits(rows) == counts
    assert sum(len(row["sentences"]) for row in rows) == sentences
    assert all(row["start"] is None and row["duration"] > 0 for row in rows)
    assert all(row["caption"] == " ".join(row["sentences"]) and row["captions"] == [row["caption"]] for row in rows)
    assert all(len(row["video"]) == 11 and row["alt_video"] == "v_" + row["video"] for row in rows)


@pytest.mark.parametrize(
    "path, videos, clips", [("activitynet/val_1.json", 4_917, 17_505), ("youcook2/yc2_val.json", 457, 3_492)]
)
def test_timed_sentences_as_clips(path, videos, clips):
    rows = timed_sentences.sentences(str(REAL / path)).to_pylist()
    assert len(rows) == clips == len({row["clip_id"] for row in rows})
    assert len({row["source_id"] for row in rows}) == videos
    assert all(row["start"] < row["end"] and row["caption"] for row in rows)


def test_msrvtt_1k_a():
    rows = parse("msrvtt", "msrvtt/MSRVTT_JSFUSION_test.csv")
    assert splits(rows) == {"test": 1_000}
    assert rows[0]["video"] == "video9770"
    assert rows[0]["captions"] == ["a person is connecting something to system"]
    words = [len(row["caption"].split()) for row in rows]
    assert round(sum(words) / len(words), 2) == 9.40


@pytest.mark.parametrize("variant, train", [("9k", 9_000), ("7k", 7_010)])
def test_msrvtt_train_lists_take_their_captions_from_the_json(tmp_path, variant, train):
    """MSRVTT_data.json is not at hand: one in its schema, over the real ids."""
    for file in (REAL / "msrvtt").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with open(tmp_path / f"MSRVTT_train.{variant}.csv") as file:
        ids = [row["video_id"] for row in csv.DictReader(file)]
    sentences = [{"sen_id": i, "video_id": video, "caption": f"caption {i}"} for i, video in enumerate(ids * 2)]
    (tmp_path / "MSRVTT_data.json").write_text(json.dumps({"videos": [], "sentences": sentences}))
    rows = registry.parse("msrvtt", str(tmp_path), variant).to_pylist()
    assert splits(rows) == {"train": train, "test": 1_000}
    assert rows[1]["captions"] == ["caption 1", f"caption {train + 1}"]


def test_msvd():
    rows = parse("msvd", "msvd")
    assert splits(rows) == {"train": 1_200, "val": 100, "test": 670}
    assert sum(len(row["captions"]) for row in rows) == 80_827
    assert sum(len(row["captions"]) for row in rows if row["split"] == "test") == 27_763


def test_how2qa_loses_no_first_row():
    rows = parse("how2qa", "how2qa")
    assert splits(rows) == {"val": 2_852, "test": 2_937}
    first = next(row for row in rows if row["split"] == "val")
    assert (first["video"], first["start"], first["end"]) == ("NOuQuofjk44", 7.2, 18.0)
    assert (first["question"], first["options"], first["answer"]) == (
        "how many knife is there?",
        ["10", "12", "16", "1"],
        "1",
    )
    assert all(len(row["options"]) == 4 and row["options"][row["answer_id"]] == row["answer"] for row in rows)
    by_source = {}
    for row in rows:
        assert by_source.setdefault(row["source_id"], row["split"]) == row["split"]


LVU_COUNTS = {
    "relationship": (149, 53, 42),
    "way_speaking": (939, 205, 201),
    "scene": (557, 120, 86),
    "director": (680, 163, 107),
    "writer": (769, 174, 168),
    "year": (770, 165, 143),
    "genre": (3_063, 597, 647),
    "like_ratio": (658, 142, 140),
    "view_count": (577, 124, 126),
}


@pytest.mark.parametrize("task", lvu.TASKS)
def test_lvu(task):
    rows = parse("lvu", "lvu_1.0", task)
    assert splits(rows) == dict(zip(("train", "val", "test"), LVU_COUNTS[task]))
    assert all(len(row["video"]) == 11 for row in rows)
    if task in ("like_ratio", "view_count"):
        train = [row["target"] for row in rows if row["split"] == "train"]
        assert abs(sum(train) / len(train)) < 0.06  # the published means are those of the training targets
    else:
        assert len({(row["label"], row["label_id"]) for row in rows}) == len({row["label_id"] for row in rows})
    assert rows == registry.parse("lvu", str(REAL / "lvu_1.0" / task), task).to_pylist()


def test_lvu_refuses_another_tasks_folder():
    with pytest.raises(UserError, match="is the task scene, but --variant is genre"):
        parse("lvu", "lvu_1.0/scene", "genre")


@pytest.mark.parametrize("view, counts", [("first", {"test": 103}), ("all", {"train": 9_597, "test": 2_043})])
def test_charades_ego(view, counts):
    rows = parse("charades_ego", "charades_ego", view)
    assert splits(rows) == counts
    assert sum(not row["labels"] for row in rows) == (0 if view == "first" else 1_786 + 229)
    assert all(len(set(row["labels"])) == len(row["labels"]) for row in rows)
