"""`gexia search CHECKPOINT DATASET "a query"`: the samples of a dataset that fit a text best, and a page with pictures."""

import argparse
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

import torch
from accelerate import Accelerator
from torch import Tensor

from shards import format, storage
from shards.errors import UserError
from shards.plain import open_data
from shards.reader import Dataset
from trainer import evaluate, film
from trainer.config import EvaluateConfig
from trainer.data_config import DataConfig
from trainer.embeddings import VIDEO, Embedder
from trainer.samples import FRAMES, Sample, clock, samples_by_id, spread

BATCH, SHOWN_MOMENTS = 32, 3


@dataclass
class Hit:
    score: float  # cosine
    split: str
    sample: Sample


def main(argv: list[str]) -> int:
    """Print and write what was found; returns 0."""
    args = _parser().parse_args(argv)
    if args.top < 1 or not all(query.strip() for query in args.query):
        raise UserError("--top: must be positive" if args.top < 1 else "QUERY: an empty text finds nothing")
    storage.check_file(args.output, "--output")
    dataset = open_data(args.dataset)
    granularity = args.granularity or next((g for g in format.GRANULARITIES if dataset.select(args.split, g)), "")
    shards = dataset.select(args.split, granularity)
    if not shards:
        what = args.granularity or ", ".join(format.GRANULARITIES)
        raise UserError(f"{args.dataset}: no {what} samples" + (f" in the split {args.split}" if args.split else ""))
    model = evaluate.load_model(args.checkpoint)
    recipe = evaluate.choose_recipes(EvaluateConfig(args.checkpoint, granularities=[granularity]))[granularity]
    view = args.view or recipe.views[-1]  # of a long sample its summary, which is as short as a query
    if view not in recipe.views:
        raise UserError(f"--view {view}: {granularity} samples have {', '.join(recipe.views)}")
    folder = evaluate.cache_folder(args.cache, args.checkpoint)
    accelerator = Accelerator()
    rows, where = [], []
    for split in dict.fromkeys(shard.split for shard in shards):
        loader = DataConfig(split=split, size=model.image_tower.size, workers=args.workers)
        embed = Embedder(accelerator, model.to(accelerator.device), BATCH, loader, folder)
        found = embed(dataset, granularity, recipe.frames, {VIDEO: recipe.iter[VIDEO]})[VIDEO]
        rows.append(found.rows)
        where += [(split, sample_id) for sample_id in found.sample_ids]
    scores = model.similarity(torch.cat(rows), embed.texts(args.query, recipe.iter[view])).T
    found = [_best(dataset, granularity, where, of_query, args.top) for of_query in scores]
    for query, hits in zip(args.query, found, strict=True):
        print(f"{query}\n" + "\n".join(_line(place, hit) for place, hit in enumerate(hits, start=1)))
    title = f"{len(where):,} {granularity} samples of {args.dataset}"
    storage.write_bytes_atomic(args.output, page(title, dict(zip(args.query, found, strict=True))).encode())
    print(args.output)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gexia search", description=__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder that pretrain.py wrote (RUN/model)")
    parser.add_argument("dataset", metavar="DATASET", help="published dataset, or WebDataset tars; folder or URL")
    parser.add_argument("query", metavar="QUERY", nargs="+", help="a text, as a caption would say it")
    parser.add_argument("--granularity", choices=format.GRANULARITIES, help="default: the first that the dataset has")
    parser.add_argument("--view", help="text view whose #iter the query gets (default: caption, or summary)")
    parser.add_argument("--split", help="default: all")
    parser.add_argument("--top", type=int, default=10)
    parser.add_argument("--output", default="search.html", metavar="PAGE")
    parser.add_argument("--cache", help='folder of kept embeddings (default: CHECKPOINT/embeddings; "none": nothing is kept)')
    parser.add_argument("--workers", type=int, default=2, help="processes that read and decode")
    return parser


def _best(dataset: Dataset, granularity: str, where: list[tuple[str, str]], scores: Tensor, top: int) -> list[Hit]:
    best = scores.topk(min(top, len(where)))
    chosen = [where[i] for i in best.indices.tolist()]
    stored = {
        split: samples_by_id(dataset, split, granularity, [name for of, name in chosen if of == split])
        for split in {split for split, _ in chosen}
    }
    return [Hit(score, split, stored[split][name]) for score, (split, name) in zip(best.values.tolist(), chosen, strict=True)]


def _line(place: int, hit: Hit) -> str:
    text = " ".join(next(reversed(hit.sample.texts.values()), "").split())
    return f"{place:>4}  {hit.score:6.3f}  {'; '.join(times(hit.sample))}  {text[:80]}"


def times(sample: Sample) -> list[str]:
    """What a sample shows, as `video 0:03.0-0:06.0`; of many moments the first few."""
    moments = sample.moments()
    shown = [f"{name} {clock(start)}-{clock(end)}" for name, start, end in moments[:SHOWN_MOMENTS]]
    more = len(moments) - SHOWN_MOMENTS
    return shown + [f"and {more} more"] * (more > 0)


def page(title: str, found: dict[str, list[Hit]]) -> str:
    """The page as HTML, self-contained: each query with the samples found for it."""
    body = "".join(
        f"<section><h2>{escape(query)}</h2>"
        f"<div class=found>{''.join(map(_card, range(1, len(hits) + 1), hits))}</div></section>"
        for query, hits in found.items()
    )
    template = Template(Path(__file__).with_name("search_page.html").read_text())
    return template.substitute(title=escape(title), film=film.STYLE, body=body)


def _card(place: int, hit: Hit) -> str:
    text = next(reversed(hit.sample.texts.values()), "")
    moments = "".join(f"<p class=when>{escape(line)}</p>" for line in times(hit.sample))
    return (
        f"<figure>{film.film(spread(hit.sample.frames, FRAMES))}<figcaption><p class=place><b>{place}</b>"
        f"<span>{hit.score:.3f}</span></p><p>{escape(text)}</p>{moments}</figcaption></figure>"
    )
