"""The shards serve readers that know nothing of us."""

import re
from argparse import Namespace
from functools import partial
from pathlib import Path

import pytest
import webdataset
from make_dataset import make_dataset

from shards import reader


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> reader.Dataset:
    root = tmp_path_factory.mktemp("dataset")
    make_dataset(root, shorts={"train": 12}, longs={"train": 4}, size=(96, 64))
    return reader.open_dataset(str(root))


def urls(dataset: reader.Dataset, granularity: str) -> list[str]:
    return [dataset.shard_url(shard) for shard in dataset.select("train", granularity)]


def captions(dataset: reader.Dataset, granularity: str) -> list[str]:
    return [fields["txt"].decode() for url in urls(dataset, granularity) for _, fields in reader.iter_shard(url)]


def test_open_clips_own_reader_takes_image_shards_as_they_are(dataset, monkeypatch):
    open_clip = pytest.importorskip("open_clip")
    data = pytest.importorskip("open_clip_train.data")
    # open_clip 3.3's training pipeline asks for webdataset <= 0.2.86: newer ones mark the end of a shard with an empty
    # sample, for any tar. Without the mark (the fix in open_clip's issue 935) it is the same reader.
    monkeypatch.setattr(data, "tar_file_expander", partial(data.tar_file_expander, eof_value=None))
    preprocess = open_clip.image_transform(32, is_train=False)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    args = Namespace(
        train_data="::".join(urls(dataset, "image")),
        val_data="::".join(urls(dataset, "image")),
        train_num_samples=12,
        val_num_samples=12,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        batch_size=4,
        workers=0,
        world_size=1,
        seed=0,
    )
    expected = sorted(tokenizer(captions(dataset, "image")).tolist())
    for is_train in (True, False):
        info = data.get_wds_dataset(args, preprocess, is_train=is_train, tokenizer=tokenizer)
        assert isinstance(info, data.DataInfo)
        info.set_epoch(0)
        images, texts = zip(*info.dataloader)
        assert [tuple(batch.shape) for batch in images] == [(4, 3, 32, 32)] * 3
        assert sorted(row for batch in texts for row in batch.tolist()) == expected


def test_the_cards_own_snippet_runs(dataset, monkeypatch, capsys):
    [snippet] = re.findall(r"```python\n(.*?)```", Path(dataset.url, "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(dataset.url)
    exec(snippet, {})
    assert len(capsys.readouterr().out.splitlines()) == dataset.select("train", "short")[0].samples


def test_plain_webdataset_takes_short_shards_as_they_are(dataset):
    samples = webdataset.WebDataset(urls(dataset, "short"), shardshuffle=False).decode("rgb8")
    fields = ["000.jpg", "001.jpg", "002.jpg", "003.jpg", "txt", "json"]
    rows = list(samples.to_tuple(*fields))
    assert [row[4] for row in rows] == captions(dataset, "short")
    assert all(row[5]["caption"] == row[4] for row in rows)
    assert {frame.shape for row in rows for frame in row[:4]} == {(64, 96, 3)}


def test_plain_webdataset_takes_long_shards_as_they_are(dataset):
    samples = webdataset.WebDataset(urls(dataset, "long"), shardshuffle=False).decode("rgb8")
    rows = list(samples.to_tuple("007.jpg", "txt", "summary.txt", "json"))
    assert [row[1] for row in rows] == captions(dataset, "long")
    assert all(row[3]["sentences"]["summary"] == [row[2]] for row in rows)
