"""What an evaluation found: plain dictionaries, one table for all tasks.

A result is a dictionary of

    task, granularity     what was asked, of which samples
    protocol              how, in words: "text to video, caption", "fine-tuned, 180 classes"
    metrics               name -> value, the one that models are chosen by first
    chance                the same for answers that look at no sample
    n                     what the metrics are a mean over: queries, samples or questions
    videos, of_videos     videos evaluated, and how many the benchmark has (None where nobody counted)
    benchmark, variant    what `gexia import` calls the data, where it made it

and whatever else a task has to say.
"""

import json
import os
from collections.abc import Iterable
from itertools import starmap
from pathlib import Path

import pyarrow.compute as pc

from shards import format, storage
from shards.reader import Dataset

DECIMALS = {"MSE": 3}  # of a metric in the table; percentages and ranks have one


def coverage(dataset: Dataset, split: str, granularity: str, sample_ids: Iterable[str]) -> dict:
    """{"videos": N, "of_videos": M}: sources of the samples that were evaluated, and sources that the benchmark's
    annotations name; None where `gexia import` did not write that beside the dataset. Where it did, "benchmark" and
    "variant" too. Plain tars name no sources: there each sample is a video."""
    sources, wanted = set(), set(sample_ids)
    for shard in dataset.select(split, granularity):
        lines = dataset.sidecar(shard)
        lines = lines.filter(pc.equal(lines["status"], "ok"))
        pairs = zip(lines["sample_id"].to_pylist(), lines["source_id"].to_pylist(), strict=True)
        sources.update(source for sample_id, source in pairs if sample_id in wanted and source is not None)
    videos, path = len(sources) or len(wanted), storage.join(dataset.url, format.IMPORT_RECORD)
    if not storage.exists(path):
        return {"videos": videos, "of_videos": None}
    record = json.loads(storage.read_bytes(path))
    named = {name: record[name] for name in ("benchmark", "variant") if record.get(name)}
    return {"videos": videos, "of_videos": record["splits"].get(split, {}).get("videos"), **named}


def about(checkpoint: str, weights: str, settings: dict[str, dict]) -> str:
    """A line that tells which model answered, and how samples were encoded: granularity -> {"iter", "frames"}."""
    how = "; ".join(
        f"{name} #iter {', '.join(f'{part} {count}' for part, count in one['iter'].items())}, {one['frames']} frames"
        for name, one in settings.items()
    )
    return f"Model {checkpoint} (weights {weights[:8]}): {how}."


def markdown(results: list[dict]) -> str:
    """The results as tables, one for each set of metrics, each run of results with one chance followed by it."""
    tables = []
    for names in dict.fromkeys(tuple(result["metrics"]) for result in results):
        rows = [result for result in results if tuple(result["metrics"]) == names]
        tables.append("\n".join(_table(list(names), rows)) + "\n")
    return "\n".join(tables)


def _table(names: list[str], results: list[dict]) -> list[str]:
    lines = [_line(["samples", "protocol", *names, "videos"]), "|---|---|" + "--:|" * (len(names) + 1)]
    for result, following in zip(results, [*results[1:], None]):
        what = f"{result['n']:,} {result['granularity']}"
        lines.append(_line([what, result["protocol"], *starmap(shown, result["metrics"].items()), _videos(result)]))
        if following is None or (following["chance"], following["n"]) != (result["chance"], result["n"]):
            lines.append(_line([what, "chance", *starmap(shown, result["chance"].items()), ""]))
    return lines


def shown(name: str, value: float | None) -> str:
    """A metric as a table has it."""
    return "" if value is None else f"{value:.{DECIMALS.get(name, 1)}f}"


def _videos(result: dict) -> str:
    of = result["of_videos"]
    return f"{result['videos']:,}" + ("" if of is None else f" of {of:,}")


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write(folder: Path, name: str, report: dict, text: str) -> None:
    """Write `name`.json and `name`.md, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for ending, content in (("json", json.dumps(report, indent=1)), ("md", text)):
        temporary = folder / f".tmp-{name}.{ending}"
        temporary.write_text(content)
        os.replace(temporary, folder / f"{name}.{ending}")
