"""MSVD retrieval and MSVD-QA."""

import pyarrow as pa

from gex_pipeline.benchmarks import records
from gex_pipeline.benchmarks.files import Annotations, read_json, read_lines, reading
from gex_pipeline.benchmarks.open_qa import QA_SPLITS, questions
from shards.errors import UserError

MAPPING = "youtube_mapping.txt"


def retrieval(annotations: Annotations) -> pa.Table:
    """One record a clip of the lists, with all its captions; every caption is a query of its own."""
    captions_file = annotations.find("*captions*.json")
    if captions_file is None and (pickle := annotations.find("*.pkl")):
        raise UserError(f"{pickle}: pickles can run code and are not opened; convert it to raw-captions.json once")
    captions_file = captions_file or annotations.require("raw-captions.json")
    captions = read_json(captions_file, dict)
    parts = annotations.splits({split: (f"{split}_list.txt",) for split in ("train", "val", "test")})
    rows = []
    for split, url in parts.items():
        for name in map(str.strip, read_lines(url)):
            with reading(captions_file, name):
                texts = [text if isinstance(text, str) else " ".join(text) for text in captions[name]]
                rows.append(records.whole_video(name, split) | records.captioned(texts))
    return records.table(rows)


def question_answering(annotations: Annotations) -> pa.Table:
    """One record a video, with all its questions; files carry the clip's YouTube name or `vidN`."""
    mapping_file = annotations.require(MAPPING)
    names = {}
    for line in read_lines(mapping_file):
        with reading(mapping_file, line):
            clip, number = line.split()
            names[int(number.removeprefix("vid"))] = clip

    def video(number: int, split: str) -> dict:
        if number not in names:
            raise ValueError(f"vid{number} is not in {MAPPING}")
        return records.whole_video(names[number], split) | {"alt_video": f"vid{number}"}

    return questions(annotations.splits(QA_SPLITS), video)
