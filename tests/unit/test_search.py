"""`gexia search` and `gexia embed`: a trained model of use."""

import pyarrow.parquet as pq
import pytest
import torch
from make_dataset import make_dataset
from make_labelled import make_labelled
from make_model import tiny_model
from make_video import pattern_video

import gexia
from shards.reader import open_dataset
from trainer.samples import Sample, all_samples, clock


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A saved model, a dataset with JPEG files and one with videos, and a video file."""
    home = tmp_path_factory.mktemp("search")
    make_dataset(home / "data", shorts={"train": 6, "val": 6}, longs={"train": 3, "val": 3}, size=(40, 40))
    make_dataset(home / "mp4", shorts={"val": 3}, longs={"val": 2}, size=(64, 48), mp4=True)
    pattern_video(home / "a.mp4", seconds=2)
    tiny_model().save_pretrained(home / "model")
    return home


def test_search_prints_what_fits_best_with_times_and_writes_a_page(home, capsys):
    query = "a <red> cube"
    arguments = ["search", home / "model", home / "data", query, "two", "--top", 3, "--output", home / "s.html", "--workers", 0]
    assert gexia.main([*map(str, arguments)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == query and lines[4] == "two" and len(lines) == 9
    scores = [float(line.split()[1]) for line in lines[1:4]]
    assert scores == sorted(scores, reverse=True)
    model = tiny_model()
    embedded = pq.read_table(_embed(home, "--data", home / "data", "--granularity", "short")).to_pylist()
    videos = {row["sample_id"]: torch.tensor(row["embedding"]) for row in embedded if row["what"] == "video"}
    texts = pq.read_table(_embed(home, "--texts", _file(home, f"{query}\n")))
    cosines = {name: float(row @ torch.tensor(texts["embedding"][0].as_py())) for name, row in videos.items()}
    assert scores == pytest.approx(sorted(cosines.values(), reverse=True)[:3], abs=1e-3) and len(videos) == 12
    best = max(cosines, key=cosines.get)
    dataset = open_dataset(str(home / "data"))
    (sample,) = [s for split in ("train", "val") for s in all_samples(dataset, split, "short") if s.fields["sample_id"] == best]
    ((video, start, end),) = sample.moments()
    assert f"{video} {clock(start)}-{clock(end)}" in lines[1]
    page = (home / "s.html").read_text()
    assert "a &lt;red&gt; cube" in page and query not in page and page.count("<figure>") == 6
    assert page.count("data:image/jpeg") == 6 and model.architecture["embed_dim"] == 16


def test_long_samples_stored_as_video_are_shown_with_their_clips(home, capsys):
    common = ["search", home / "model", home / "mp4", "x", "--output", home / "l.html", "--workers", 0, "--cache", "none"]
    assert gexia.main([*map(str, common), "--granularity", "long"]) == 0
    assert "0:00.0-0:0" in capsys.readouterr().out and (home / "l.html").read_text().count("data:image") == 2


def test_moments_join_neighbours():
    clips = [("a", 0, 4000), ("a", 4000, 61_500), ("b", 0, 1), ("a", 3_600_000, 3_601_000)]
    fields = {"clips": [dict(zip(("video", "start_ms", "end_ms"), clip)) for clip in clips]}
    moments = Sample(fields, {}, []).moments()
    assert moments == [("a", 0, 61_500), ("b", 0, 1), ("a", 3_600_000, 3_601_000)]
    assert (clock(61_500), clock(3_601_000)) == ("1:01.5", "1:00:01.0")


def test_embed_takes_video_files(home):
    (row,) = pq.read_table(_embed(home, "--videos", home / "a.mp4")).to_pylist()
    assert row["video"] == str(home / "a.mp4") and row["duration_ms"] > 0 and len(row["embedding"]) == 16
    assert sum(x * x for x in row["embedding"]) == pytest.approx(1, abs=1e-5)


def test_samples_without_texts_have_their_videos_embedded(home, tmp_path):
    make_labelled(tmp_path / "data", samples={"test": 4}, captioned=False)
    rows = pq.read_table(_embed(home, "--data", tmp_path / "data")).to_pylist()
    assert [row["what"] for row in rows] == ["video"] * 4


@pytest.mark.parametrize(
    "command, words",
    [
        (["search", "{model}", "{data}", " "], ["QUERY"]),
        (["search", "{model}", "{home}/nowhere", "x"], ["nowhere"]),
        (["search", "{home}/nowhere", "{data}", "x"], ["nowhere", "no saved model"]),
        (["search", "{model}", "{data}", "x", "--split", "test"], ["split test"]),
        (["search", "{model}", "{data}", "x", "--view", "long"], ["--view long", "caption"]),
        (["search", "{model}", "{data}", "x", "--top", "0"], ["--top"]),
        (["search", "{model}", "{data}", "x", "--output", "{home}"], ["--output", "is a folder"]),
        (["search", "{model}", "{data}", "x", "--cache", "none", "--workers", "-1"], ["workers: -1"]),
        (["embed", "{model}", "--data", "{data}", "--output", "{home}/a.mp4/x"], ["--output", "a.mp4 is no folder"]),
        (["embed", "{model}", "--texts", "{home}/nowhere", "--output", "x"], ["--texts", "nowhere"]),
        (["embed", "{model}", "--videos", "{data}/manifest.json", "--output", "x"], ["--videos", "manifest.json"]),
    ],
)
def test_what_cannot_be_is_refused_with_one_line(home, capsys, command, words):
    paths = {"home": home, "model": home / "model", "data": home / "data"}
    assert gexia.main([part.format(**paths) for part in command]) == 2
    error = capsys.readouterr().err
    line = error.splitlines()[-1]
    assert line.startswith("error: ") and not [word for word in words if word not in line]


def _embed(home, *arguments):
    output = home / "found.parquet"
    assert gexia.main([*map(str, ("embed", home / "model", *arguments, "--output", output, "--workers", 0))]) == 0
    return output


def _file(home, text):
    (home / "texts.txt").write_text(text)
    return home / "texts.txt"
