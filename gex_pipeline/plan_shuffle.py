"""Grouping over a Ray cluster: a hash shuffle of the grouping keys, then one vectorised pass a partition."""

import polars as pl
import pyarrow as pa
import ray

from gex_pipeline import grouping
from gex_pipeline.config import IntegrateConfig

PARTITION_CLIPS = 500_000  # some 50 MB of keys: well under Ray's block size, which would cut a partition in two


def arrange_with_ray(keys: pl.DataFrame, config: IntegrateConfig) -> pl.DataFrame:
    """`grouping.arrange` of all clips, partition by partition; the order of sources is Ray's and means nothing."""
    partitions = max(2, -(-keys.height // PARTITION_CLIPS))
    chunks = [chunk.to_arrow(compat_level=pl.CompatLevel.oldest()) for chunk in keys.iter_slices(PARTITION_CLIPS)]
    shuffled = ray.data.from_arrow(chunks).repartition(partitions, keys=["source_id"])

    def arrange(block: pa.Table) -> pa.Table:
        return grouping.arrange(pl.from_arrow(block, schema=keys.schema), config).to_arrow()

    arranged = shuffled.map_batches(arrange, batch_format="pyarrow", batch_size=None, zero_copy_batch=True)
    blocks = [pl.from_arrow(ray.get(ref)) for ref in arranged.to_arrow_refs()]
    result = pl.concat([block for block in blocks if block.height], rechunk=True)
    opened = keys["source_id"].gather(result.filter("opens_source")["index"])
    if opened.n_unique() != len(opened):
        raise RuntimeError("Ray Data gave one source to two partitions; set integrate.engine to polars")
    return result
