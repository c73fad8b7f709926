"""ActivityNet Captions and YouCook2: `{"v_ID": {"duration": 82.7, "timestamps": [[0.8, 19.9]], "sentences": ["A"]}}`.

As a benchmark (ActivityNet, paragraph retrieval) one whole video is one sample; as a pretraining catalog each timed
sentence is a clip of its own.
"""

import pyarrow as pa

from gex_pipeline.benchmarks import records
from gex_pipeline.benchmarks.files import Annotations, read_json, reading

# val_1 is what papers report as the test set of paragraph retrieval; no other split has held-out videos.
PARTS = {
    "train": (("train.json", "train_modified.json"), "train_ids.json"),
    "test": (("val_1.json",), "val_ids.json"),
}


def paragraphs(annotations: Annotations) -> pa.Table:
    """One record a video. A folder gives train and val_1 (as test); any other single file is a split of its name.

    Where a list of ids (`train_ids.json`, `val_ids.json`) lies beside, only those videos are taken.
    """
    rows = []
    for split, url in _splits(annotations).items():
        ids = annotations.find(PARTS[split][1]) if split in PARTS else None
        wanted = set(read_json(ids, list)) if ids else None
        for name, entry in _entries(url):
            if wanted is not None and name not in wanted:
                continue
            text = records.paragraph([sentence for sentence, _, _ in entry["parts"]])
            rows.append(_video(name) | text | {"clip_id": name, "duration": entry["duration"], "split": split})
    return records.table(rows)


def sentences(url: str) -> pa.Table:
    """One record a timed sentence of a file, in its order."""
    rows = []
    for video, entry in _entries(url):
        for number, (sentence, start, end) in enumerate(entry["parts"]):
            clip = {"clip_id": f"{video}_{number:03d}", "start": start, "end": end}
            rows.append(_video(video) | clip | {"caption": sentence})
    return records.table(rows)


def _splits(annotations: Annotations) -> dict[str, str]:
    if len(annotations.names) == 1 and annotations.find("*.json") and not annotations.find(*PARTS["train"][0]):
        name = annotations.names[0]
        return {"test" if name in PARTS["test"][0] else name.removesuffix(".json"): annotations.url(name)}
    return annotations.splits({split: names for split, (names, _) in PARTS.items()})


def _entries(url: str):
    for name, entry in read_json(url, dict).items():
        with reading(url, name):
            times = [(float(start), float(end)) for start, end in entry["timestamps"]]
            if len(times) != len(entry["sentences"]):
                raise ValueError(f"{len(times)} timestamps for {len(entry['sentences'])} sentences")
            parts = [(records.clean(sentence), *time) for sentence, time in zip(entry["sentences"], times)]
            yield name, {"duration": float(entry["duration"]), "parts": parts}


def _video(name: str) -> dict:
    """Files carry the YouTube id alone or the annotation's `v_` before it; an id may itself start with `v_`."""
    video = name[2:] if name.startswith("v_") and len(name) == 13 else name
    return {"source_id": video, "video": video, "alt_video": name}
