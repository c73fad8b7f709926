"""Compression of texts (the paper's Θt): a row's long texts -> one summary each, generated once, whatever dies."""

import pyarrow as pa

from gex_pipeline import compose, summaries
from gex_pipeline.config import ExpandConfig
from gex_pipeline.summaries import LongText
from gex_pipeline.summarizer import Summarizer

# What a row's summaries came to: lines in its file, those of them that this run generated, and the file's size.
COUNTS = ("texts", "generated", "bytes")


class Compressor:
    """The stage as an actor: loads the model once, then takes rows, several at once where the backend serves them."""

    def __init__(self, config: ExpandConfig):
        self.config = config
        self.summarizer = Summarizer(config.compress)

    def __call__(self, row: int) -> dict[str, int]:
        """Make sure that the row's summaries are stored; COUNTS -> number.

        Raises errors.Transient where the row must stay pending (a dead server or engine).
        """
        root = self.config.output.path
        texts = compose.long_texts(root, row, self.config)
        if not texts:
            return {}
        table = stored_row(root, row, texts, self.summarizer)
        generated = 0
        if table is None:
            table = make_row(root, row, texts, self.summarizer)
            generated = sum(attempts > 0 for attempts in table["attempts"].to_pylist())
        return {"texts": len(texts), "generated": generated, "bytes": summaries.size(root, row)}


def compress_row(root: str, row: int, texts: list[LongText], summarizer: Summarizer) -> pa.Table:
    """The row's summaries (`summaries.SCHEMA`), one a text in the same order; made and stored where they are not."""
    table = stored_row(root, row, texts, summarizer)
    return make_row(root, row, texts, summarizer) if table is None else table


def stored_row(root: str, row: int, texts: list[LongText], summarizer: Summarizer) -> pa.Table | None:
    """What is stored of a row, as long as its keys are those of the texts."""
    if not summaries.exists(root, row):
        return None
    stored = summaries.read(root, row)
    return stored if stored["key"].to_pylist() == [summarizer.key(text) for text in texts] else None


def make_row(root: str, row: int, texts: list[LongText], summarizer: Summarizer) -> pa.Table:
    """Generate and store a row's summaries.

    A file that is there already has other texts (`retry_failed` healed a clip), since another model, prompt or
    parameter makes another dataset: the lines that still fit are kept and the file is replaced.
    """
    if not summaries.exists(root, row):
        return summaries.write_once(root, row, summarizer.summarize(texts))
    known = {line["key"]: line for line in summaries.read(root, row).to_pylist()}
    return summaries.replace(root, row, summarizer.summarize(texts, known))
