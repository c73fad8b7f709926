"""LVU 1.0, nine tasks: a header line, then columns split by white space: `2 Romance abcDEF12345 tt0407304`."""

import math

import pyarrow as pa

from gex_pipeline.benchmarks import records
from gex_pipeline.benchmarks.files import Annotations, read_lines, reading
from shards.errors import UserError

TASKS = ("relationship", "way_speaking", "scene", "director", "writer", "year", "genre", "like_ratio", "view_count")
# Means of the training targets (LVU's src/data/video_data_helper.py): the published errors are of zero-mean targets.
LIKE_MEAN = 9.138220535629456
LOG_VIEWS_MEAN = 11.76425435683139


def read(annotations: Annotations, task: str) -> pa.Table:
    """One record a video of one task: a class, or a zero-mean regression target."""
    folder = annotations.subfolder(task) if task in annotations.names else annotations
    if (name := folder.folder.rpartition("/")[2]) in TASKS and name != task:
        raise UserError(f"--annotations {annotations.path} is the task {name}, but --variant is {task}")
    rows = []
    for split, url in folder.splits({split: (f"{split}.csv",) for split in ("train", "val", "test")}).items():
        for number, line in enumerate(read_lines(url)[1:], 2):
            with reading(url, f"line {number}"):
                fields = line.split()
                rows.append(records.whole_video(fields[-2], split) | _answer(task, fields))
    return records.table(rows)


def _answer(task: str, fields: list[str]) -> dict:
    if task == "like_ratio":
        likes, dislikes = float(fields[0]), float(fields[1])
        return {"target": 10 * likes / (likes + dislikes) - LIKE_MEAN}
    if task == "view_count":
        return {"target": math.log(float(fields[0])) - LOG_VIEWS_MEAN}
    return {"label": records.phrase(" ".join(fields[1:-2])), "label_id": int(fields[0])}
