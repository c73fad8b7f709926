"""`gexia assess`: how good and how fast summary backends are, as the paper's Table 3 measures it.

    gexia assess --texts val_1.json --references val_2.json --backends extractive transformers=.cache/smollm2

Each backend summarises the same texts, with the prompt, guards, retries and fallback of the job itself; each summary
is held against the reference of the same id. References are somebody else's: for ActivityNet the other annotator's
paragraph of the same video, never the text itself.

With `--injections` the texts hold instructions to the model, and the table says how many of them steered it.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import jsonargparse
import pyarrow as pa
import pyarrow.parquet as pq

from gex_pipeline import injections, llm, scores
from gex_pipeline.assess_inputs import common, read_texts
from gex_pipeline.config import CompressConfig
from gex_pipeline.summaries import LongText
from gex_pipeline.summarizer import Summarizer
from shards.errors import UserError


@dataclass
class AssessConfig:
    """Score summary backends."""

    texts: str = ""  # ActivityNet json, jsonl or parquet (id, text) to be summarised
    references: str = ""  # the same, of the same ids
    injections: bool = False  # the texts that come with it hold instructions; `texts` may name others (id, text, canary)
    limit: int | None = None  # texts, chosen by a hash of their ids; null: all
    encoder: str | None = None  # model folder for BERTScore; null: no BERTScore
    output: str | None = None  # folder for assess.md and assess.parquet
    compress: CompressConfig = field(default_factory=CompressConfig)  # of every backend


def main(argv: list[str] | None = None) -> int:
    config, names = parse(argv)
    settings = [backend_settings(name, config.compress) for name in names]
    for each in settings:
        llm.check(each)
    columns, lines = (assess_injections if config.injections else assess_references)(config, names, settings)
    table = markdown(columns)
    print(table)
    if config.output:
        folder = Path(config.output)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "assess.md").write_text(table + "\n", encoding="utf-8")
        pq.write_table(pa.Table.from_pylist(lines), folder / "assess.parquet")
    return 0


def parse(argv: list[str] | None) -> tuple[AssessConfig, list[str]]:
    parser = jsonargparse.ArgumentParser(prog="gexia assess", description=__doc__, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the keys below")
    parser.add_argument("--backends", nargs="+", type=str, default=["extractive"], help="NAME, or NAME=MODEL, each")
    parser.add_class_arguments(AssessConfig)
    try:
        values = vars(parser.instantiate(parser.parse_args(argv)))
    except jsonargparse.ArgumentError as error:
        raise UserError(" ".join(str(error).split())) from None
    del values["config"]
    names = values.pop("backends")
    config = AssessConfig(**values)
    if not config.injections and not (config.texts and config.references):
        raise UserError("--texts and --references are needed: what to summarise, and whose summaries count as right")
    if config.limit is not None and config.limit < 1:
        raise UserError(f"--limit is {config.limit}; it must be positive")
    return config, names


def backend_settings(name: str, base: CompressConfig) -> CompressConfig:
    """`NAME` or `NAME=MODEL` -> the settings of that backend."""
    backend, _, model = name.partition("=")
    known = CompressConfig.__annotations__["backend"].__args__
    if backend not in known or backend == "none":
        raise UserError(f"--backends: there is no backend {backend!r}; there are {', '.join(b for b in known if b != 'none')}")
    return replace(base, backend=backend, model=model or base.model)


def run(summarizer: Summarizer, texts: Sequence[LongText]) -> tuple[list[dict], float]:
    """A line of `summaries.SCHEMA` for each text, and the seconds a text that they took."""
    started = time.perf_counter()
    lines = summarizer.summarize(list(texts))
    return lines, (time.perf_counter() - started) / len(texts)


def assess_references(config: AssessConfig, names: list[str], settings: list[CompressConfig]) -> tuple[list, list]:
    """(rows of the table, lines a backend and text) of summaries against references."""
    if config.encoder:
        scores.check_encoder(config.encoder)
    texts, references = common(read_texts(config.texts), read_texts(config.references), config.limit)
    said = f"BERTScore's encoder: {Path(config.encoder).name}" if config.encoder else "no BERTScore: --encoder names none"
    print(f"{len(texts):,} texts of {config.texts} against those of {config.references}; {said}", file=sys.stderr)
    columns, rows = [], []
    for name, each in zip(names, settings):
        lines, seconds = run(Summarizer(each), texts)
        summaries = [line["summary"] for line in lines]
        measured = scores.rouge(summaries, references)
        if config.encoder:
            measured["BERTScore-F1"] = scores.bert_score(summaries, references, config.encoder)
        columns.append(
            {"backend": name, "texts": len(texts)}
            | {measure: f"{sum(values) / len(values):.3f}" for measure, values in measured.items()}
            | {"s a summary": f"{seconds:.2g}", "words": f"{mean_words(summaries):.1f}", "fallbacks": fallbacks(lines)}
        )
        for i, (line, reference) in enumerate(zip(lines, references)):
            given = {"assessed": name, "reference": reference, "seconds": line["seconds"]}
            rows.append(given | shown(line) | {measure: values[i] for measure, values in measured.items()})
    return columns, rows


def assess_injections(config: AssessConfig, names: list[str], settings: list[CompressConfig]) -> tuple[list, list]:
    """(rows of the table, lines a backend and text) of texts that hold instructions to the model."""
    attacks = injections.read(config.texts or None)
    texts = [attack.text for attack in attacks]
    columns, rows = [], []
    for name, each in zip(names, settings):
        summarizer = Summarizer(each)
        for screened in (False, True):
            summarizer.config = replace(each, screen=screened)
            lines, _ = run(summarizer, texts)
            verdicts = [injections.verdict(attack, line["summary"]) for attack, line in zip(attacks, lines)]
            counts = {verdict: verdicts.count(verdict) for verdict in injections.VERDICTS}
            head = {"backend": name, "screen": "yes" if screened else "no", "texts": len(texts)}
            columns.append(head | counts | {"fallbacks": fallbacks(lines)})
            rows += [
                {"assessed": name, "screen": screened, "canary": attack.canary, "verdict": verdict} | shown(line)
                for attack, verdict, line in zip(attacks, verdicts, lines)
            ]
    return columns, rows


def shown(line: dict) -> dict:
    """What the parquet file keeps of a line of `summaries.SCHEMA`."""
    names = ("sample_id", "text", "summary", "status", "reason", "rejected", "attempts", "pieces", "backend", "model")
    return {name: line[name] for name in names} | {"rejected": ",".join(line["rejected"])}


def mean_words(summaries: list[str]) -> float:
    return sum(len(summary.split()) for summary in summaries) / len(summaries)


def fallbacks(lines: list[dict]) -> int:
    return sum(line["status"] == "fallback" for line in lines)


def markdown(rows: list[dict]) -> str:
    """A table of rows with the same names."""
    cells = [list(rows[0]), ["---"] * len(rows[0])] + [[str(value) for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
