"""Real runs of trainer/finetune.py on the CPU: what it learns, on any number of ranks, and through an interruption."""

import json
from pathlib import Path

import pytest
import torch
from finetune_tasks import finetune_all
from make_labelled import make_labelled
from safetensors.torch import load_file
from test_pretrain import ARCH, finish, launch, leave_nothing_behind, records  # noqa: F401

from shards.errors import UserError
from trainer import checkpoint
from trainer.config import EvaluateConfig, parse
from trainer.evaluate import evaluate
from trainer.finetune import finetune
from trainer.finetune_config import FinetuneConfig
from trainer.models.gexia import GexiaModel
from trainer.tasks import TASKS

STEPS = 12


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a dataset (`data`) and an untrained model (`model`)."""
    home = tmp_path_factory.mktemp("finetune")
    make_labelled(home / "data")
    torch.manual_seed(0)
    GexiaModel(ARCH, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), heads=2, dropout=0.1).save_pretrained(home / "model")
    return home


def arguments(home: Path, output: str, *more) -> list[str]:
    keys = {
        "data": home / "data", "checkpoint": home / "model", "output": home / output, "steps": STEPS, "batch": 16,
        "frames": 2, "loader.size": 32, "loader.workers": 0, "task.name": "classification", "splits.held_out": 0.25,
        "optim.lr": 3e-3, "optim.towers_lr": 3e-3, "optim.warmup": 2, "save.every_steps": 4, "select_every": 4,
        "eval_batch": 8, "trackers": "[]",
    }  # fmt: skip
    return [part for key, value in keys.items() for part in (f"--{key}", str(value))] + [*map(str, more)]


def run(home: Path, output: str, *more) -> dict:
    finetune(parse(FinetuneConfig, arguments(home, output, *more)))
    return json.loads((home / output / "results.json").read_text())


@pytest.fixture(scope="module")
def calm(home) -> dict:
    return run(home, "calm")


def test_a_fine_tuned_classification_beats_zero_shot_and_chance(home, calm):
    (dataset,) = calm["datasets"]
    (before,), (after,) = dataset["before"], dataset["results"]
    assert before["protocol"].startswith("zero-shot") and after["protocol"].startswith("fine-tuned")
    assert after["metrics"]["top-1"] >= 30 + max(before["metrics"]["top-1"], after["chance"]["top-1"])
    assert (after["n"], after["videos"], after["of_videos"]) == (18, 18, None)
    table = (home / "calm/results.md").read_text()
    assert table.count("| chance |") == 1 and "25% of the sources of train, held out" in table
    assert {"config.json", "model.safetensors", "task.json", "head.safetensors", "streams.json"} <= {
        path.name for path in (home / "calm/model").iterdir()
    }


def test_the_model_is_the_one_that_was_best_on_the_held_out_part(home, calm):
    chosen = calm["chosen"]
    assert chosen["step"] in (4, 8, 12) and chosen["metric"] == "top-1"
    best, model = load_file(home / "calm/best.safetensors"), load_file(home / "calm/model/model.safetensors")
    assert all(torch.equal(value, best[f"model.{name}"]) for name, value in model.items())


@pytest.fixture(scope="module")
def on_one_and_two_ranks(home) -> tuple[Path, Path]:
    """Folders with a few steps of every task, on 1 rank and on 2."""
    common = [*arguments(home, "unused"), "--steps", "4", "--select_every", "2", "--optim.lr", "1e-3"]
    two = launch("../tests/finetune_tasks.py", 2, home / "two", *common)
    finetune_all(str(home / "one"), common)
    finish(two)
    return home / "one", home / "two"


@pytest.mark.parametrize("task", TASKS)
def test_two_ranks_learn_and_score_the_same(on_one_and_two_ranks, task):
    runs = [folder / task for folder in on_one_and_two_ranks]
    one_losses, two_losses = map(records, runs)
    for step, record in one_losses.items():
        assert two_losses[step]["loss"] == pytest.approx(record["loss"], abs=1e-4)
    one, two = (json.loads((run / "results.json").read_text()) for run in runs)
    assert two["chosen"]["value"] == pytest.approx(one["chosen"]["value"], rel=1e-4)
    for when in ("before", "results"):
        for expected, found in zip(one["datasets"][0][when], two["datasets"][0][when], strict=True):
            assert found["metrics"] == pytest.approx(expected["metrics"], rel=1e-4)
            assert found["n"] == expected["n"]


def test_an_interrupted_run_ends_as_a_calm_one(home, calm, monkeypatch):
    save = checkpoint.save

    def save_and_die(output, step, *more):
        save(output, step, *more)
        if step == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        run(home, "shaken")
    monkeypatch.undo()
    assert run(home, "shaken")["datasets"] == calm["datasets"]
    for name in ("model.safetensors", "head.safetensors"):
        assert (home / "shaken/model" / name).read_bytes() == (home / "calm/model" / name).read_bytes()


def test_evaluation_knows_a_fine_tuned_model_and_a_plain_one(home, calm):
    def evaluated(model: str, task: str) -> list[dict]:
        keys = {"checkpoint": home / model, "data": home / "data", "task": task, "split": "test", "workers": 0}
        more = {"output": home / "evaluated", "frames": "{short: 2}", "iter": "{short: {video: 1, caption: 1}}"}
        evaluate(parse(EvaluateConfig, [part for key, value in (keys | more).items() for part in (f"--{key}", str(value))]))
        return json.loads((home / f"evaluated/{task}.json").read_text())["datasets"][0]["results"]

    (dataset,) = calm["datasets"]
    assert evaluated("calm/model", "classification") == dataset["results"]
    assert evaluated("model", "classification") == dataset["before"]
    with pytest.raises(UserError, match="regression needs a model that trainer/finetune.py trained for it"):
        evaluated("calm/model", "regression")


def test_a_linear_probe_leaves_the_model_as_it_was(home):
    run(home, "probe", "--optim.lr", 0, "--optim.towers_lr", 0, "--optim.head_lr", 0.01)
    before, after = (load_file(home / name / "model.safetensors") for name in ("model", "probe/model"))
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize(
    "more, message",
    [
        (["--splits.test", "train"], "splits.test: train is what the model learns from"),
        (["--splits.select", "test"], "splits.test: test is what the model learns from or is chosen on"),
        (["--splits.test", "val"], "no short samples in the split val"),
        (["--splits.held_out", "0"], "splits.held_out"),
        (["--task.answers", "0"], "task.answers: 0 is not at least 1"),
        (["--output", __file__], "is a file, where a folder is wanted"),
        (["--output", "/proc/none/here"], "output: /proc/none/here cannot be made"),
        (["--iter", "{video: 1}"], "iter: needs exactly"),
        (["--frames", "100"], "frames: 100 is over the model's positions"),
        (["--checkpoint", "nowhere"], "nowhere is no saved model"),
        (["--optim.lr", "0", "--optim.towers_lr", "0"], "nothing would be trained"),
    ],
)
def test_mistakes_are_one_clear_line(home, more, message):
    with pytest.raises(UserError, match=message) as caught:
        run(home, "bad", *more)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "more, message",
    [
        (["--frames", "{shorts: 2}"], "frames.shorts: no such granularity"),
        (["--iter", "{short: {video: -1}}"], "iter.short: .* is under 0"),
        (["--frames", "{short: 0}"], "frames.short: 0 is under 1"),
        (["--batch", "0"], "batch: 0"),
        (["--output", __file__], "is a file, where a folder is wanted"),
        (["--checkpoint", "org/name"], "output: not given"),
    ],
)
def test_mistakes_of_an_evaluation_are_one_clear_line(home, more, message):
    keys = ["--checkpoint", str(home / "model"), "--data", str(home / "data"), "--split", "test", *more]
    with pytest.raises(UserError, match=message):
        evaluate(parse(EvaluateConfig, keys))


def test_samples_without_texts_cannot_be_retrieved(home, tmp_path):
    make_labelled(tmp_path / "data", captioned=False)
    keys = ["--checkpoint", str(home / "model"), "--data", str(tmp_path / "data"), "--split", "test", "--workers", "0"]
    with pytest.raises(UserError, match="no short sample of the split test has both a video and texts"):
        evaluate(parse(EvaluateConfig, keys))


def test_an_evaluation_leaves_out_no_more_samples_than_it_may(home, tmp_path):
    make_labelled(tmp_path / "data")
    (tmp_path / "data/test/short/00002.tar").unlink()
    keys = ["--checkpoint", str(home / "model"), "--data", str(tmp_path / "data"), "--split", "test", "--workers", "0"]
    with pytest.raises(UserError, match="more bad samples than max_failures=3 allows: 4 unreadable in .*00002.tar"):
        evaluate(parse(EvaluateConfig, [*keys, "--max_failures", "3"]))


def test_evaluations_beside_a_checkpoint_outlive_the_end_of_the_run_told_again(home, calm):
    keys = {"checkpoint": home / "calm/model", "data": home / "data", "task": "classification", "workers": 0}
    for split in ("test", "train"):
        told = [part for key, value in (keys | {"split": split}).items() for part in (f"--{key}", str(value))]
        evaluate(parse(EvaluateConfig, told))
    digest = calm["datasets"][0]["digest"][:8]
    assert run(home, "calm") == calm
    files = {path.name for path in (home / "calm/model").iterdir()}
    assert {f"classification-{split}-{digest}.json" for split in ("test", "train")} | {"embeddings"} <= files
