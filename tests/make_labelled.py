"""A tiny dataset with everything that the tasks ask for in its samples' json, for the tests of tasks."""

import numpy as np
import simplejpeg

from shards import format, publish
from shards.writer import ShardWriter

COLOURS = {"red": (220, 40, 30), "green": (40, 170, 60), "blue": (40, 80, 220), "white": (245, 245, 245)}
CORNERS = ("left", "right")


def make_labelled(root, samples={"train": 48, "test": 18}, rows=2, size=32, frames=2, seed=0, captioned=True) -> None:
    """Write a dataset to `root`: plain colours, a bright half of the picture in noise. Each video is its own source.

    label, label_id: the colour. labels: it and the bright side. target: the colour's number. options: all colours in
    one order. questions: colour and side. captions: two, or none.
    """
    root, rng, row = str(root), np.random.default_rng(seed), 0
    for split, count in samples.items():
        for part in range(rows):
            with ShardWriter(root, split, format.SHORT, row) as writer:
                for number in range(part, count, rows):
                    sample = _sample(rng, f"{split}-{number}", size, frames)
                    if not captioned:
                        sample["texts"] = {}
                        sample["meta"] |= {"caption": None, "captions": None, "sentences": {}}
                    writer.add(**sample)
                shards = {format.SHORT: writer.close()}
            publish.write_commit(root, row, {"row": row, "split": split, "shards": shards})
            row += 1
    publish.build_manifest(root, "test", "test", {"per_clip": frames}, {})


def _sample(rng, name: str, size: int, frames: int) -> dict:
    number, side = int(rng.integers(len(COLOURS))), int(rng.integers(2))
    colour, corner = list(COLOURS)[number], CORNERS[side]
    captions = [f"a {colour} picture, bright on the {corner}", f"the {corner} side of {colour} shines"]
    return {
        "sample_id": format.sample_id(format.SHORT, name, [name], "test"),
        "source_id": name,
        "clip_ids": [name],
        "texts": {"caption": captions[0]},
        "frames": [_picture(rng, COLOURS[colour], side, size) for _ in range(frames)],
        "duration_ms": 1000,
        "decoder": "none",
        "meta": {
            "clip_id": name,
            "video": f"{name}.mp4",
            "start_ms": 0,
            "end_ms": 1000,
            "caption": captions[0],
            "captions": captions,
            "sentences": {"caption": [captions[0]]},
            "frame_ms": [1000 * (2 * i + 1) // (2 * frames) for i in range(frames)],
            "width": size,
            "height": size,
            "label": colour,
            "label_id": 10 + number,
            "labels": [colour, corner],
            "target": float(number),
            "question": "which colour is it?",
            "options": list(COLOURS),
            "answer_id": number,
            "questions": ["which colour?", "which side?", "who made it?"],
            "answers": [colour, corner, f"nobody but {name}"],
        },
    }


def _picture(rng, colour: tuple[int, int, int], side: int, size: int) -> bytes:
    picture = 0.7 * np.array(colour) + rng.normal(0, 12, (size, size, 3))
    half = slice(0, size // 2) if side == 0 else slice(size // 2, size)
    picture[:, half] *= 1.4
    return simplejpeg.encode_jpeg(picture.clip(0, 255).astype(np.uint8), quality=90, colorspace="RGB")
