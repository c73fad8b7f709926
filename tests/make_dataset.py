"""A tiny valid dataset with real JPEGs, for the tests of everything that reads one."""

import numpy as np
import simplejpeg

from shards import format, publish
from shards.mp4 import Encoder
from shards.writer import ShardWriter

_WORDS = "red blue green small large cube ball cone rolls jumps turns stops near far left right slowly quickly".split()
_CLIP_MS = 4_000


def make_dataset(
    root,
    shorts={"train": 40, "val": 10},
    longs={"train": 12, "val": 4},
    rows=2,
    size=(96, 64),
    frames=4,
    long_frames=8,
    seed=0,
    mp4=False,
    captions=None,
    summaries=True,
) -> None:
    """Write a dataset to `root`: for each split `rows` rows with its short (and image) and long samples.

    `size` is (width, height) of the frames. Every sample has its own text; short and image samples of one clip, and
    long samples with their clips, share the catalog's ids. The last row may have fewer samples, or none. `mp4`: short
    and long samples have one video instead of JPEG files.
    `summaries`: long samples have one; without, as compress.backend none leaves them.
    `captions`: number of a short sample in its split -> how many captions it has, as imported benchmarks may.
    """
    root, rng = str(root), np.random.default_rng(seed)
    row = 0
    for split in shorts:
        clips = [_clip(rng, split, i) for i in range(shorts[split])]
        for index, clip in enumerate(clips if captions else ()):
            further = [_sentence(rng, f"{split}-clip-{index}") for _ in range(captions(index) - 1)]
            clip["captions"] = [clip["caption"], *further]
        for part in range(rows):
            short = clips[part::rows]
            groups = [_group(rng, split, i) for i in range(part, longs.get(split, 0), rows)]
            samples = {
                format.SHORT: [_short(rng, c, frames, size) for c in short],
                format.IMAGE: [_short(rng, c, 1, size) for c in short],
                format.LONG: [_long(rng, g, long_frames, size) for g in groups],
            }
            for sample in [] if summaries else samples[format.LONG]:
                for views in (sample["texts"], sample["meta"]["sentences"]):
                    del views["summary"]
                sample["meta"]["summary"] = None
            for sample in [*samples[format.SHORT], *samples[format.LONG]] if mp4 else []:
                sample["frames"] = _video(sample["frames"])
            shards = {granularity: _write(root, split, granularity, row, made) for granularity, made in samples.items()}
            publish.write_commit(root, row, {"row": row, "split": split, "shards": shards})
            row += 1
    stored = {"per_clip": frames, "per_long": long_frames, "format": "mp4" if mp4 else "jpg"}
    publish.build_manifest(root, config_digest="test", plan_digest="test", frames=stored, versions={})


def jpeg(rng: np.random.Generator, size: tuple[int, int]) -> bytes:
    """A random pattern of 8 x 8 coloured tiles, (width, height) `size`."""
    width, height = size
    tiles = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    rows, columns = np.arange(height) * 8 // height, np.arange(width) * 8 // width
    return simplejpeg.encode_jpeg(np.ascontiguousarray(tiles[rows][:, columns]), quality=85)


def _video(jpegs: list[bytes]) -> bytes:
    encoder = Encoder(crf=18)
    for number, data in enumerate(jpegs):
        encoder.write(simplejpeg.decode_jpeg(data), number * 500)
    return encoder.close()


def _sentence(rng: np.random.Generator, name: str) -> str:
    return f"{' '.join(rng.choice(_WORDS, 6))} in {name.replace('-', ' ')}"


def _clip(rng, split: str, index: int, group: str = "") -> dict:
    name = f"{split}-{group or 'clip'}-{index}"
    start = index * _CLIP_MS
    return {
        "clip_id": name,
        "source_id": f"{split}-{group or f'source-{index // 4}'}",
        "video": f"videos/{name}.mp4",
        "start_ms": start,
        "end_ms": start + _CLIP_MS,
        "caption": _sentence(rng, name),
    }


def _group(rng, split: str, index: int) -> list[dict]:
    return [_clip(rng, split, i, group=f"film-{index}") for i in range(int(rng.integers(2, 5)))]


def _frame_ms(clip: dict, count: int) -> list[int]:
    return [clip["start_ms"] + _CLIP_MS * (2 * i + 1) // (2 * count) for i in range(count)]


def _short(rng, clip: dict, count: int, size: tuple[int, int]) -> dict:
    return {
        "source_id": clip["source_id"],
        "clip_ids": [clip["clip_id"]],
        "texts": {"caption": clip["caption"]},
        "frames": [jpeg(rng, size) for _ in range(count)],
        "duration_ms": _CLIP_MS,
        "decoder": "none",
        "meta": {
            **{field: clip[field] for field in ("clip_id", "video", "start_ms", "end_ms", "caption")},
            **_frame_fields(size, _frame_ms(clip, count)),
            "sentences": {"caption": [clip["caption"]]},
            **({"captions": clip["captions"]} if "captions" in clip else {}),
        },
    }


def _long(rng, group: list[dict], count: int, size: tuple[int, int]) -> dict:
    bounds = [count * i // len(group) for i in range(len(group) + 1)]
    clips, frame_ms = [], []
    for clip, first, last in zip(group, bounds, bounds[1:]):
        fields = {field: clip[field] for field in ("clip_id", "video", "start_ms", "end_ms", "caption")}
        clips.append({**fields, "frames": [first, last]})
        frame_ms += _frame_ms(clip, last - first)
    captions = [clip["caption"] for clip in group]
    summary = f"{captions[0]}, then {captions[-1]}"
    return {
        "source_id": group[0]["source_id"],
        "clip_ids": [clip["clip_id"] for clip in group],
        "texts": {"long": ". ".join(captions) + ".", "summary": summary},
        "frames": [jpeg(rng, size) for _ in range(count)],
        "duration_ms": _CLIP_MS * len(group),
        "decoder": "none",
        "meta": {
            **_frame_fields(size, frame_ms),
            "clips": clips,
            "sentences": {"long": captions, "summary": [summary]},
            "summary": {"status": "ok", "backend": "extractive", "model": None, "prompt": None},
        },
    }


def _frame_fields(size: tuple[int, int], frame_ms: list[int]) -> dict:
    return {"width": size[0], "height": size[1], "frame_ms": frame_ms}


def _write(root: str, split: str, granularity: str, row: int, samples: list[dict]) -> dict | None:
    with ShardWriter(root, split, granularity, row) as writer:
        for sample in samples:
            identity = format.sample_id(granularity, sample["source_id"], sample["clip_ids"], "test")
            writer.add(sample_id=identity, **sample)
        return writer.close()
