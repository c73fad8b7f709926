"""COIN: `{"database": {ID: {"class": "MakeTea", "subset": "training", "recipe_type": 13, "duration": 131.0, ...}}}`."""

import pyarrow as pa

from gex_pipeline.benchmarks import records
from gex_pipeline.benchmarks.files import Annotations, read_json, reading

SPLITS = {"training": "train", "validation": "test"}  # `validation` is the official test set


def read(annotations: Annotations) -> pa.Table:
    """One record a whole video: its task is the class."""
    url = annotations.require("COIN.json")
    rows = []
    with reading(url):
        database = read_json(url, dict)["database"]
    for video, entry in database.items():
        with reading(url, video):
            if entry["subset"] not in SPLITS:
                raise ValueError(f"subset {entry['subset']!r}, expected training or validation")
            label = {"label": records.phrase(entry["class"]), "label_id": int(entry["recipe_type"])}
            ids = records.whole_video(video, SPLITS[entry["subset"]])
            rows.append(ids | {"duration": float(entry["duration"])} | label)
    return records.table(rows)
