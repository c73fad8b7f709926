"""What a reader gives back, and how it opens a file."""

from dataclasses import dataclass, field
from typing import BinaryIO

import fsspec
import polars as pl

# Columns that readers and the catalog add beside the table's own.
LINE = "__line"  # where a row stands in its file: the line, or the row number of a format without lines; from 1
FILE = "__file"


@dataclass
class Table:
    """One file: its rows with LINE, and (line, message) of each line that is no row."""

    frame: pl.DataFrame
    bad: list[tuple[int, str]] = field(default_factory=list)
    untyped: bool = False  # every column is text, since the format has no numbers


def open_table(url: str) -> BinaryIO:
    """A table's bytes, decompressed as its name says."""
    return fsspec.open(url, "rb", compression="infer").open()
