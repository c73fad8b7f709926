"""`gexia table RUN ...`: the results of several evaluations in one comparison, beside published figures.

A RUN is a folder that evaluate.py or finetune.py wrote, or one of its json files. Published figures are those of
published.json: each names the paper and table that it was read in.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from shards import storage
from shards.errors import UserError
from trainer.results import shown

PUBLISHED = Path(__file__).with_name("published.json")
TESTED_ON = {"how2qa": "val", "imagenet": "val"}  # the split that published figures are of, where it is not "test"


def main(argv: list[str]) -> int:
    """Print the comparison, and write it where asked; returns 0."""
    parser = argparse.ArgumentParser(
        prog="gexia table", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", metavar="RUN", nargs="+")
    parser.add_argument("--output", metavar="FILE.md", help="write it there too")
    parser.add_argument("--no-published", action="store_true", help="only the runs")
    args = parser.parse_args(argv)
    if args.output:
        storage.check_file(args.output, "--output")
    rows = [row for run in args.runs for row in read_run(run)]
    text = compare(rows, [] if args.no_published else json.loads(PUBLISHED.read_text())["figures"])
    print(text, end="")
    if args.output:
        storage.write_bytes_atomic(args.output, text.encode())
    return 0


def read_run(run: str) -> Iterator[dict]:
    """Results of a run (see results.py), each with the run's name, the data's digest and split. UserError where there
    are none."""
    path = Path(run)
    files = [path] if path.is_file() else sorted(path.glob("*.json"))
    found = 0
    for file in files:
        try:
            rows = _rows(run, json.loads(file.read_text()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            if path.is_file():
                raise UserError(f"{run}: no results of evaluate.py or finetune.py: {error!r}") from None
            continue  # another json of the folder
        found += len(rows)
        yield from rows
    if not found:
        raise UserError(f"{run}: no results of evaluate.py or finetune.py here")


def _rows(run: str, report: dict) -> list[dict]:
    return [
        {"run": run, **{key: dataset[key] for key in ("data", "digest", "split")}, **result}
        for dataset in report["datasets"]
        for result in [*dataset.get("before", []), *dataset["results"]]
    ]


def compare(rows: list[dict], published: list[dict]) -> str:
    """Markdown: one table for each question that was asked, with every run's answer and the published ones."""
    questions: dict[tuple, list[dict]] = {}
    for row in rows:
        questions.setdefault(_question(row), []).append(row)
    return "\n".join(_table(question, answers, published) for question, answers in questions.items())


def _question(row: dict) -> tuple[str, ...]:
    """What a result must share with another to be compared with it."""
    benchmark = row.get("benchmark") or f"{row['data']} ({row['digest'][:8]})"
    return (
        benchmark,
        row.get("variant", ""),
        row["split"],
        row["granularity"],
        row["task"],
        row.get("view", ""),
        row.get("direction", ""),
    )


def _table(question: tuple[str, ...], rows: list[dict], published: list[dict]) -> str:
    benchmark, variant, split, granularity, task, view, direction = question
    names = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    known = [
        figure for figure in published
        if (figure["benchmark"], figure["task"], figure.get("direction", "")) == (benchmark, task, direction)
        and TESTED_ON.get(benchmark, "test") == split
        and figure["metrics"].keys() & set(names)
    ]  # fmt: skip
    title = ", ".join(filter(None, (benchmark, variant, split, f"{granularity} samples", task, view)))
    lines = [f"## {title}" + (f": {direction}" if direction else ""), ""]
    lines += [
        _line(["model", "protocol", *names, "videos", "data", "source"]),
        "|---|---|" + "--:|" * (len(names) + 1) + "---|---|",
    ]
    for row in rows:
        of = "" if row["of_videos"] is None else f" of {row['of_videos']:,}"
        where = f"{row['videos']:,}{of}", row["digest"][:8], "measured here"
        lines.append(_line([row["run"], row["protocol"], *(shown(name, row["metrics"].get(name)) for name in names), *where]))
    chances = list(dict.fromkeys(tuple(row["chance"].get(name) for name in names) for row in rows))
    lines += [_line(["chance", "", *map(shown, names, chance), "", "", ""]) for chance in chances]
    for figure in known:
        source = f"{figure['paper']}, {figure['table']}"
        lines.append(
            _line(
                [
                    figure["model"],
                    figure["setting"],
                    *(shown(name, figure["metrics"].get(name)) for name in names),
                    "",
                    "",
                    source,
                ]
            )
        )
    return "\n".join(lines) + "\n"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
