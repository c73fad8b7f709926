"""Texts with ids, for `gexia assess`: ActivityNet Captions json, jsonl and parquet."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gex_pipeline import sentences
from gex_pipeline.summaries import LongText
from shards.errors import UserError
from shards.format import digest


def read_texts(path: str) -> dict[str, LongText]:
    """id -> text. json: ActivityNet's {video: {sentences: [...]}}; jsonl and parquet: `id` and `text`."""
    file = Path(path)
    if not file.is_file():
        raise UserError(f"there is no file {path}")
    readers = {".json": _activitynet, ".jsonl": _jsonl, ".parquet": _parquet}
    if file.suffix not in readers:
        raise UserError(f"{path}: texts come as {', '.join(readers)}")
    found = {}
    for where, name, parts in readers[file.suffix](file):
        if name in found:
            raise UserError(f"{path}, {where}: the id {name} was there before; keep one text an id")
        kept = [sentences.ended(part.strip()) for part in parts if part.strip()]
        if not kept:
            raise UserError(f"{path}, {where}: the text is empty; leave it out")
        found[name] = LongText(name, " ".join(kept), kept)
    if not found:
        raise UserError(f"{path} holds no text")
    return found


def common(texts: dict[str, LongText], references: dict[str, LongText], limit: int | None) -> tuple[list[LongText], list[str]]:
    """Texts of ids that both have, and their references; UserError where a reference is the text itself."""
    ids = texts.keys() & references.keys()
    if not ids:
        raise UserError("--references has none of the ids of --texts")
    chosen = sorted(ids, key=digest)[:limit]
    for name in chosen:
        if texts[name].text.lower().split() == references[name].text.lower().split():
            raise UserError(
                f"--references: {name} is the text itself; give what somebody else wrote (ActivityNet: the other val file)"
            )
    return [texts[name] for name in chosen], [references[name].text for name in chosen]


def _activitynet(file: Path) -> Iterator[tuple[str, str, list[str]]]:
    try:
        videos = json.loads(file.read_text(encoding="utf-8"))
        yield from [(name, name, [str(part) for part in video["sentences"]]) for name, video in videos.items()]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file} is not ActivityNet Captions json: {{video: {{sentences: [...]}}}}") from None


def _jsonl(file: Path) -> Iterator[tuple[str, str, list[str]]]:
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        if line.strip():
            yield _row(file, f"line {number}", lambda: json.loads(line.decode()))


def _parquet(file: Path) -> Iterator[tuple[str, str, list[str]]]:
    try:
        rows = pq.read_table(file, columns=["id", "text"]).to_pylist()
    except (pa.ArrowInvalid, KeyError) as error:
        raise UserError(f"{file}: no parquet table with id and text ({error})") from None
    for number, row in enumerate(rows, 1):
        yield _row(file, f"row {number}", lambda: row)


def _row(file: Path, where: str, read) -> tuple[str, str, list[str]]:
    try:
        row = read()
        return where, str(row["id"]), sentences.split(row["text"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file}, {where}: not an object with the strings id and text (UTF-8)") from None
