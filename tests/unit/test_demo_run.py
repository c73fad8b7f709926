"""Promises of the demo's stages: nothing is done twice, nothing stale is kept, a failure says where to look."""

import sys
from pathlib import Path

import pytest

from ops.demo.run import Stage, StageFailed, misses, run, seconds


def stage(name: str, output: Path, settings: str = "", fails: bool = False) -> Stage:
    """A stage that adds a line to its result, and then fails if it is told to."""
    code = f"open({str(output / name)!r}, 'a').write('x'); print('said'); raise SystemExit({7 if fails else 0})"
    return Stage(name, "a test", output / name, [sys.executable, "-c", code], [settings])


def test_a_finished_stage_is_not_run_again(tmp_path, capsys):
    plan = [stage("render", tmp_path), stage("expand", tmp_path)]
    run(plan, tmp_path)
    before = seconds(tmp_path)
    run(plan, tmp_path)
    assert (tmp_path / "render").read_text() == (tmp_path / "expand").read_text() == "x"
    assert list(before) == ["render", "expand"] and seconds(tmp_path) == before
    assert capsys.readouterr().out.count("done before") == 2


def test_changed_settings_redo_the_stage_and_all_after_it_from_nothing(tmp_path):
    names = ("render", "expand", "train")
    run([stage(name, tmp_path) for name in names], tmp_path)
    for name in names:
        (tmp_path / name).write_text("old")
    run([stage(name, tmp_path, settings="new" if name == "expand" else "") for name in names], tmp_path)
    assert [(tmp_path / name).read_text() for name in names] == ["old", "x", "x"]


def test_a_failed_stage_ends_the_demo_names_its_log_and_goes_on_next_time(tmp_path):
    with pytest.raises(StageFailed, match="said(.|\n)*exit code 7.*render.log"):
        run([stage("render", tmp_path, fails=True), stage("expand", tmp_path)], tmp_path)
    assert not (tmp_path / "expand").exists() and seconds(tmp_path) == {}
    with pytest.raises(StageFailed):
        run([stage("render", tmp_path, fails=True)], tmp_path)
    assert (tmp_path / "render").read_text() == "xx"


@pytest.mark.parametrize("recall, candidates, missed", [(4.0, 200, 0), (3.9, 200, 1), (7.9, 100, 2)])
def test_the_targets_are_eight_times_chance_and_enough_samples(recall, candidates, missed):
    result = {
        "granularity": "short",
        "view": "caption",
        "direction": "text to video",
        "candidates": candidates,
        "metrics": {"R@1": recall},
        "chance": {"R@1": 100 / candidates},
    }
    assert len(misses([result])) == missed
