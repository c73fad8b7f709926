"""What tasks read, ask and answer, on a small dataset and an untrained model."""

import copy
import json
import shutil
from pathlib import Path

import polars as pl
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from make_labelled import COLOURS, make_labelled

from gex_pipeline import import_benchmark
from shards.errors import UserError
from shards.format import IMPORT_RECORD, SHORT
from shards.plain import open_data
from shards.reader import open_dataset
from trainer.annotations import hold_out, read_fields
from trainer.data_config import DataConfig
from trainer.embeddings import Embedded, Embedder
from trainer.losses import LossConfig
from trainer.models.gexia import GexiaModel
from trainer.stream import evaluation_batches
from trainer.tasks import TASKS, base, retrieval, task_class
from trainer.tasks.base import Recipe, TaskConfig
from trainer.tasks.prompts import TEMPLATES, class_embeddings
from trainer.tasks.saved import create, pack, unpack

ARCH = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 16, "head_width": 8, "layers": 1},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
ITER = {"video": 1, "caption": 1}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("labelled") / "data"
    make_labelled(root)
    return open_dataset(str(root))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GexiaModel(ARCH, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), heads=2).eval()


def batch(dataset, model, task, split="test", size=18):
    loader = DataConfig(size=32, workers=0)
    wanted = model.tokenizer(), task.fields, task.required
    return next(evaluation_batches(dataset, split, SHORT, list(task.views), 2, size, 0, 1, loader, *wanted))


def reader(dataset):
    return lambda split, names: read_fields(dataset, split, SHORT, names)


def make(name, dataset, model, **settings):
    return create(TaskConfig(name=name, **settings), model, ITER, reader(dataset)).eval()


def test_fields_are_read_without_the_frames_in_the_order_of_the_samples(dataset, model):
    task = make("regression", dataset, model)
    found = read_fields(dataset, "test", SHORT, ("target", "label", "nothing"))
    assert [sample["target"] for sample in found] == [fields["target"] for fields in batch(dataset, model, task).fields]
    assert all(sample.keys() == {"target", "label"} for sample in found)


@pytest.mark.parametrize("name, rows, classes", [
    ("classification", [{"label": "red", "label_id": 0}, {"label": "mauve", "label_id": 9}], {"mauve"}),
    ("multilabel", [{"labels": ["red", "mauve"]}, {"labels": []}, {"labels": None}], {"mauve"}),
    ("classification", [{"question": "why?"}], set()),
])  # fmt: skip
def test_classes_whose_videos_are_missing_are_classes_too(dataset, model, tmp_path, name, rows, classes):
    found = open_dataset(str(shutil.copytree(dataset.url, tmp_path / "copy")))
    known = make(name, dataset, model).spec["labels"]
    (tmp_path / "copy" / "import").mkdir()
    record = {"splits": {}, "classes": import_benchmark.classes(pl.DataFrame(rows))}
    (tmp_path / "copy" / IMPORT_RECORD).write_text(json.dumps(record))
    assert {*make(name, found, model).spec["labels"]} == {*known} | classes and "mauve" not in known


def test_held_out_sources_are_in_no_other_part_and_all_are_in_one(dataset):
    rest, held = hold_out(dataset, "train", 0.25)
    names = [{s for shard in p.select("train") for s in p.sidecar(shard)["source_id"].to_pylist()} for p in (rest, held)]
    assert (len(names[0]), len(names[1])) == (36, 12) and not names[0] & names[1]
    assert sum(shard.samples for shard in held.select("train", SHORT)) == 12
    assert not held.select("test")
    fields = [read_fields(part, "train", SHORT, ("questions", "answers")) for part in (rest, held)]
    assert {sample["answers"][2].split()[-1] for sample in fields[1]} == names[1]
    again = hold_out(dataset, "train", 0.25)[1]
    assert again.sources == names[1]


def test_a_split_with_a_single_source_cannot_be_held_out(dataset):
    with pytest.raises(UserError, match="too few"):
        hold_out(dataset, "train", 1.0)


@pytest.mark.parametrize("prompts", ["video", "simple", "imagenet"])
def test_an_untrained_classification_is_the_nearest_mean_of_the_prompts(dataset, model, prompts):
    task = make("classification", dataset, model, prompts=prompts)
    part = batch(dataset, model, task)
    inputs = task.inputs(part)
    assert task.spec["labels"] == list(COLOURS) and task.spec["keys"] == [10, 11, 12, 13]
    with torch.no_grad():
        scores = task(inputs)["scores"]
        video = model.encode_video(part.frames, part.frame_mask, 1)
        means = []
        for label in COLOURS:
            tokens = model.tokenizer()([template(label) for template in TEMPLATES[prompts]])
            rows = model.encode_text(tokens[:, None], torch.ones(len(tokens), 1, dtype=torch.bool), 1)
            means.append(F.normalize(rows, dim=-1).mean(dim=0))
        cosines = video @ F.normalize(torch.stack(means), dim=-1).T
    assert torch.allclose(scores, model.logit_scale.exp() * cosines, atol=1e-4)
    assert TEMPLATES["video"][0]("dog") == "A video of a dog." and len(TEMPLATES["imagenet"]) == 80


def test_class_embeddings_are_means_of_normalised_ones():
    embed = lambda texts: F.normalize(torch.tensor([[len(text), 1.0] for text in texts]), dim=-1)  # noqa: E731
    (found,) = class_embeddings(embed, ["ox"], "video")
    assert torch.allclose(found, F.normalize(torch.tensor([len("A video of a ox."), 1.0]), dim=-1))


def test_labels_become_their_columns(dataset, model):
    task = make("multilabel", dataset, model)
    part = batch(dataset, model, task)
    right = task.inputs(part)["right"]
    assert task.spec["labels"] == sorted([*COLOURS, "left", "right"])
    for row, fields in zip(right, part.fields, strict=True):
        assert [task.spec["labels"][i] for i in row.nonzero()[:, 0]] == sorted(fields["labels"])


def test_options_are_shuffled_by_seed_and_sample_and_the_right_one_is_known(dataset, model):
    task = make("multiple_choice", dataset, model)
    part = batch(dataset, model, task)
    first, again, step = task.inputs(part), task.inputs(part), task.inputs(part, (0, 7))
    assert torch.equal(first["right"], again["right"]) and torch.equal(first["tokens"], again["tokens"])
    assert not torch.equal(first["right"], step["right"])
    colours = torch.tensor([fields["answer_id"] for fields in part.fields])
    assert len(first["right"][colours == colours[0]].unique()) > 1  # not by the answer's own place
    with torch.no_grad():
        answers = task(first)["scores"].softmax(dim=1).gather(1, first["right"][:, None])
        other = task({**step, "keys": None})["scores"].softmax(dim=1).gather(1, step["right"][:, None])
    assert torch.allclose(answers, other, atol=1e-5)  # the order changes nothing else


def test_a_constant_answer_to_four_options_is_chance(dataset, model):
    task = make("multiple_choice", dataset, model)
    metrics, chance = task.measure({"scores": torch.zeros(40, 4), "right": torch.arange(40) % 4})
    assert metrics == chance == {"accuracy": pytest.approx(25)}


def test_open_answers_are_trains_most_frequent_and_others_are_wrong(dataset, model):
    task = make("open_qa", dataset, model, answers=6, questions=1)
    assert set(task.spec["answers"]) == {*COLOURS, "left", "right"}
    part = batch(dataset, model, task)
    inputs = task.inputs(part)
    assert inputs["right"].view(-1, 3)[:, 2].unique().tolist() == [-1]  # the answers about who made it
    assert len(task.inputs(part, (0, 3))["right"]) == len(part.fields)  # one a video, and one that can be answered
    assert (task.inputs(part, (0, 3))["right"] >= 0).all()
    with torch.no_grad():
        found = task.predictions(task(inputs), inputs)
    best = F.one_hot(found["right"].clamp(min=0), 6).float()
    assert task.measure({**found, "scores": best})[0]["top-1"] == pytest.approx(100 * 2 / 3)


def test_an_untrained_regression_answers_trains_mean(dataset, model):
    task = make("regression", dataset, model)
    part = batch(dataset, model, task)
    inputs = task.inputs(part)
    with torch.no_grad():
        found = task.predictions(task(inputs), inputs)
    metrics, chance = task.measure(found)
    assert metrics["MSE"] == pytest.approx(chance["MSE"])
    targets = [sample["target"] for sample in read_fields(dataset, "train", SHORT, ("target",))]
    expected = ((found["right"] - sum(targets) / len(targets)) ** 2).mean().item()
    assert metrics["MSE"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_a_packed_task_answers_as_before_and_every_loss_reaches_what_is_trained(dataset, model, name, tmp_path):
    task = make(name, dataset, model)
    part = batch(dataset, model, task, size=6)
    inputs = task.inputs(part, (0, 1))
    losses = task.losses(task(inputs), inputs, LossConfig())
    sum(losses.values()).backward()
    trained = [p for n, p in task.named_parameters() if n.startswith("head.")] or [model.video_iam.attention_out.weight]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    model.zero_grad(set_to_none=True)
    for file, data in pack(task).items():
        (tmp_path / file).write_bytes(data)
    restored = unpack(tmp_path, model).eval()
    assert type(restored) is task_class(name) and restored.trained
    plain = task.inputs(part)
    with torch.no_grad():
        before, after = task.eval()(plain), restored(plain)
    for key, value in before.items():
        assert value is after[key] is None or torch.equal(value, after[key])


def test_data_without_a_tasks_fields_is_refused(dataset, model):
    def nothing(split, names):
        return [{}]

    for name in TASKS.keys() - {"retrieval"}:
        with pytest.raises(UserError, match="task.name"):
            create(TaskConfig(name=name), model, ITER, nothing)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_an_evaluation_with_kept_embeddings_says_the_same_and_encodes_no_video(dataset, model, name, tmp_path, monkeypatch):
    task = make(name, dataset, model)
    asked = Accelerator(cpu=True), dataset, SHORT, Recipe(ITER, 2), 7, DataConfig(split="test", size=32, workers=0)
    expected = task.evaluate(*asked)
    assert task.evaluate(*asked, tmp_path) == expected and list(tmp_path.iterdir())
    monkeypatch.setattr(model, "encode_video", None)
    assert task.evaluate(*asked, tmp_path) == expected


def test_videos_that_were_not_kept_are_left_out_and_ids_that_repeat_look_up_nothing(dataset, model, tmp_path, monkeypatch):
    class Changed(Embedder):
        def __call__(self, *asked):
            found = super().__call__(*asked)["video"]
            ids = change(found.sample_ids)
            return {"video": Embedded(found.rows[: len(ids)], found.sample[: len(ids)], ids)}

    task = make("multilabel", dataset, model)
    asked = Accelerator(cpu=True), dataset, SHORT, Recipe(ITER, 2), 1, DataConfig(split="test", size=32, workers=0)
    (expected,) = task.evaluate(*asked)
    monkeypatch.setattr(base, "Embedder", Changed)
    change = lambda ids: ids[:-1]
    (fewer,) = task.evaluate(*asked, tmp_path)
    assert fewer["n"] == fewer["videos"] == expected["n"] - 1
    change = lambda ids: ids[:1] * len(ids)
    assert task.evaluate(*asked, tmp_path) == [expected]


def test_plain_tars_count_their_samples_as_videos(dataset, model, tmp_path):
    for tar in Path(dataset.url).glob("test/short/*.tar"):
        (tmp_path / "test/short").mkdir(parents=True, exist_ok=True)
        shutil.copy(tar, tmp_path / "test/short")
    plain, task = open_data(str(tmp_path)), make("classification", dataset, model)
    asked = Recipe(ITER, 2), 7, DataConfig(split="test", size=32, workers=0)
    (found,) = task.evaluate(Accelerator(cpu=True), plain, SHORT, *asked)
    assert found["videos"] == found["n"] == 18
    (found, _) = retrieval.evaluate(Accelerator(cpu=True), model, plain, {SHORT: asked[0]}, *asked[1:])
    assert found["videos"] == found["candidates"] == 18


def test_a_class_number_with_two_names_is_refused(model):
    samples = [{"label": "archery", "label_id": 0}, {"label": "brush hair", "label_id": 0}]
    with pytest.raises(UserError, match="the class 0 is 'archery' and 'brush hair'"):
        create(TaskConfig(name="classification"), model, ITER, lambda split, names: samples)


@pytest.mark.parametrize(
    "name, fields",
    [
        ("multiple_choice", {"answer_id": 4}),
        ("multiple_choice", {"options": ["red"] * 5}),
        ("open_qa", {"answers": ["red"]}),
        ("regression", {"target": "3"}),
        ("multilabel", {"labels": "red,left"}),
    ],
)
def test_fields_of_a_wrong_shape_are_told_with_their_sample(dataset, model, name, fields):
    task = make(name, dataset, model)
    part = batch(dataset, model, task, size=1)
    part.fields[0] |= fields
    with pytest.raises(UserError, match=f"sample {part.sample_ids[0]}: .*{next(iter(fields))}"):
        task.inputs(part)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_model_of_no_numbers_has_no_score(dataset, model, name):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.image_tower.get_parameter(next(name for name, _ in broken.image_tower.named_parameters())).fill_(torch.nan)
    task = make(name, dataset, broken)
    with torch.no_grad():
        task.head.weight.fill_(torch.nan) if name == "regression" else None
    with pytest.raises(UserError, match="no numbers"):
        task.evaluate(Accelerator(cpu=True), dataset, SHORT, Recipe(ITER, 2), 7, DataConfig(split="test", size=32, workers=0))
