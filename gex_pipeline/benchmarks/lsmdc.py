"""LSMDC: six tab-separated columns without a header and without quoting, the sentence last."""

import pyarrow as pa

from gex_pipeline.benchmarks import records
from gex_pipeline.benchmarks.files import Annotations, read_lines
from shards.errors import UserError

PARTS = {
    "train": ("LSMDC16_annos_training.csv",),
    "val": ("LSMDC16_annos_val.csv",),
    "test": ("LSMDC16_challenge_1000_publictect.csv", "LSMDC16_challenge_1000_publictest.csv"),  # sic
}
COLUMNS = 6


def read(annotations: Annotations) -> pa.Table:
    """One record a clip: a clip id that repeats (train) gives one sample with several captions."""
    rows = []
    for split, url in annotations.splits(PARTS).items():
        captions: dict[str, list[str]] = {}
        for number, line in enumerate(read_lines(url), 1):
            fields = line.split("\t")
            if len(fields) != COLUMNS:
                raise UserError(f"{url}, line {number}: {len(fields)} tab-separated columns, expected {COLUMNS}")
            captions.setdefault(fields[0].strip(), []).append(fields[-1])
        for clip, texts in captions.items():
            rows.append(records.whole_video(clip, split) | records.captioned(texts))
    return records.table(rows)
