"""MSR-VTT retrieval (train 9k or 7k, test 1k-A) and MSRVTT-QA."""

import pyarrow as pa

from gex_pipeline.benchmarks import records
from gex_pipeline.benchmarks.files import Annotations, read_csv_table, read_json, reading
from gex_pipeline.benchmarks.open_qa import QA_SPLITS, questions

CAPTIONS = "MSRVTT_data.json"


def retrieval(annotations: Annotations, train: str) -> pa.Table:
    """Train: each video with its about 20 captions, from MSRVTT_data.json. Test (1k-A): one caption a video.

    There is no validation split: one is to be held out of train.
    """
    parts = annotations.splits({"train": (f"MSRVTT_train.{train}.csv",), "test": ("MSRVTT_JSFUSION_test.csv",)})
    rows = []
    if "train" in parts:
        captions = _captions(annotations.require(CAPTIONS))
        for row in read_csv_table(parts["train"], ("video_id",)):
            video = row["video_id"]
            with reading(parts["train"], f"captions in {CAPTIONS}"):
                rows.append(records.whole_video(video, "train") | records.captioned(captions[video]))
    if "test" in parts:
        for row in read_csv_table(parts["test"], ("video_id", "sentence")):
            rows.append(records.whole_video(row["video_id"], "test") | records.captioned([row["sentence"]]))
    return records.table(rows)


def question_answering(annotations: Annotations) -> pa.Table:
    """One record a video, with all its questions."""
    parts = annotations.splits(QA_SPLITS)
    return questions(parts, lambda number, split: records.whole_video(f"video{number}", split))


def _captions(url: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    with reading(url):
        for sentence in read_json(url, dict)["sentences"]:
            found.setdefault(sentence["video_id"], []).append(sentence["caption"])
    return found
