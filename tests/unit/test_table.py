"""`gexia table`: runs beside one another and beside published figures that name their source."""

import json

import pytest

import gexia
from trainer.table import PUBLISHED


def result(direction: str, r1: float, **more) -> dict:
    common = {"task": "retrieval", "granularity": "short", "view": "caption", "direction": direction}
    metrics = {"R@1": r1, "R@5": 50.0, "median_rank": 5.0}
    chance = {"R@1": 0.1, "R@5": 0.5, "median_rank": 500.0}
    counts = {"n": 1000, "videos": 981, "of_videos": 1000}
    return {**common, "protocol": f"{direction}, caption", "metrics": metrics, "chance": chance, **counts, **more}


def write(path, results: list, **more) -> None:
    path.parent.mkdir(exist_ok=True)
    dataset = {"data": "DATA", "digest": "0123456789abcdef", "split": "test", "results": results, **more}
    path.write_text(json.dumps({"checkpoint": "x", "datasets": [dataset]}))


def table(capsys, *arguments) -> tuple[int, str, str]:
    code = gexia.main(["table", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_runs_of_one_benchmark_stand_in_one_table_with_published_figures(tmp_path, capsys):
    both = [result("text to video", 30.0, benchmark="msrvtt"), result("video to text", 31.0, benchmark="msrvtt")]
    write(tmp_path / "a" / "retrieval.json", both)
    write(tmp_path / "b" / "results.json", [both[0] | {"metrics": {"R@1": 33.0}}], before=[both[0]])
    (tmp_path / "a" / "other.json").write_text("[1]")
    code, text, _ = table(capsys, tmp_path / "a", tmp_path / "b" / "results.json", "--output", tmp_path / "t.md")
    assert code == 0 and text == (tmp_path / "t.md").read_text()
    to_video, to_text = text.split("## ")[1:]
    assert to_video.count("measured here") == 3 and to_text.count("measured here") == 1
    assert "| 30.0 | 50.0 | 5.0 | 981 of 1,000 | 01234567 |" in to_video and "| 33.0 |  |  |" in to_video
    assert "| X-CLIP ViT-B/32 | fine-tuned | 46.1 | 73.0 | 2.0 |  |  | X-CLIP, Table 1 |" in to_video
    assert "46.8" in to_text and "46.8" not in to_video


def test_other_data_gets_no_published_figures_and_is_not_mixed_with_a_benchmark(tmp_path, capsys):
    write(tmp_path / "a" / "retrieval.json", [result("text to video", 30.0)])
    write(tmp_path / "b" / "retrieval.json", [result("text to video", 30.0, benchmark="msrvtt")])
    _, text, _ = table(capsys, tmp_path / "a", tmp_path / "b", "--no-published")
    assert text.count("## ") == 2 and "X-CLIP" not in text
    _, text, _ = table(capsys, tmp_path / "a")
    assert "Table" not in text and "DATA (01234567)" in text


def test_figures_of_a_test_split_stand_beside_no_other_split(tmp_path, capsys):
    write(tmp_path / "a" / "retrieval.json", [result("text to video", 30.0, benchmark="msrvtt")], split="train")
    _, text, _ = table(capsys, tmp_path / "a")
    assert "msrvtt, train" in text and "X-CLIP" not in text


def test_every_published_figure_names_a_paper_that_is_described_and_a_table():
    published = json.loads(PUBLISHED.read_text())
    for figure in published["figures"]:
        assert figure["paper"] in published["papers"] and figure["table"].startswith("Table ")
        assert figure["setting"] in ("fine-tuned", "zero-shot") and figure["metrics"]
        assert figure["task"] != "retrieval" or figure["direction"] in ("text to video", "video to text")


@pytest.mark.parametrize("content", ["{}", '{"datasets": null}', '{"datasets": [{"x": 1}]}'])
def test_what_holds_no_results_is_refused_by_name(tmp_path, capsys, content):
    (tmp_path / "x.json").write_text(content)
    for run in (tmp_path, tmp_path / "x.json", tmp_path / "nowhere"):
        code, _, error = table(capsys, run)
        assert code == 2 and error.startswith(f"error: {run}: no results") and error.count("\n") == 1
