"""The store of generated texts: `summaries/ROW.parquet`, one write-once file a row.

A row's file is written whole, once, by whoever finishes first; afterwards it is what the row's long samples are
made from, whatever dies and however often the row is redone. That is what makes tars reproducible although a
model's output need not be. Each line is keyed by everything that decides a summary (`text_key`), so that another
dataset, with other rows, can take it over (`compress.reuse`).
"""

import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from shards import storage
from shards.errors import UserError
from shards.format import digest
from shards.reader import parse_parquet

FOLDER = "summaries"

SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("key", pa.string()),  # text_key()
        ("text", pa.large_string()),  # the long text that was summarised
        ("summary", pa.large_string()),
        ("sentences", pa.list_(pa.large_string())),  # of the summary
        ("status", pa.string()),  # "ok", or "fallback" where no generation passed the guards
        ("reason", pa.string()),  # the guard that the last generation failed, context, no_text; null when ok
        ("rejected", pa.list_(pa.string())),  # the guard each rejected generation failed, in order
        ("attempts", pa.int32()),  # generations made for this line; 0 when it was taken over or repeats another
        ("pieces", pa.int32()),  # that were summarised first, 0 where the text was read whole
        ("screened", pa.int32()),  # sentences left out of what was read, since they speak to the model
        ("backend", pa.string()),  # what wrote the summary: "extractive" after a fallback
        ("model", pa.string()),
        ("prompt", pa.string()),  # digest of the prompt
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("seconds", pa.float64()),  # share of the generation time; never enters a tar
    ]
)


@dataclass(frozen=True)
class LongText:
    """The joined captions of a long sample; `sentences` are its captions' sentences, in order."""

    sample_id: str
    text: str
    sentences: list[str]


def text_key(settings: dict, text: LongText) -> str:
    """sha256 over everything that decides a summary: backend, model, prompt, parameters (`settings`) and text."""
    return digest({"settings": settings, "text": text.text, "sentences": text.sentences})


def path(root: str, row: int) -> str:
    return storage.join(root, FOLDER, f"{row:05d}.parquet")


def exists(root: str, row: int) -> bool:
    return storage.exists(path(root, row))


def size(root: str, row: int) -> int:
    """Bytes of a row's file."""
    return storage.size(path(root, row))


def store_size(root: str) -> int:
    """Bytes of all rows' files."""
    return storage.folder_size(storage.join(root, FOLDER))


def read(root: str, row: int) -> pa.Table:
    """A row's summaries (`SCHEMA`), in the order of its long texts."""
    return parse_parquet(storage.read_bytes(path(root, row)))


def write_once(root: str, row: int, lines: list[dict]) -> pa.Table:
    """Publish a row's summaries and return those that count: the first writer's, also when that was another."""
    storage.create_once(path(root, row), to_parquet(pa.Table.from_pylist(lines, schema=SCHEMA)))
    return read(root, row)


def replace(root: str, row: int, lines: list[dict]) -> pa.Table:
    """Publish a row's summaries in the place of those of texts that have changed."""
    table = pa.Table.from_pylist(lines, schema=SCHEMA)
    storage.write_bytes_atomic(path(root, row), to_parquet(table))
    return table


def to_parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def account(lines: Iterable[dict]) -> dict:
    """How many summaries are ok, a fallback, made in pieces; sentences screened; guard -> generations it rejected."""
    lines = list(lines)
    counts = Counter(line["status"] for line in lines)
    return {
        "ok": counts["ok"],
        "fallback": counts["fallback"],
        "in_pieces": sum(bool(line.get("pieces")) for line in lines),
        "screened": sum(line.get("screened") or 0 for line in lines),
        "rejected": dict(Counter(reason for line in lines for reason in line["rejected"])),
    }


def check_reusable(root: str) -> None:
    """UserError where a folder of `compress.reuse` holds no summaries."""
    if not storage.list_dir(storage.join(root, FOLDER), ".parquet"):
        raise UserError(f"compress.reuse: {root} has no {FOLDER}/; give folders of expanded datasets")


def load_reusable(roots: list[str]) -> dict[str, dict]:
    """key -> line of every summary that other datasets hold; fallbacks stay behind, to be tried again."""
    found = {}
    for root in roots:
        for name in storage.list_dir(storage.join(root, FOLDER), ".parquet"):
            lines = read(root, int(name.removesuffix(".parquet"))).to_pylist()
            found |= {line["key"]: line for line in lines if line["status"] == "ok"}
    return found
