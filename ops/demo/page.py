"""`report.html` of the demo: what was made, how training went, what the model finds. One self-contained file.

python -m ops.demo.page demo
"""

import argparse
import json
from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template

from ops.demo import chart, run, world
from ops.demo.search import Found, search
from shards.format import GRANULARITIES, LONG, SHORT
from shards.reader import Dataset, open_dataset
from trainer.evaluate import load_model
from trainer.film import STYLE, film, sprite
from trainer.samples import Sample, all_samples, spread
from trainer.tasks.retrieval import Recipe

SHORT_CARDS, LONG_CARDS = 8, 3
# (granularity, text view, queries): what the page asks the model.
SEARCHES = ((SHORT, "caption", 3), (LONG, "summary", 3))
TOP = 5
VIEW_NAMES = {"caption": "caption", "long": "all captions", "summary": "summary"}
DIRECTIONS = {"text to video": "T2V", "video to text": "V2T"}
STREAM_NAMES = {"svst": "short", "lv": "long", "it": "image"}


def render(output: Path) -> str:
    """The page of a finished demo as HTML."""
    dataset = open_dataset(str(output / "data"))
    report = json.loads((output / "results/retrieval.json").read_text())
    results = report["datasets"][0]["results"]
    recipes = {name: Recipe(**recipe) for name, recipe in report["settings"].items()}
    body = [
        _header(dataset, results, run.seconds(output)),
        _samples(dataset),
        _training(output / "train/metrics.jsonl"),
        _retrieval(results),
        _searches(output / "train/model", dataset, recipes),
    ]
    return Template(Path(__file__).with_name("page.html").read_text()).substitute(body="\n".join(body), film=STYLE)


# --- What was made ---------------------------------------------------------------------------------------------


def _header(dataset: Dataset, results: list[dict], seconds: dict[str, float]) -> str:
    counts = dataset.manifest["counts"]
    total = {name: sum(split[name]["samples"] for split in counts.values()) for name in GRANULARITIES}
    tiles = [_headline(results, SHORT, "caption"), _headline(results, LONG, "summary")]
    tiles += [(f"{total[SHORT]:,}", "captioned clips"), (f"{sum(seconds.values()) / 60:.1f}", "minutes on this machine")]
    shown = "".join(f"<div class=tile><b>{value}</b><span>{label}</span></div>" for value, label in tiles)
    return (
        "<header><p class=kicker>GEXIA demo</p><h1>From captioned clips to a model that finds them</h1>"
        "<p class=lead>A small rendered world goes the whole way: its clips become short, long and image samples, a "
        "language model sums up each long one, and a video–text model learns from scratch on a CPU. Everything below "
        f"marked <em>held out</em> comes from sources that it never saw.</p><div class=tiles>{shown}</div></header>"
        f"<section><h2>Made of</h2>{_counts(counts)}{_times(seconds)}</section>"
    )


def _headline(results: list[dict], granularity: str, view: str) -> tuple[str, str]:
    result = next(r for r in _text_to_video(results) if (r["granularity"], r["view"]) == (granularity, view))
    times = result["metrics"]["R@1"] / result["chance"]["R@1"]
    return f"{times:.0f}×", f"chance, at naming the one held-out {granularity} video that a {view} was written for (R@1)"


def _counts(counts: dict) -> str:
    rows = []
    for split, name in (("train", "train"), ("val", "held out")):
        for granularity in GRANULARITIES:
            count = counts[split][granularity]
            minutes, megabytes = count["duration_ms"] / 60_000, count["bytes"] / 1e6
            numbers = f"{count['samples']:,}", f"{count['shards']:,}", f"{minutes:.1f}", f"{megabytes:.1f}"
            rows.append([name, granularity, *numbers])
    return _table(["sources", "samples", "#count", "#shards", "#minutes of video", "#MB"], rows)


def _times(seconds: dict[str, float]) -> str:
    total = sum(seconds.values())
    bars = "".join(
        f'<div class="part s{number}" style="flex-grow:{value:.2f};--share:{value / total:.1%}"><i></i>'
        f"<span>{name}<b>{value:.0f} s</b></span></div>"
        for number, (name, value) in enumerate(seconds.items())
    )
    return f'<div class=times role=img aria-label="Time per stage, {total:.0f} s in all">{bars}</div>'


def _samples(dataset: Dataset) -> str:
    short = spread(list(all_samples(dataset, "train", SHORT)), SHORT_CARDS)
    long = spread(list(all_samples(dataset, "train", LONG)), LONG_CARDS)
    return (
        "<section><h2>Short samples</h2><p class=note>One clip, its frames and its caption. Point at a picture, or tap "
        f"it, and it plays.</p><div class=grid>{''.join(map(_short_card, short))}</div></section>"
        "<section><h2>Long samples</h2><p class=note>The clips of one source, their captions in order, and what the "
        f"language model made of them.</p>{''.join(map(_long_card, long))}</section>"
    )


def _short_card(sample: Sample) -> str:
    return f"<article class=card>{film(sample.frames)}<p>{escape(sample.texts['caption'])}</p></article>"


def _long_card(sample: Sample) -> str:
    clips = "".join(
        f"<div>{_strip(sample.frames[slice(*clip['frames'])])}<p>{escape(clip['caption'])}</p></div>"
        for clip in sample.fields["clips"]
    )
    how = sample.fields["summary"]
    maker = f"{how['backend']} · {Path(how['model']).name}" + (" · fallback" if how["status"] == "fallback" else "")
    return (
        f"<article class='card long'><p class=label>summary · {escape(maker)}</p>"
        f"<p class=summary>{escape(sample.texts['summary'])}</p><div class=clips>{clips}</div></article>"
    )


# --- How training went -----------------------------------------------------------------------------------------


def _training(metrics: Path) -> str:
    series: dict[str, list[tuple[int, float]]] = {}
    for record in map(json.loads, metrics.read_text().splitlines()):
        for view, loss in record["loss"].items():
            name = f"{STREAM_NAMES[record['stream']]}, {VIEW_NAMES[view]}"
            series.setdefault(name, []).append((record["step"], loss))
    return (
        "<section><h2>Training</h2><p class=note>Contrastive loss of each stream and text; dots are steps, lines their "
        f"running mean. A step draws from one stream.</p><div class='card chart'>{chart.curves(series)}</div></section>"
    )


# --- What it finds ---------------------------------------------------------------------------------------------


def _retrieval(results: list[dict]) -> str:
    rows = []
    for result in results:
        metrics, chance = result["metrics"], result["chance"]
        times = metrics["R@1"] / chance["R@1"]
        cells = [f"{metrics[k]:.1f}<small>{chance[k]:.1f}</small>" for k in ("R@1", "R@5", "R@10", "median_rank")]
        what = f"{result['candidates']} {result['granularity']}", VIEW_NAMES[result["view"]]
        rows.append([*what, DIRECTIONS[result["direction"]], f"<b>{times:.0f}×</b>", *cells])
    header = ["held out", "text", "", "#R@1 over chance", "#R@1, %", "#R@5, %", "#R@10, %", "#median rank"]
    return (
        "<section><h2>Retrieval</h2><p class=note>How often the right one comes first, among the first five, among the "
        "first ten. T2V: a text finds its video; V2T: a video its text. Small figures: what guessing gives.</p>"
        f"{_table(header, rows)}</section>"
    )


def _text_to_video(results: list[dict]) -> Iterable[dict]:
    return (result for result in results if result["direction"] == "text to video")


def _searches(checkpoint: Path, dataset: Dataset, recipes: dict[str, Recipe]) -> str:
    model, parts = load_model(str(checkpoint)).eval(), []
    for granularity, view, count in SEARCHES:
        found = search(model, dataset, granularity, view, recipes[granularity], count, TOP)
        parts.append("".join(_found(each, granularity, view) for each in found))
    return (
        "<section><h2>Searches</h2><p class=note>Held-out texts, taken evenly over the split and not by how well they "
        "do, and the five held-out videos that score best. The one it was written for is framed.</p>"
        f"{''.join(parts)}</section>"
    )


def _found(found: Found, granularity: str, view: str) -> str:
    cards = "".join(
        f"<figure class='{'right' if right else ''}'>{film(spread(sample.frames, 8))}"
        f"<figcaption><b>{place}</b><span>{score:.2f}{' ✓' if right else ''}</span></figcaption></figure>"
        for place, (sample, score, right) in enumerate(found.best, start=1)
    )
    return (
        f"<article class=search><p class=label>{granularity} videos by {VIEW_NAMES[view]} · the right one stands at "
        f"{found.rank}</p><p class=query>{escape(found.query)}</p><div class=found>{cards}</div></article>"
    )


# --- Pieces ----------------------------------------------------------------------------------------------------


def _strip(frames: list[bytes]) -> str:
    return f'<img class=strip src="{sprite(frames)}" alt="" loading=lazy>'


def _table(header: list[str], rows: list[list[str]]) -> str:
    """A table of HTML cells; columns whose name starts with # hold numbers."""
    style = [" class=number" if name.startswith("#") else "" for name in header]
    head = "".join(f"<th{s}>{escape(name.lstrip('#'))}</th>" for name, s in zip(header, style, strict=True))
    body = "".join(f"<tr>{''.join(f'<td{s}>{cell}</td>' for cell, s in zip(row, style, strict=True))}</tr>" for row in rows)
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the page of a finished demo.")
    parser.add_argument("output", type=Path, help="the demo's folder")
    output = parser.parse_args().output
    world.write_text(output / run.REPORT, render(output))


if __name__ == "__main__":
    main()
