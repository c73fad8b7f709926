"""`gexia stream preview`: a page with the first batches of each stream, as the model gets them."""

import argparse
import base64
from contextlib import suppress
from dataclasses import replace
from html import escape

import simplejpeg
import torch

from shards import format, storage
from shards.errors import DatasetError, UserError
from shards.plain import open_data
from shards.reader import Dataset
from trainer.config import PretrainConfig, parse
from trainer.data_config import StreamConfig
from trainer.models.towers import architecture, create_tokenizer
from trainer.stream import Batch, Streams
from trainer.texts import TextBatch

# Without --config: the design's streams, small enough for any dataset.
_STREAMS = {
    "svst": StreamConfig("short", ["caption"], {"video": 1, "caption": 1}, frames=8, batch=8),
    "lv": StreamConfig("long", ["long", "summary"], {"video": 3, "long": 3, "summary": 1}, frames=32, batch=4),
    "it": StreamConfig("image", ["caption"], {"video": 0, "caption": 1}, frames=1, batch=8),
}

_PAGE = """<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">
<title>Stream preview</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #1c2430 }}
h2 {{ margin-top: 2.5rem }} h3 {{ margin: 1.5rem 0 .5rem; font-weight: 600 }} .soft, small {{ color: #5a6675 }}
article {{ border: 1px solid #d9dee5; border-radius: 8px; padding: .75rem; margin: .75rem 0 }}
.frames {{ display: flex; flex-wrap: wrap; gap: 3px }} .frames img, .frames span {{ width: 96px; height: 96px }}
.frames span {{ background: repeating-linear-gradient(45deg, #eef1f5 0 6px, #dfe4ea 6px 12px) }}
dl {{ display: grid; grid-template-columns: 6rem 1fr; gap: .15rem .75rem; margin: .5rem 0 0 }} dd {{ margin: 0 }}
dt {{ color: #5a6675 }} code {{ font-size: 12px }} p {{ margin: .25rem 0 }}
</style><h1>Stream preview</h1>
<p class=soft>Seed {seed}. Frames after choice, crop and resize; hatched ones are padding that the mask hides. Each
sentence is one row of tokens, an over-long one several; the mask hides the rows that others of the batch need.</p>{body}</html>
"""


def main(argv: list[str]) -> int:
    """Write the page; returns 0."""
    parser = argparse.ArgumentParser(prog="gexia stream", description=__doc__)
    parser.add_argument("action", choices=["preview"])
    parser.add_argument("data", nargs="+", metavar="DIR", help="published dataset; several are mixed as in training")
    parser.add_argument("--config", help="a pretraining config, for its streams, loader and tokenizer")
    parser.add_argument("--batches", type=int, default=1, help="of each stream")
    parser.add_argument("--samples", type=int, default=8, help="of each batch, at most")
    parser.add_argument("--output", default="preview.html")
    args = parser.parse_args(argv)
    storage.check_file(args.output, "--output")
    config = parse(PretrainConfig, ["--config", args.config] if args.config else [])
    datasets = [open_data(url) for url in args.data]
    streams = config.streams or _fitting(datasets, config.loader.split)
    tokenizer = create_tokenizer(architecture(config.model.name))
    body = []
    for name, stream in streams.items():
        with Streams(datasets, {name: stream}, config.loader, config.seed, 0, 1, tokenizer) as running:
            shown = "".join(_batch(batch, args.samples) for batch in running.batches(0, args.batches))
        body.append(f"<h2>{escape(name)}</h2><p class=soft>{escape(str(stream))}</p>{shown}")
    storage.write_bytes_atomic(args.output, _PAGE.format(seed=config.seed, body="".join(body)).encode())
    print(args.output)
    return 0


def _fitting(datasets: list[Dataset], split: str) -> dict[str, StreamConfig]:
    """The default streams that the datasets have samples for, with the text views that these have, and no batch larger
    than there are samples."""
    streams = {}
    for name, stream in _STREAMS.items():
        samples = sum(shard.samples for dataset in datasets for shard in dataset.select(split, stream.folder))
        if samples:
            absent = set().union(*(_absent(dataset, split, stream.folder) for dataset in datasets))
            texts = [view for view in stream.texts if view not in absent]
            streams[name] = replace(stream, batch=min(stream.batch, samples), texts=texts)
    if not streams:
        raise UserError(f"{datasets[0].url}: no {', '.join(format.GRANULARITIES)} samples in the split {split}")
    return streams


def _absent(dataset: Dataset, split: str, folder: str) -> set[str]:
    """Text views that a dataset's first sample does not have: without compress there are no summaries. The first view
    may be in the json instead."""
    for shard in dataset.select(split, folder):
        with suppress(DatasetError):  # the page's own reading replaces what is damaged, and says so
            for line in dataset.sidecar(shard).to_pylist():
                if line["status"] == "ok":
                    members = dataset.read_sample(shard, line)
                    return {view for view, name in list(format.TEXT_VIEWS[folder].items())[1:] if name not in members}
    return set()


def _batch(batch: Batch, samples: int) -> str:
    """The first samples of a batch; its step is the stream's own, since no other stream runs beside it."""
    shape = " × ".join(map(str, batch.frames.shape))
    count = min(samples, len(batch.sample_ids))
    cards = "".join(_sample(batch, i) for i in range(count))
    return f"<h3>Step {batch.step}: frames {shape}, {count} of {len(batch.sample_ids)} samples</h3>{cards}"


def _sample(batch: Batch, i: int) -> str:
    frames = "".join(_frame(f) if real else "<span></span>" for f, real in zip(batch.frames[i], batch.frame_mask[i]))
    texts = "".join(
        f"<dt>{escape(view)}</dt><dd>{_text(batch.sentences[view][i], text, i)}</dd>" for view, text in batch.texts.items()
    )
    return (
        f"<article><div class=frames>{frames}</div><dl>{texts}</dl>"
        f"<small>{escape(batch.sample_ids[i])} · {int(batch.frame_mask[i].sum())} of {batch.frame_mask.shape[1]} frames"
        f"</small></article>"
    )


def _text(sentences: list[str], text: TextBatch, i: int) -> str:
    lines = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
    rows, length = text.mask.shape[1], text.tokens.shape[2]
    return f"{lines}<small>{int(text.mask[i].sum())} of {rows} rows of {length} tokens</small>"


def _frame(frame: torch.Tensor) -> str:
    pixels = frame.permute(1, 2, 0).contiguous().numpy()
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(simplejpeg.encode_jpeg(pixels)).decode()}">'
