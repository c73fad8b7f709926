"""What a plan would make: counts from the plan itself, bytes and hours from a sample that is really expanded.

The sample is whole groups in a seeded order, at least 50 clips; it goes through the job's own stages in this process,
into a temporary folder. Texts are shortened without a model there, which is what the estimate leaves out.
"""

from collections import Counter
from dataclasses import replace

import numpy as np
import polars as pl

from gex_pipeline import decoder, extract, plan
from gex_pipeline.compose import compose_row
from gex_pipeline.compress import Compressor
from gex_pipeline.config import CompressConfig, ExpandConfig
from gex_pipeline.errors import Transient
from shards import scratch
from shards.format import IMAGE, LONG, SHORT

SAMPLE_CLIPS = 50
_SEED = 0


def report(planned: plan.Plan, config: ExpandConfig) -> list[str]:
    """Lines for a reader."""
    counts = planned.counts
    lines = [f"{counts['groups']:,} groups, {counts['rows']:,} rows, about {planned.target:,} clips a row"]
    part = sample(planned)
    try:
        receipt, record = _expanded(part, config)
    except (Transient, OSError) as error:
        receipt, record = None, {"shards": {}}
        lines.append(f"no estimate of bytes and hours: {error}")
    whole, tried = _samples(counts), _samples(part.counts)
    for granularity in config.output.granularities:
        made = record["shards"].get(granularity)
        about = _about(made, whole[granularity] / tried[granularity]) if made else ""
        lines.append(f"{granularity:>8}  {whole[granularity]:>9,} samples{about}")
    if receipt:
        lines.append(_basis(receipt, part.counts["clips"], counts["clips"]))
    return lines


def sample(planned: plan.Plan) -> plan.Plan:
    """A plan of one row, of whole groups of this one in a seeded order: SAMPLE_CLIPS clips or a few more."""
    first = np.flatnonzero(planned.layout["position"].to_numpy() == 0)
    sizes = np.diff(first, append=planned.layout.height)
    order = np.random.default_rng(_SEED).permutation(len(first))
    taken = np.sort(order[: np.searchsorted(np.cumsum(sizes[order]), SAMPLE_CLIPS) + 1])
    lines = np.concatenate([np.arange(first[group], first[group] + sizes[group]) for group in taken])
    group = pl.Series(np.repeat(np.arange(len(taken), dtype=np.int32), sizes[taken]))
    layout = planned.layout[pl.Series(lines)].with_columns(row=pl.lit(0, pl.Int32), group=group)
    long = int(layout.filter(pl.col("position") == 0)["long"].sum())
    row = {"row": 0, "split": planned.rows["split"][0], "clips": len(lines), "groups": len(taken), "long": long}
    rows = pl.DataFrame([row], schema=planned.rows.schema)
    return plan.Plan(clips=planned.clips, index=planned.index[lines], layout=layout, rows=rows, target=len(lines))


def _expanded(part: plan.Plan, config: ExpandConfig) -> tuple[dict, dict]:
    """Receipt and commit record of the sample's row."""
    with scratch.folder() as root:
        output = replace(config.output, path=root)
        config = replace(config, output=output, compress=CompressConfig(max_words=config.compress.max_words))
        plan.write(part, root)
        try:
            receipt = extract.extract_row(root, 0, config)
        finally:
            decoder.close()
        if LONG in output.granularities:
            Compressor(config)(0)
        return receipt, compose_row(root, 0, config)


def _samples(counts: dict[str, int]) -> dict[str, int]:
    return {SHORT: counts["clips"], LONG: counts["long"], IMAGE: counts["clips"]}


def _about(shard: dict, times: float) -> str:
    hours, megabytes = shard["duration_ms"] * times / 3_600_000, shard["bytes"] * times / 1e6
    return f"  about {hours:>9,.2f} h  {megabytes:>9,.1f} MB"


def _basis(receipt: dict, decoded: int, clips: int) -> str:
    kinds = Counter(error["kind"] for error in receipt["errors"])
    failed = "".join(f", {n} failed ({kind})" for kind, n in kinds.most_common())
    hours = receipt["seconds"] / decoded * clips / 3600
    return (
        f"estimated from {decoded} clips, expanded in {receipt['seconds']:.1f} s on one core{failed}: about {hours:,.2f} "
        "core hours of decoding for all, summaries not counted"
    )
