"""Parquet files, of any writer."""

import polars as pl

from gex_pipeline.formats.table import LINE, Table, open_table
from shards.errors import UserError


def read(url: str) -> Table:
    try:
        with open_table(url) as file:
            frame = pl.read_parquet(file)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{url}: cannot read as parquet: {str(error).splitlines()[0]}") from None
    return Table(frame.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias(LINE)))
