"""UCF101 and HMDB51: three official splits each, as lists of files."""

import pyarrow as pa

from gex_pipeline.benchmarks import records
from gex_pipeline.benchmarks.files import Annotations, read_lines, reading
from shards.errors import UserError


def ucf101(annotations: Annotations, split: str) -> pa.Table:
    """`Archery/v_Archery_g08_c01.avi 3` (train) and the same without a number (test); the folder is the class."""
    classes_file = annotations.require("classInd.txt")
    with reading(classes_file):
        numbers = {name: int(number) for number, name in map(str.split, read_lines(classes_file))}
    rows = []
    for part in ("train", "test"):
        url = annotations.require(f"{part}list0{split}.txt")
        for number, line in enumerate(read_lines(url), 1):
            with reading(url, f"line {number}"):
                path = line.split()[0]
                folder = path.split("/")[0]
                if folder not in numbers:
                    raise ValueError(f"class {folder!r} is not in classInd.txt")
                rows.append(_action(path.split("/")[-1], folder, numbers[folder] - 1, part))
    return records.table(rows)


def hmdb51(annotations: Annotations, split: str) -> pa.Table:
    """`{class}_test_split{N}.txt`, a line `clip.avi 1`: 1 is train, 2 is test, 0 is not used by this split."""
    ending = f"_test_split{split}.txt"
    files = sorted(name for name in annotations.names if name.endswith(ending))
    if not files:
        raise UserError(f"--annotations {annotations.path}: no *{ending}")
    rows = []
    for class_id, name in enumerate(files):
        url = annotations.url(name)
        for number, line in enumerate(read_lines(url), 1):
            with reading(url, f"line {number}"):
                video, use = line.split()
                part = {"0": None, "1": "train", "2": "test"}[use]
                if part:
                    rows.append(_action(video, name.removesuffix(ending), class_id, part))
    return records.table(rows)


def _action(video: str, class_name: str, class_id: int, part: str) -> dict:
    return records.whole_video(video, part) | {"label": records.phrase(class_name), "label_id": class_id}
