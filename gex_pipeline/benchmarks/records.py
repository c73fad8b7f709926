"""The one internal record that every benchmark's own files become."""

import re

import pyarrow as pa

SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),  # unique over the benchmark
        ("source_id", pa.string()),
        ("video", pa.string()),  # name of the video; `videos.resolve` puts its path here
        ("alt_video", pa.string()),  # second name that the same footage is kept under
        ("alt_shift", pa.float64()),  # seconds to add to start and end where the second name is taken
        ("start", pa.float64()),  # seconds; null start and end: the whole video
        ("end", pa.float64()),
        ("duration", pa.float64()),  # seconds
        ("split", pa.string()),
        ("caption", pa.large_string()),  # the first caption, or the whole paragraph
        ("captions", pa.list_(pa.large_string())),  # all that describe this video, each a query of its own
        ("sentences", pa.list_(pa.large_string())),  # of a paragraph, in order
        ("label", pa.string()),  # class phrase, as a prompt would say it
        ("label_id", pa.int64()),  # the benchmark's own class number
        ("labels", pa.list_(pa.string())),  # multi-label: class phrases, [] where the video shows none
        ("target", pa.float64()),  # regression
        ("question", pa.large_string()),
        ("options", pa.list_(pa.large_string())),
        ("answer", pa.large_string()),
        ("answer_id", pa.int64()),  # of the answer in `options`; options may repeat, so the text is not enough
        ("questions", pa.list_(pa.large_string())),  # open-ended: all questions of one video ...
        ("answers", pa.list_(pa.large_string())),  # ... and the answer of each
    ]
)


def table(records: list[dict]) -> pa.Table:
    """Records -> table of `SCHEMA`; a field that a record does not name is null."""
    return pa.Table.from_pylist(records, schema=SCHEMA)


def whole_video(name: str, split: str) -> dict:
    """Id fields of a sample that is a whole video: the video is its own source."""
    return {"clip_id": name, "source_id": name, "video": name, "split": split}


def captioned(captions: list[str]) -> dict:
    """Text fields of a video with several independent captions; one without any text is left out."""
    captions = [text for text in map(clean, captions) if text]
    return {"caption": captions[0] if captions else None, "captions": captions}


def paragraph(sentences: list[str]) -> dict:
    """Text fields of a video with one paragraph: its sentences in order, joined by a space (paragraph retrieval)."""
    sentences = [clean(sentence) for sentence in sentences]
    text = " ".join(sentences)
    return {"caption": text, "captions": [text], "sentences": sentences}


def clean(text: str) -> str:
    """Text with runs of white space as one space: ActivityNet's sentences start with one, some hold line breaks."""
    return " ".join(text.split())


def phrase(class_name: str) -> str:
    """Class name -> words: `brush_hair` -> `brush hair`, `ApplyEyeMakeup` -> `Apply Eye Makeup`."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", class_name.replace("_", " "))
    return clean(words)
