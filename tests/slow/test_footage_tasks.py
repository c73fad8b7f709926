"""Tasks on the real footage: annotation files in the benchmarks' layouts, import, fine-tuning, one comparison.

The labels, questions and options are what the footage's own captions say. Nobody's likes or views of it are known, so
regression is left to the rendered world. Twenty videos teach nothing: here every part has to run, and to count right.
"""

import csv
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import gexia
from ops.runs import ON_CPU, run_once
from shards.video import scan
from trainer.models.gexia import GexiaModel, ModelConfig

QUICK = {
    "steps": 4, "select_every": 2, "batch": 8, "frames": 4, "loader.size": 64, "loader.workers": 0, "precision": "fp32",
    "grad_checkpointing": False, "optim.warmup": 1, "optim.lr": 1e-4, "trackers": "[]",
}  # fmt: skip


class Footage:
    """What the footage's captions tell. `signs`: whole videos of a signed word, {word: caption}; the last word of each
    of the five people is the test's. `films`: long videos of several timed captions."""

    def __init__(self, folder: Path):
        rows = [json.loads(line) for line in (folder / "clips.jsonl").read_text().splitlines()]
        self.videos = folder / "videos"
        signs = [row for row in rows if row["start"] is None]
        self.signs = {Path(row["video"]).stem: row["caption"] for row in signs}
        self.person = {Path(row["video"]).stem: row["source_id"].removeprefix("signs_") for row in signs}
        last = {person: word for word, person in self.person.items()}
        self.parts = {"train": [word for word in self.signs if word not in last.values()], "test": [*last.values()]}
        self.films = {name: [row for row in rows if row["source_id"] == name] for name in ("onebyone", "bottles")}

    def seconds(self, name: str) -> float:
        (path,) = self.videos.rglob(f"{name}.*")
        return scan(str(path)).end_ms / 1000


def msvd(folder: Path, footage: Footage) -> None:
    captions = {word: [caption, f"somebody signs {word}"] for word, caption in footage.signs.items()}
    (folder / "raw-captions.json").write_text(json.dumps(captions))
    for part, words in footage.parts.items():
        (folder / f"{part}_list.txt").write_text("\n".join(words))


def activitynet(folder: Path, footage: Footage) -> None:
    for name, film, part in (("train.json", "onebyone", "train"), ("val_1.json", "bottles", "test")):
        rows = footage.films[film]
        told = {film: {"timestamps": [[r["start"], r["end"]] for r in rows], "sentences": [r["caption"] for r in rows]}}
        told |= {word: {"timestamps": [[0, 1]], "sentences": [footage.signs[word]]} for word in footage.parts[part]}
        told = {video: entry | {"duration": footage.seconds(video)} for video, entry in told.items()}
        (folder / name).write_text(json.dumps(told))


def ucf101(folder: Path, footage: Footage) -> None:
    """Who it is."""
    classes = {person: number for number, person in enumerate(sorted(set(footage.person.values())), 1)}
    (folder / "classInd.txt").write_text("\n".join(f"{number} {person}" for person, number in classes.items()))
    for part, words in footage.parts.items():
        people = [(word, footage.person[word]) for word in words]
        rows = [f"{person}/{word}.avi" + (f" {classes[person]}" if part == "train" else "") for word, person in people]
        (folder / f"{part}list01.txt").write_text("\n".join(rows))


def charades_ego(folder: Path, footage: Footage) -> None:
    """Who is there, and in what clothes."""
    phrases = [" man ", " woman ", " hoodie", " sweater", " t-shirt", " black ", " grey ", " yellow ", " striped "]
    classes = "\n".join(f"c{number:03d} {phrase.strip()}" for number, phrase in enumerate(phrases))
    (folder / "Charades_v1_classes.txt").write_text(classes)
    for part, words in footage.parts.items():
        rows = []
        for word in words:
            shown = [f"c{number:03d} 0.00 1.00" for number, phrase in enumerate(phrases) if phrase in footage.signs[word]]
            rows.append(f"{word},{';'.join(shown)},{footage.seconds(word)}")
        (folder / f"CharadesEgo_v1_{part}_only1st.csv").write_text("\n".join(["id,actions,length", *rows]))


def how2qa(folder: Path, footage: Footage) -> None:
    """Which caption is a segment's, among its neighbours'; and which word is signed, among the part's others."""
    for release, film, part in (("train", "onebyone", "train"), ("val", "bottles", "test")):
        rows, words = footage.films[film], footage.parts[part]
        captions, ends = [row["caption"] for row in rows], map(footage.seconds, words)
        asked = [(film, f"{row['start']}:{row['end']}", captions, i, "what happens?") for i, row in enumerate(rows)]
        asked += [(word, f"0:{end}", words, i, "which word is signed?") for i, (word, end) in enumerate(zip(words, ends))]
        with (folder / f"how2QA_{release}_release.csv").open("w", newline="") as file:
            for video, segment, options, i, question in asked:
                wrong = [options[(i + step) % len(options)] for step in (1, 2, 3)]
                csv.writer(file).writerow([video, f"[{segment}]", *wrong, question, options[i]])


def msvd_qa(folder: Path, footage: Footage) -> None:
    numbers = {word: number for number, word in enumerate(footage.signs)}
    (folder / "youtube_mapping.txt").write_text("\n".join(f"{word} vid{number}" for word, number in numbers.items()))
    for part, words in footage.parts.items():
        rows = []
        for word in words:
            (worn,) = [name for name in ("hoodie", "sweater", "t-shirt") if name in footage.signs[word]]
            who = "woman" if "woman" in footage.signs[word] else "man"
            for question, answer in (("what does the person wear?", worn), ("who is it?", who)):
                rows.append({"id": len(rows), "video_id": numbers[word], "question": question, "answer": answer})
        (folder / f"{part}_qa.json").write_text(json.dumps(rows))


@dataclass(frozen=True)
class Case:
    """A benchmark's layout, the config that its task has, and what the test split holds."""

    write: Callable[[Path, Footage], None]
    config: str
    videos: int
    tested: int  # queries, samples or questions


CASES = {
    "msvd": Case(msvd, "msrvtt", 5, 10),
    "activitynet": Case(activitynet, "activitynet", 6, 6),
    "ucf101": Case(ucf101, "coin", 5, 5),
    "charades_ego": Case(charades_ego, "charades_ego", 5, 5),
    "how2qa": Case(how2qa, "how2qa", 6, 13),
    "msvd_qa": Case(msvd_qa, "msrvtt_qa", 5, 10),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, shared_data) -> Callable[[str], Path]:
    """What fine-tunes an untrained model on a benchmark, from its annotation files, once; returns the run's folder."""
    home, footage = tmp_path_factory.mktemp("tasks"), Footage(shared_data / "footage")
    GexiaModel.create(ModelConfig(name="configs/models/tiny.json", heads=4)).save_pretrained(home / "model")

    def run(name: str) -> Path:
        annotations, data, output = (home / folder / name for folder in ("annotations", "data", "runs"))
        annotations.mkdir(parents=True, exist_ok=True)
        CASES[name].write(annotations, footage)
        places = ["--annotations", annotations, "--videos", footage.videos, "--output", data]
        run_once(data / "manifest.json", ["-m", "gexia", "import", name, *places])
        keys = {"data": data, "checkpoint": home / "model", "output": output, "splits.select": "null", "splits.held_out": 0.25}
        flags = [part for key, value in (QUICK | keys).items() for part in (f"--{key}", value)]
        config = f"configs/finetune/{CASES[name].config}.yaml"
        run_once(output / "results.json", ["-m", "trainer.finetune", "--config", config, *flags], **ON_CPU)
        return output

    return run


@pytest.mark.parametrize("name", CASES)
def test_from_annotation_files_to_numbers(run, name):
    (dataset,) = json.loads((run(name) / "results.json").read_text())["datasets"]
    for row in [*dataset["before"], *dataset["results"]]:
        assert row["videos"] == row["of_videos"] == CASES[name].videos
        assert all(map(math.isfinite, row["metrics"].values()))
    assert max(row["n"] for row in dataset["results"]) == CASES[name].tested


def test_one_comparison_of_all(run, tmp_path):
    compared = tmp_path / "comparison.md"
    assert gexia.main(["table", *(str(run(name)) for name in CASES), "--output", str(compared)]) == 0
    assert all(name in compared.read_text() for name in CASES)
