"""DiDeMo, paragraph retrieval; a split is `[{"video": "x_1.mov", "description": "cat jumps", "times": [[0, 1]]}]`."""

import pyarrow as pa

from gex_pipeline.benchmarks import records
from gex_pipeline.benchmarks.files import Annotations, read_json, read_lines, reading

SPLITS = ("train", "val", "test")
# Videos were cut to their first 30 seconds for annotation; CLIP4Clip, whose figures are compared, reads 0 to 31 s.
WINDOW_SECONDS = 31.0


def read(annotations: Annotations) -> pa.Table:
    """One record a video: all its descriptions in the order of the file. `{split}_list.txt`, if there, restricts."""
    rows = []
    for split, url in annotations.splits({split: (f"{split}_data.json",) for split in SPLITS}).items():
        names = annotations.find(f"{split}_list.txt")
        wanted = set(map(str.strip, read_lines(names))) if names else None
        descriptions: dict[str, list[str]] = {}
        for index, entry in enumerate(read_json(url, list)):
            with reading(url, f"entry {index}"):
                if wanted is None or entry["video"] in wanted:
                    descriptions.setdefault(entry["video"], []).append(entry["description"])
        for video, sentences in descriptions.items():
            window = {"start": 0.0, "end": WINDOW_SECONDS}
            rows.append(records.whole_video(video, split) | window | records.paragraph(sentences))
    return records.table(rows)
