"""Open-ended question answering, the layout of MSRVTT-QA and MSVD-QA:
`[{"id": 0, "video_id": 42, "question": "what is a dog riding?", "answer": "bike"}]` a split.

About 25 questions share a video, so one video is one sample that holds them all.
"""

from collections.abc import Callable

import pyarrow as pa

from gex_pipeline.benchmarks import records
from gex_pipeline.benchmarks.files import read_json, reading

QA_SPLITS = {split: (f"{split}_qa.json",) for split in ("train", "val", "test")}


def questions(parts: dict[str, str], video: Callable[[int, str], dict]) -> pa.Table:
    """Split files -> one record a video; `video(number, split)` gives its id fields."""
    found: dict[tuple[str, int], dict] = {}
    for split, url in parts.items():
        for index, row in enumerate(read_json(url, list)):
            with reading(url, f"entry {index}"):
                key = split, int(row["video_id"])
                if key not in found:
                    found[key] = video(key[1], split) | {"questions": [], "answers": []}
                found[key]["questions"].append(records.clean(row["question"]))
                found[key]["answers"].append(records.clean(row["answer"]))
    return records.table(list(found.values()))
