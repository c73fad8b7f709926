"""What pretrain.py and evaluate.py refuse: exit code 2 and one line that names the key and the remedy."""

import json
import math
from pathlib import Path

import pytest
import yaml
from make_dataset import make_dataset

from trainer import evaluate, pretrain
from trainer.config import EvaluateConfig, PretrainConfig, check_pretrain, parse, run_script
from trainer.models.towers import architecture

TINY = Path(__file__).parents[2] / "configs" / "pretrain" / "tiny.yaml"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """As many samples as the shared footage gives: 36 short, 7 long, 36 image."""
    folder = tmp_path_factory.mktemp("refusals") / "data"
    make_dataset(folder, shorts={"train": 36}, longs={"train": 7}, size=(48, 48))
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> list[str]:
    """Arguments that make the tiny model tinier."""
    path = tmp_path_factory.mktemp("arch") / "arch.json"
    tower = {"width": 16, "layers": 1}
    vision = {"image_size": 32, "patch_size": 16, "head_width": 8, **tower}
    text = {"context_length": 77, "vocab_size": 49408, "heads": 2, **tower}
    path.write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    return ["--model.name", str(path), "--loader.size", "32", "--loader.workers", "0", "--trackers", "[]"]


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])


def call(monkeypatch, capsys, script: str, *arguments) -> tuple[int, str]:
    """Run a script's main in this process: (exit code, its error output)."""
    config, job = {
        "pretrain": (PretrainConfig, pretrain.pretrain),
        "evaluate": (EvaluateConfig, evaluate.evaluate),
    }[script]
    monkeypatch.setattr("sys.argv", [script, *map(str, arguments)])
    capsys.readouterr()
    code = 0
    try:
        run_script(config, job)
    except SystemExit as error:
        code = error.code
    return code, capsys.readouterr().err


def assert_refused(result: tuple[int, str], *words: str) -> None:
    code, message = result
    assert code == 2 and message.startswith("error: ") and message.count("\n") == 1, message
    assert not [word for word in words if word not in message], message


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--optim.lrr", "1"], ["optim.lrr"]),
        (["--steps", "many"], ["steps", "many"]),
        (["--streams.lv.frame", "3"], ["streams", "frame"]),
        (["--streams.lv.batch", "8"], ["lv", "7", "8"]),  # seven long samples
        (["--streams.lv.texts", "[caption]"], ["streams.lv", "caption"]),
        (["--streams.lv.iter", "{video: 1}"], ["streams.lv.iter", "long", "summary"]),
        (["--streams.lv.frames", "65"], ["streams.lv.frames", "model.positions 64"]),
        (["--loader.split", "test"], ["test"]),
        (["--loader.size", "96"], ["loader.size", "96", "32"]),
        (["--model.name", "ViT-Q"], ["model.name", "ViT-Q"]),
        (["--loss.kind", "sigmoid"], ["loss.kind", "init_logit_bias"]),
        (["--steps", "0"], ["steps"]),
        (["--log_every", "0"], ["log_every: 0 is not at least 1"]),
        (["--checkpoint.keep", "-1"], ["checkpoint.keep: -1 is not at least 1"]),
        (["--checkpoint.every_steps", "0"], ["checkpoint.every_steps: 0"]),
        (["--optim.clip_norm", "-1"], ["optim.clip_norm: -1.0 is not over 0"]),
        (["--optim.lr", ".inf"], ["optim.lr: inf is not 0 or more"]),
        (["--optim.beta1", "1.5"], ["optim.beta1: 1.5"]),
        (["--loader.stall_seconds", ".inf"], ["loader.stall_seconds: inf is not over 0"]),
        (["--loss.max_scale", "0"], ["loss.max_scale: 0.0"]),
        (["--loader.weights", "[.nan]"], ["loader.weights: nan is not over 0"]),
        (["--streams.lv.weight", "0"], ["streams.lv.weight: 0.0"]),
        (["--streams.lv.lanes", "0"], ["streams.lv.lanes: 0"]),
        (["--model.dropout", "2"], ["model.dropout: 2.0"]),
        (["--model.heads", "7"], ["model.heads: 7 does not divide", "16"]),
        (["--model.patch_dropout", "0.5", "--model.frame_grid", "2"], ["model.patch_dropout", "model.frame_grid"]),
        (["--model.pretrained", "x.pt", "--model.image_init", "scratch", "--model.text_init", "scratch"], ["model.pretrained"]),
        (["--validate_every", "5"], ["validate_every", "split val"]),  # the data has none
        (["--config", "nowhere.yaml"], ["nowhere.yaml"]),
        (["--data", "nowhere"], ["nowhere"]),
        (["--data", "tests"], ["tests", "manifest.json"]),
    ],
)
def test_a_bad_config_is_refused(monkeypatch, capsys, tmp_path, data, small, arguments, words):
    output = tmp_path / "run"
    common = ["--config", TINY, "--data", data, "--output", output, *small]
    if arguments[0] == "--data":
        common[3] = arguments[1]
    assert_refused(call(monkeypatch, capsys, "pretrain", *common, *arguments), *words)
    assert not output.exists()


def test_an_output_that_cannot_be_made_is_refused_by_name(monkeypatch, capsys, data, small):
    arguments = ["--config", TINY, "--data", data, "--output", "/proc/none/run", *small]
    assert_refused(call(monkeypatch, capsys, "pretrain", *arguments), "output: /proc/none/run cannot be made")


def test_an_architecture_that_open_clip_cannot_make_is_refused(monkeypatch, capsys, tmp_path, data, small):
    described = json.loads(Path(small[1]).read_text())
    for number, wrong in enumerate(({"vision_cfg": {"layer": 3}}, {"text_cfg": {"width": 17, "heads": 2}})):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(described | wrong))
        arguments = ["--config", TINY, "--data", data, "--output", tmp_path / "run", *small, "--model.name", path]
        assert_refused(call(monkeypatch, capsys, "pretrain", *arguments), "model.name: open_clip cannot make this model")


def test_the_least_that_a_number_may_be_is_taken():
    least = ["--validate_every", "0", "--optim.warmup", "0", "--optim.towers_lr", "0", "--optim.clip_norm", ".inf"]
    least += ["--loader.workers", "0", "--model.dropout", "0", "--loader.cache_gb", "0", "--loader.max_failures", "0"]
    check_pretrain(parse(PretrainConfig, ["--config", str(TINY), "--data", "x", "--output", "y", *least]))


@pytest.mark.parametrize("missing", ["data", "output"])
def test_a_missing_path_is_refused_by_name(monkeypatch, capsys, tmp_path, data, missing):
    given = {"data": data, "output": tmp_path / "run"}
    given.pop(missing)
    arguments = [text for key, value in given.items() for text in (f"--{key}", value)]
    assert_refused(call(monkeypatch, capsys, "pretrain", "--config", TINY, *arguments), f"{missing}: not given")


@pytest.mark.parametrize("text", ["steps: [1", "model: {name: 3, nam: 4}", "just a sentence", "streams: {lv: {}}"])
def test_a_bad_config_file_is_refused(monkeypatch, capsys, tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert_refused(call(monkeypatch, capsys, "pretrain", "--config", path))


@pytest.mark.parametrize("path", sorted((TINY.parents[1]).glob("pretrain/*.yaml")), ids=lambda path: path.stem)
def test_every_pretraining_config_that_comes_with_the_project_is_whole(path):
    config = parse(PretrainConfig, ["--config", str(path), "--data", "x", "--output", "y"])
    check_pretrain(config)
    assert architecture(config.model.name)["vision_cfg"]["image_size"] == config.loader.size


def test_an_evaluation_takes_the_recipe_of_the_stream_that_drew_most(tmp_path):
    """Where two streams of the pretraining drew from one folder."""
    drawn = {"folder": "short", "iter": {"video": 1, "caption": 1}, "frames": 8, "batch": 64, "weight": 2}
    rarely = {"folder": "short", "iter": {"video": 0, "caption": 0}, "frames": 1, "batch": 64, "weight": 1}
    (tmp_path / "streams.json").write_text(json.dumps({"a": drawn, "b": rarely}))
    found = evaluate.choose_recipes(EvaluateConfig(str(tmp_path), granularities=["short"]))["short"]
    assert (found.iter, found.frames) == (drawn["iter"], 8)


def test_the_evaluation_config_that_comes_with_the_project_is_the_papers():
    config = parse(EvaluateConfig, ["--config", str(TINY.parents[1] / "evaluate" / "retrieval.yaml")])
    plain = parse(EvaluateConfig, [])
    assert evaluate.choose_recipes(config) == evaluate.choose_recipes(plain)


def test_the_tiny_config_trains_on_seven_long_samples_and_the_folder_is_then_taken(monkeypatch, capsys, tmp_path, data, small):
    output = tmp_path / "run"
    run = ["--config", TINY, "--data", data, "--output", output, *small, "--steps", "4"]
    assert call(monkeypatch, capsys, "pretrain", *run)[0] == 0
    streams = [json.loads(line)["stream"] for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(streams)) == ["it", "lv", "svst"] and (output / "model" / "config.json").exists()
    assert_refused(call(monkeypatch, capsys, "pretrain", *run, "--seed", "1"), "another seed")
    assert_refused(call(monkeypatch, capsys, "pretrain", *run, "--resume", "false"), "holds this run already")
    assert call(monkeypatch, capsys, "pretrain", *run)[0] == 0  # it was done: nothing to do
    changed = ["--seed", "1", "--allow_changed", "true", "--steps", "5"]
    assert call(monkeypatch, capsys, "pretrain", *run, *changed)[0] == 0
    assert len((output / "metrics.jsonl").read_text().splitlines()) == 5

    asked = ["--checkpoint", output / "model", "--data", data, "--workers", "0"]
    assert_refused(call(monkeypatch, capsys, "evaluate", *asked, "--split", "val"), "split val")
    assert_refused(call(monkeypatch, capsys, "evaluate", *asked, "--iter", "{short: {long: 1}}"), "iter.short", "long")
    assert_refused(call(monkeypatch, capsys, "evaluate", *asked, "--task", "dance"), "task")
    assert_refused(call(monkeypatch, capsys, "evaluate", "--checkpoint", tmp_path, "--data", data), str(tmp_path))
    assert_refused(call(monkeypatch, capsys, "evaluate", "--data", data), "checkpoint: not given")


def test_a_step_without_finite_gradients_ends_the_run_with_its_samples_on_disk(monkeypatch, capsys, tmp_path, data, small):
    real = pretrain.create_model

    def poisoned(config):
        model = real(config)
        model.logit_scale.data.fill_(math.nan)
        return model

    monkeypatch.setattr(pretrain, "create_model", poisoned)
    run = ["--config", TINY, "--data", data, "--output", tmp_path, *small, "--steps", "4"]
    code, message = call(monkeypatch, capsys, "pretrain", *run)
    assert code == 1 and "step 0" in message and "Traceback" not in message
    (found,) = tmp_path.glob("diverged-step-*.json")
    batch = yaml.safe_load(TINY.read_text())["streams"]
    record = json.loads(found.read_text())
    assert len(set(record["sample_ids"])) == batch[record["stream"]]["batch"]
    assert not (tmp_path / "checkpoints").exists()
