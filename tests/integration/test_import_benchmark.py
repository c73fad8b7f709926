"""`gexia import` end to end: a benchmark's files in their true schema over real footage -> validated shards."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from shards import reader

FOOTAGE = Path(__file__).parents[2] / "../shared/data/footage/videos"
pytestmark = pytest.mark.skipif(not FOOTAGE.exists(), reason="real footage (../shared/data/footage) is not here")

VAL = """\
NOuQuofjk44,[5.0:17.0],a dog,"a cup, red",nothing,what does she read?,a paper
NOuQuofjk44,[5.0:17.0],one,two,one,how many people?,one
NOuQuofjk44,[130.0:170.0],left,right,up,where does it end?,here
dead_video_,[7.2:18.0],10,12,16,how many knife is there?,1
piYcgGdO8_w,[63.0:69.0],a,b,c,what is on the table?,bottles
"""
TRAIN = [
    {
        "qid": 1,
        "vid_name": "cut_0_60",
        "ts": "0.1-1.5",
        "q": "who?",
        "a0": "x",
        "a1": "y",
        "a2": "z",
        "a3": "w",
        "answer_idx": 2,
    }
]


def gexia(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "gexia", *map(str, arguments)], capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """A made-up How2QA over real videos, imported once; the arguments of the import and what it printed."""
    root = tmp_path_factory.mktemp("how2qa")
    annotations, videos, output = root / "annotations", root / "videos", root / "dataset"
    annotations.mkdir()
    (annotations / "how2QA_val_release.csv").write_text(VAL)
    (annotations / "how2qa_train_release.jsonl").write_text("\n".join(map(json.dumps, TRAIN)))
    (videos / "deep").mkdir(parents=True)
    (videos / "NOuQuofjk44.mp4").symlink_to(FOOTAGE / "onebyone.mp4")
    (videos / "deep" / "piYcgGdO8_w_60_120.mp4").symlink_to(FOOTAGE / "bottles.mp4")
    (videos / "cut_0_60.mkv").symlink_to(sorted((FOOTAGE / "signs").iterdir())[0])
    arguments = ["import", "how2qa", "--annotations", annotations, "--videos", videos, "--output", output]
    arguments += ["--frames.per_clip", 3, "--ray.num_cpus", 2]
    done = gexia(*arguments)
    assert done.returncode == 0, done.stderr
    return arguments, done.stdout, output, annotations


def samples(output, split):
    found = []
    for shard in reader.open_dataset(str(output)).select(split, "short"):
        for _, members in reader.iter_shard(f"{output}/{shard.path}"):
            found.append(json.loads(members["json"]) | {"frames": sum(name.endswith("jpg") for name in members)})
    return {sample["clip_id"]: sample for sample in found}


def test_each_question_is_a_sample_with_its_segments_frames(benchmark):
    val = samples(benchmark[2], "val")
    assert sorted(val) == ["how2qa_val_00000", "how2qa_val_00001", "how2qa_val_00002", "how2qa_val_00004"]
    first, second = val["how2qa_val_00000"], val["how2qa_val_00001"]
    assert first["frame_ms"] == second["frame_ms"] and all(5_000 <= ms < 17_000 for ms in first["frame_ms"])
    assert (first["question"], first["options"]) == (
        "what does she read?",
        ["a dog", "a cup, red", "nothing", "a paper"],
    )
    assert (second["options"], second["answer"], second["answer_id"]) == (["one", "two", "one", "one"], "one", 3)
    assert all(130_000 <= ms < 140_000 for ms in val["how2qa_val_00002"]["frame_ms"])  # the video ends before the segment
    windowed = val["how2qa_val_00004"]  # only the 60 s window from 60 s on is there
    assert windowed["video"].endswith("piYcgGdO8_w_60_120.mp4") and all(3_000 <= ms < 9_000 for ms in windowed["frame_ms"])
    assert {sample["frames"] for sample in val.values()} == {3}
    (train,) = samples(benchmark[2], "train").values()
    assert (train["answer"], train["split"]) == ("z", "train")


def test_missing_videos_are_counted_and_listed(benchmark):
    _, printed, output, _ = benchmark
    assert "how2qa: 3 of 4 videos; samples: train 1, val 5" in printed
    assert "missing: dead_video_" in printed
    assert "val: 2 of 3 videos, 4 of 5 samples" in printed
    record = json.loads((output / "import" / "import.json").read_text())
    assert record["missing_videos"] == ["dead_video_"]
    assert record["splits"] == {"train": {"samples": 1, "videos": 1}, "val": {"samples": 5, "videos": 3}}
    assert json.loads((output / "run.json").read_text())["failures"] == {"missing_file": 1}


def test_the_dataset_is_valid(benchmark):
    done = gexia("shards", "validate", benchmark[2])
    assert done.returncode == 0, done.stdout


def test_the_same_import_again_does_nothing_and_another_is_refused(benchmark):
    arguments, _, output, annotations = benchmark
    again = gexia(*arguments)
    assert again.returncode == 0 and "(0 by this run)" in again.stdout
    other = annotations.parent / "other"
    other.mkdir()
    (other / "how2QA_val_release.csv").write_text(VAL.splitlines()[0])
    refused = gexia("import", "how2qa", "--annotations", other, *arguments[4:])
    assert refused.returncode == 2
    assert "holds another import" in refused.stderr and "Traceback" not in refused.stderr
    assert len(samples(output, "val")) == 4
