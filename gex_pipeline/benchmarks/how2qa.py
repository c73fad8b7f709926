"""How2QA, multiple choice: the release's csv (no header, times in the whole video) or VALUE's jsonl (60 s windows)."""

import pyarrow as pa

from gex_pipeline.benchmarks import records
from gex_pipeline.benchmarks.files import Annotations, read_csv, read_json_lines, reading

# how2QA_val_release.csv, how2qa_train_release.jsonl, ...; papers report val ("public val") as their test.
PARTS = {
    "train": ("how2qa_train_release.*",),
    "val": ("how2qa_val_release.*",),
    "test": ("how2qa_test_public_release.*",),
}
WINDOW_SECONDS = 60


def read(annotations: Annotations) -> pa.Table:
    """One record a question, with its own segment. Options stay in the file's order (in the csv the right one is
    always last), so a reader must shuffle them."""
    rows = []
    for split, url in annotations.splits(PARTS).items():
        parsed = _jsonl(url) if url.endswith(".jsonl") else _csv(url)
        for number, row in enumerate(parsed):
            row["options"] = [records.clean(option) for option in row["options"]]
            row["answer"] = None if row["answer_id"] is None else row["options"][row["answer_id"]]
            # Some videos have questions in two splits, but a source belongs to one.
            ids = {"clip_id": f"how2qa_{split}_{number:05d}", "source_id": f"{row['video']}:{split}", "split": split}
            rows.append(ids | row | {"question": records.clean(row["question"])})
    return records.table(rows)


def _csv(url: str):
    """`ID,[7.2:18.0],wrong,wrong,wrong,question?,right`."""
    for number, (video, times, *wrong, question, right) in enumerate(read_csv(url, columns=7), 1):
        with reading(url, f"row {number}"):
            start, end = map(float, times.strip().removeprefix("[").removesuffix("]").split(":"))
            window = int(start // WINDOW_SECONDS) * WINDOW_SECONDS
            yield {
                "video": video,
                "start": start,
                "end": end,
                "alt_video": f"{video}_{window}_{window + WINDOW_SECONDS}",
                "alt_shift": -float(window),
                "question": question,
                "options": [*wrong, right],
                "answer_id": 3,
            }


def _jsonl(url: str):
    """`{"vid_name": "x_60_120", "ts": "3.1-9.0", "q": ..., "a0": ..., "a3": ..., "answer_idx": 2}`."""
    for number, row in enumerate(read_json_lines(url), 1):
        with reading(url, f"line {number}"):
            start, end = map(float, row["ts"].split("-"))
            video, window, _ = row["vid_name"].rsplit("_", 2)
            if (answer := row.get("answer_idx")) not in (None, 0, 1, 2, 3):
                raise ValueError(f"answer_idx is {answer!r}, expected 0 to 3")
            yield {
                "video": row["vid_name"],
                "start": start,
                "end": end,
                "alt_video": video,
                "alt_shift": float(window),
                "question": row["q"],
                "options": [row[f"a{i}"] for i in range(4)],
                "answer_id": answer,
            }
