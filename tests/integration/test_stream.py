"""The stream on real shards and processes: what comes out is the order's, however it is cut and read."""

import json
import re
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
import torch
from make_dataset import make_dataset

from shards.errors import UserError
from shards.plain import open_data
from shards.reader import iter_shard, open_dataset
from trainer.data_config import DataConfig, StreamConfig
from trainer.stream import Streams, evaluation_batches

STREAMS = {
    "svst": StreamConfig("short", ["caption"], {"video": 1, "caption": 1}, frames=3, batch=16, weight=2.0),
    "lv": StreamConfig("long", ["long", "summary"], {"video": 3, "long": 3, "summary": 1}, frames=6, batch=4),
    "it": StreamConfig("image", ["caption"], {"video": 0, "caption": 1}, frames=1, batch=8),
}
SHORT = {"svst": STREAMS["svst"]}


def tokenizer(texts: list[str]) -> torch.Tensor:
    """Words to numbers, as open_clip's tokenizers shape them: start, words, end, padding, cut at 12."""
    tokens = torch.zeros(len(texts), 12, dtype=torch.int64)
    for row, text in zip(tokens, texts):
        ids = [1] + [3 + sum(map(ord, word)) for word in text.split()][:10] + [2]
        row[: len(ids)] = torch.tensor(ids)
    return tokens


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    make_dataset(path, shorts={"train": 60, "val": 11}, longs={"train": 10, "val": 3}, rows=3)
    return path


@pytest.fixture
def own_root(tmp_path):
    """A dataset to damage."""
    make_dataset(tmp_path, shorts={"train": 60, "val": 9}, longs={"train": 10, "val": 3}, rows=3)
    return tmp_path


def streams(root, configs=STREAMS, rank=0, world_size=1, seed=0, **data):
    settings = {"size": 32, "workers": 0, "block": 4, **data}
    return Streams([open_data(str(root))], configs, DataConfig(**settings), seed, rank, world_size, tokenizer)


def content(batch) -> tuple:
    """Everything a batch holds, comparable."""
    texts = {v: (t.tokens.tolist(), t.mask.tolist(), t.text_id.tolist()) for v, t in batch.texts.items()}
    return batch.stream, batch.step, batch.sample_ids, batch.frames.numpy().tobytes(), batch.frame_mask.tolist(), texts


def contents(root, start=0, steps=12, **settings) -> list[tuple]:
    with streams(root, **settings) as stream:
        return [content(batch) for batch in stream.batches(start, steps)]


def test_batches_are_the_same_bytes_for_any_number_of_workers(root):
    alone = contents(root)
    for workers in (1, 2):
        assert contents(root, workers=workers, prefetch=workers) == alone


def test_starting_at_a_step_gives_the_batches_of_an_uninterrupted_run(root):
    whole = contents(root, steps=20)
    for start in (1, 7, 13):
        assert contents(root, start=start, steps=20 - start, workers=2) == whole[start:]


def test_ranks_of_1_2_and_4_share_the_same_global_batches(root):
    whole = contents(root, steps=10)
    for world in (2, 4):
        ranks = [contents(root, steps=10, rank=rank, world_size=world) for rank in range(world)]
        for step, expected in enumerate(whole):
            assert sum((ranks[r][step][2] for r in range(world)), []) == expected[2]
            assert b"".join(ranks[r][step][3] for r in range(world)) == expected[3]


def test_frames_and_texts_belong_to_their_sample(root):
    stored = {}
    dataset = open_dataset(str(root))
    for shard in dataset.select("train", "long"):
        for _, members in iter_shard(dataset.shard_url(shard)):
            meta = json.loads(members["json"])
            stored[meta["sample_id"]] = meta
    with streams(root, {"lv": STREAMS["lv"]}) as stream:
        for batch in stream.batches(0, 4):
            assert batch.frames.shape == (4, 6, 3, 32, 32) and batch.frames.dtype == torch.uint8
            for i, sample in enumerate(batch.sample_ids):
                for view, text in batch.texts.items():
                    sentences = stored[sample]["sentences"][view]
                    assert batch.sentences[view][i] == sentences
                    tokens = text.tokens[i][text.mask[i]]
                    assert sum(len(row[(row > 2)]) for row in tokens) == sum(len(s.split()) for s in sentences)


def test_a_held_batch_is_never_overwritten(root):
    with streams(root, workers=2, prefetch=2) as stream:
        held = list(stream.batches(0, 15))
        assert [content(batch) for batch in held] == contents(root, steps=15)


def test_a_stream_left_early_can_be_asked_again(root):
    expected = contents(root, steps=8)
    with streams(root, workers=1, prefetch=2) as stream:
        for _ in range(6):
            next(stream.batches(3, 100))
        assert [content(batch) for batch in stream.batches(0, 8)] == expected


def test_an_iterator_that_outlives_its_stream_touches_no_other_file(root, tmp_path):
    """The number of a closed file goes to the next that is opened."""
    with streams(root, workers=1) as stream:
        running = stream.batches(0, 100)
        next(running)
    opened = [open(tmp_path / str(number), "w+b", buffering=0) for number in range(32)]
    for file in opened:
        file.write(b"x" * 100_000)
    stream.close()
    running.close()
    assert all((tmp_path / str(number)).read_bytes() == b"x" * 100_000 for number in range(32))
    for file in opened:
        file.close()


def test_a_url_streams_like_a_folder(root):
    remote = fsspec.filesystem("memory")
    remote.put(str(root), "/gexia-stream", recursive=True)
    expected = contents(root, steps=4)
    with streams("memory://gexia-stream") as stream:
        assert [content(batch) for batch in stream.batches(0, 4)] == expected


class RangeServer(SimpleHTTPRequestHandler):
    """Serves ranges of files, as object stores do, and counts the bytes."""

    sent = 0

    def do_GET(self):
        data = Path(self.translate_path(self.path)).read_bytes()
        first, last = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", f"bytes=0-{len(data) - 1}")).groups()
        part = data[int(first) : int(last) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(part)
        RangeServer.sent += len(part)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(root):
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(RangeServer, directory=str(root))) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_cached_remote_dataset_gives_the_same_batches_and_is_not_fetched_again(root, server, tmp_path):
    expected = contents(root, steps=6)
    settings = {"workers": 2, "cache_dir": str(tmp_path), "cache_gb": 0.1}
    assert contents(server, steps=6, **settings) == expected
    assert RangeServer.sent > sum(path.stat().st_size for path in root.glob("train/*/*.tar"))
    RangeServer.sent = 0
    assert contents(server, steps=6, **settings) == expected
    assert RangeServer.sent < sum(path.stat().st_size for path in root.rglob("*.parquet")) + 10_000


def test_tars_without_manifest_and_sidecars_give_the_same_batches(root, tmp_path):
    for tar in root.glob("*/*/*.tar"):
        copy = tmp_path / tar.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tar, copy)
    assert contents(tmp_path, steps=10, workers=1) == contents(root, steps=10)


def test_mp4_members_stream_like_pictures(root, tmp_path):
    """The same samples at the same steps, whose frames are those of the pictures but for the encoding."""
    make_dataset(tmp_path, shorts={"train": 60, "val": 11}, longs={"train": 10, "val": 3}, rows=3, mp4=True)
    settings = {"frame_sampling": "centred", "crop": "centre"}
    with streams(root, **settings) as stream:
        pictures = list(stream.batches(0, 4))
    with streams(tmp_path, workers=2, **settings) as stream:
        videos = list(stream.batches(0, 4))
    for picture, video in zip(pictures, videos, strict=True):
        assert video.sample_ids == picture.sample_ids and torch.equal(video.frame_mask, picture.frame_mask)
        assert (video.frames.float() - picture.frames.float()).abs().mean() < 20  # of 255; others differ by 85


def test_augmentation_depends_on_seed_epoch_and_sample_alone(root):
    def by_sample(seed, steps, **changes):
        config = {"svst": StreamConfig("short", ["caption"], {}, frames=2, **{"batch": 12, **changes})}
        with streams(root, config, seed=seed) as stream:
            return {s: frame.numpy().tobytes() for b in stream.batches(*steps) for s, frame in zip(b.sample_ids, b.frames)}

    epoch, other_batch = by_sample(0, (0, 5)), by_sample(0, (0, 3), batch=20)
    assert epoch == other_batch and len(epoch) == 60
    again, other_seed = by_sample(0, (5, 5)), by_sample(1, (0, 5))
    assert sum(epoch[s] != again[s] for s in epoch) > 30 and sum(epoch[s] != other_seed[s] for s in epoch) > 30


def test_a_stream_may_have_a_frame_sampling_of_its_own(root):
    def frames(**settings):
        config = StreamConfig("short", ["caption"], {}, frames=2, batch=12, **settings)
        with streams(root, {"svst": config}, crop="centre") as stream:
            return {s: f.numpy().tobytes() for b in stream.batches(0, 10) for s, f in zip(b.sample_ids, b.frames)}

    centred, random = frames(frame_sampling="centred"), frames()
    with streams(
        root, {"svst": StreamConfig("short", ["caption"], {}, 2, 12)}, frame_sampling="centred", crop="centre"
    ) as stream:
        assert all(centred[s] == f.numpy().tobytes() for b in stream.batches(0, 5) for s, f in zip(b.sample_ids, b.frames))
    assert sum(centred[s] != random[s] for s in centred) > 20


@pytest.mark.parametrize("workers, world", [(0, 1), (2, 3)])
def test_evaluation_takes_every_sample_once_in_order(root, workers, world):
    data = DataConfig(size=32, workers=workers)
    dataset = open_dataset(str(root))
    batches = [
        batch
        for rank in range(world)
        for batch in evaluation_batches(dataset, "val", "short", ["caption"], 4, 4, rank, world, data, tokenizer)
    ]
    seen = sum((batch.sample_ids for batch in batches), [])
    ids = [dataset.sidecar(shard)["sample_id"].to_pylist() for shard in dataset.select("val", "short")]
    assert seen == sum(ids, [])


@pytest.mark.parametrize(
    "configs, data, message",
    [
        ({"svst": StreamConfig("short", ["caption"], {}, 3, batch=64)}, {}, "takes 64 samples, but there are 60"),
        ({"svst": StreamConfig("short", ["summary"], {}, 3, batch=8)}, {}, "short samples have the views caption"),
        ({"svst": StreamConfig("short", ["caption"], {}, 3, batch=8, lanes=0)}, {}, r"lanes \(0\) must be at least 1"),
        (SHORT, {"split": "test"}, "has no short samples in the split test"),
        (SHORT, {"workers": -1}, "workers: -1 is under 0"),
        (SHORT, {"weights": [1.0, 2.0]}, "loader.weights has 2 entries for 1 datasets"),
    ],
)
def test_a_stream_that_cannot_be_is_refused(root, configs, data, message):
    with pytest.raises(UserError, match=message):
        streams(root, configs, **data)


def test_datasets_mix_by_weight(root, own_root):
    make_dataset(own_root / "b", shorts={"train": 30}, longs={}, rows=1, seed=9)
    both = [open_dataset(str(root)), open_dataset(str(own_root / "b"))]
    urls = [both[1].shard_url(shard) for shard in both[1].select("train", "short")]
    second = {members["txt"].decode() for url in urls for _, members in iter_shard(url)}
    data = DataConfig(size=32, workers=0, weights=[0.75, 0.25])
    with Streams(both, SHORT, data, 0, 0, 1, tokenizer) as stream:
        for batch in stream.batches(0, 8):
            assert sum(text in second for [text] in batch.sentences["caption"]) == 4
