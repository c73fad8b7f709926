"""Embeddings of a dataset: several captions a video, kept and taken again, never a stale or partial file."""

import json

import numpy as np
import pytest
import torch
import webdataset
from accelerate import Accelerator
from make_dataset import jpeg, make_dataset
from make_model import tiny_model

from shards.plain import open_data
from shards.reader import open_dataset
from trainer import embeddings
from trainer.data_config import DataConfig
from trainer.embeddings import Embedder
from trainer.tasks import retrieval

ITER = {"video": 1, "caption": 1}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Ten short samples in the split val, of which every third has several captions, as imports of MSVD have."""
    folder = tmp_path_factory.mktemp("embeddings") / "data"
    make_dataset(folder, shorts={"val": 10}, longs={"val": 4}, size=(40, 40), captions=lambda i: 1 + 2 * (i % 3 == 0))
    return open_dataset(str(folder))


def embedder(model, folder=None, **options) -> Embedder:
    return Embedder(Accelerator(cpu=True), model, 4, DataConfig(split="val", size=32, workers=0, **options), folder)


def test_every_caption_of_a_video_is_a_text_of_its_own(model, dataset):
    found = embedder(model)(dataset, "short", 4, ITER)
    assert found["video"].rows.shape == (10, 16) and found["video"].sample.tolist() == list(range(10))
    counts = found["caption"].sample.bincount()
    assert sorted(counts.tolist()) == [1] * 6 + [3] * 4 and len(found["caption"].rows) == 18
    samples = {}
    for shard in dataset.select("val", "short"):
        for line in dataset.sidecar(shard).to_pylist():
            meta = json.loads(bytes(dataset.read_sample(shard, line)["json"]))
            samples[meta["sample_id"]] = meta.get("captions") or [meta["caption"]]
    texts = [caption for name in found["caption"].sample_ids for caption in samples[name]]
    torch.testing.assert_close(embedder(model).texts(texts, 1), found["caption"].rows, rtol=0, atol=1e-6)


def test_results_count_the_queries_and_candidates_of_each_direction(model, dataset):
    recipe = retrieval.Recipe(ITER, 4)
    loader = DataConfig(split="val", size=32, workers=0)
    found = retrieval.evaluate(Accelerator(cpu=True), model, dataset, {"short": recipe}, 4, loader)
    to_video, to_text = found
    assert (to_video["candidates"], to_text["candidates"]) == (10, 18)
    assert to_video["chance"]["R@1"] == pytest.approx(10)
    assert to_text["chance"]["R@1"] == pytest.approx(100 * (6 / 18 + 4 * 3 / 18) / 10)


def test_kept_embeddings_are_taken_again_and_never_for_another_model_or_recipe(model, dataset, tmp_path, monkeypatch):
    first = embedder(model, tmp_path)(dataset, "short", 4, ITER)
    assert len(list(tmp_path.iterdir())) == 2
    reads, real = [], embeddings.evaluation_batches
    monkeypatch.setattr(embeddings, "evaluation_batches", lambda *a: reads.append(a) or real(*a))
    again = embedder(model, tmp_path)(dataset, "short", 4, ITER)
    assert not reads
    for name, found in first.items():
        assert torch.equal(found.rows, again[name].rows) and torch.equal(found.sample, again[name].sample)
        assert found.sample_ids == again[name].sample_ids
    embedder(model, tmp_path)(dataset, "short", 4, {"caption": 1, "video": 2})  # another #iter of the videos alone
    assert len(reads) == 1 and reads[0][3] == [] and len(list(tmp_path.iterdir())) == 3
    embedder(model, tmp_path)(dataset, "short", 2, {"video": 1})
    assert len(reads) == 2 and len(list(tmp_path.iterdir())) == 4
    with torch.no_grad():
        model.logit_scale += 1
    embedder(model, tmp_path)(dataset, "short", 4, {"video": 1})
    with torch.no_grad():
        model.logit_scale -= 1
    assert len(reads) == 3

    damaged = sorted(tmp_path.glob("short-caption-*"))[0]
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert torch.equal(embedder(model, tmp_path)(dataset, "short", 4, ITER)["caption"].rows, first["caption"].rows)
    assert len(reads) == 4


def test_corrected_captions_of_plain_tars_are_embedded_anew(model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    picture, found = jpeg(np.random.default_rng(0), (40, 40)), []
    for caption in ("a red ball", "a sad bull"):
        (tmp_path / "val").mkdir(exist_ok=True)
        with webdataset.TarWriter(str(tmp_path / "val/a.tar")) as tar:
            tar.write({"__key__": "0", "jpg": picture, "txt": caption})
        dataset = open_data(str(tmp_path))
        found.append(embedder(model, tmp_path / "kept")(dataset, "image", 1, {"caption": 1})["caption"].rows)
    assert not torch.equal(*found)


def test_what_a_sample_was_left_out_of_is_not_kept_and_videos_and_texts_stay_pairs(model, tmp_path):
    folder = tmp_path / "data"
    make_dataset(folder, shorts={"val": 10}, longs={}, size=(40, 40))
    dataset = open_dataset(str(folder))
    kept = embedder(model, tmp_path / "kept")(dataset, "short", 4, {"caption": 1})
    shard = dataset.select("val", "short")[0]
    line = dataset.sidecar(shard).to_pylist()[2]
    tar = folder / shard.path
    data = bytearray(tar.read_bytes())
    data[line["offset"] + 512 : line["offset"] + 900] = b"x" * 388  # its json
    tar.write_bytes(data)
    found = embedder(model, tmp_path / "kept")(dataset, "short", 4, {"caption": 1, "video": 1})
    rest = [name for name in kept["caption"].sample_ids if name != line["sample_id"]]
    assert found["video"].sample_ids == found["caption"].sample_ids == rest
    assert len(found["caption"].rows) == len(found["video"].rows) == 9
    assert len(list((tmp_path / "kept").iterdir())) == 1
