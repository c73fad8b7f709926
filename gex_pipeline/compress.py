"""Compression of texts (the paper's Θt): a row's long texts -> one summary each, generated once, whatever dies."""

import pyarrow as pa

from gex_pipeline import compose, summaries
from gex_pipeline.config import ExpandConfig
from gex_pipeline.summaries import LongText
from gex_pipeline.summarizer import Summarizer


class Compressor:
    """The stage as an actor: loads the model once, then takes rows."""

    def __init__(self, config: ExpandConfig):
        self.config = config
        self.summarizer = Summarizer(config.compress)

    def __call__(self, item: dict) -> dict:
        """Make sure that the summaries of `item["row"]` are stored; the item comes back unchanged.

        Raises errors.Transient where the row must stay pending (a dead server or engine).
        """
        row, root = int(item["row"]), self.config.output.path
        texts = compose.long_texts(root, row, self.config)
        if texts:
            compress_row(root, row, texts, self.summarizer)
        return item


def compress_row(root: str, row: int, texts: list[LongText], summarizer: Summarizer) -> pa.Table:
    """The row's summaries (`summaries.SCHEMA`), one a text in the same order; made and stored where they are not.

    A stored file counts as long as its keys are those of the texts. They differ only where the texts changed
    (`retry_failed` healed a clip), since another model, prompt or parameter makes another dataset; then the lines
    that still fit are kept and the file is replaced.
    """
    if not summaries.exists(root, row):
        return summaries.write_once(root, row, summarizer.summarize(texts))
    stored = summaries.read(root, row)
    if stored["key"].to_pylist() == [summarizer.key(text) for text in texts]:
        return stored
    known = {line["key"]: line for line in stored.to_pylist()}
    return summaries.replace(root, row, summarizer.summarize(texts, known))
