"""`gexia assess`: how good and how fast summary backends are, as the paper's Table 3 measures it.

    gexia assess --texts val_1.json --references val_2.json --backends extractive transformers=.cache/smollm2

Each backend summarises the same texts, with the prompt, guards, retries and fallback of the job itself; each summary
is held against the reference of the same id. References are somebody else's: for ActivityNet the other annotator's
paragraph of the same video, never the text itself.

With `--injections` the texts hold instructions to the model, and the table says how many of them steered it.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import jsonargparse
import pyarrow as pa

from gex_pipeline import injections, llm, scores
from gex_pipeline.assess_inputs import common, read_texts
from gex_pipeline.config import CompressConfig
from gex_pipeline.errors import Transient
from gex_pipeline.summaries import LongText
from gex_pipeline.summarizer import Summarizer
from shards import storage
from shards.config_help import describe
from shards.errors import UserError
from shards.writer import parquet_bytes

# A backend's name and settings -> rows of the table, and lines of the parquet file: one a text.
Measure = Callable[[str, CompressConfig], tuple[list, list]]


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
    if config.output:
        storage.check_file(storage.join(config.output, "assess.md"), "--output")
    said, measure = injected(config) if config.injections else referenced(config)
    print(said, file=sys.stderr)
    columns, lines = [], []
    try:
        for name, each in zip(names, settings):
            more_columns, more_lines = measure(name, each)
            columns, lines = columns + more_columns, lines + more_lines
            if config.output:  # what is measured stays, whatever the next one does
                files = {
                    "md": f"{said}\n\n{markdown(columns)}\n".encode(),
                    "parquet": parquet_bytes(pa.Table.from_pylist(lines)),
                }
                for ending, data in files.items():
                    storage.write_bytes_atomic(storage.join(config.output, f"assess.{ending}"), data)
    except Transient as error:
        raise UserError(f"--backends: {name}: {error}") from None
    finally:
        if columns:
            print(markdown(columns))
    return 0


def parse(argv: list[str] | None) -> tuple[AssessConfig, list[str]]:
    parser = jsonargparse.ArgumentParser(prog="gexia assess", description=__doc__, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the keys below")
    parser.add_argument("--backends", nargs="+", type=str, default=["extractive"], help="NAME, or NAME=MODEL, each")
    parser.add_class_arguments(AssessConfig)
    describe(parser, AssessConfig)
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


@contextmanager
def loaded(config: CompressConfig) -> Iterator[Summarizer]:
    """A summarizer whose engine, if it has one, ends with its use: the next one needs the memory."""
    summarizer = Summarizer(config)
    try:
        yield summarizer
    finally:
        if hasattr(summarizer.backend, "close"):
            summarizer.backend.close()


def run(summarizer: Summarizer, texts: Sequence[LongText]) -> tuple[list[dict], float]:
    """A line of `summaries.SCHEMA` for each text, and the seconds a text that they took."""
    started = time.perf_counter()
    lines = summarizer.summarize(list(texts))
    return lines, (time.perf_counter() - started) / len(texts)


def referenced(config: AssessConfig) -> tuple[str, Measure]:
    """What is held against what, in words, and how to measure a backend by it."""
    if config.encoder:
        scores.check_encoder(config.encoder)
    encoder = Path(config.encoder).name if config.encoder else None
    texts, references = common(read_texts(config.texts), read_texts(config.references), config.limit)
    said = f"BERTScore's encoder: {encoder}" if encoder else "no BERTScore: --encoder names none"

    def measure(name: str, settings: CompressConfig) -> tuple[list, list]:
        with loaded(settings) as summarizer:
            lines, seconds = run(summarizer, texts)
        summaries = [line["summary"] for line in lines]
        measured = scores.rouge(summaries, references)
        if config.encoder:
            measured["BERTScore-F1"] = scores.bert_score(summaries, references, config.encoder)
        column = (
            {"backend": name, "texts": len(texts)}
            | {measure: f"{sum(values) / len(values):.3f}" for measure, values in measured.items()}
            | {"s a summary": f"{seconds:.2g}", "words": f"{mean_words(summaries):.1f}", "fallbacks": fallbacks(lines)}
        )
        head = {"assessed": name, "references": config.references, "encoder": encoder}
        rows = [
            head
            | {"reference": reference, "seconds": line["seconds"]}
            | shown(line)
            | {measure: values[i] for measure, values in measured.items()}
            for i, (line, reference) in enumerate(zip(lines, references))
        ]
        return [column], rows

    return f"{len(texts):,} texts of {config.texts} against those of {config.references}; {said}", measure


def injected(config: AssessConfig) -> tuple[str, Measure]:
    """Which texts hold instructions to the model, in words, and how to measure a backend by them."""
    file = config.texts or str(injections.DEFAULT)
    attacks = injections.read(file)

    def measure(name: str, settings: CompressConfig) -> tuple[list, list]:
        columns, rows = [], []
        with loaded(settings) as summarizer:
            for screened in (False, True):
                summarizer.config = replace(settings, screen=screened)
                lines, _ = run(summarizer, [attack.text for attack in attacks])
                verdicts = [injections.verdict(attack, line["summary"]) for attack, line in zip(attacks, lines)]
                counts = {verdict: verdicts.count(verdict) for verdict in injections.VERDICTS}
                head = {"backend": name, "screen": "yes" if screened else "no", "texts": len(attacks)}
                columns.append(head | counts | {"fallbacks": fallbacks(lines)})
                rows += [
                    {"assessed": name, "screen": screened, "canary": attack.canary, "verdict": verdict} | shown(line)
                    for attack, verdict, line in zip(attacks, verdicts, lines)
                ]
        return columns, rows

    return f"{len(attacks):,} texts of {file} that hold instructions to the model", measure


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
