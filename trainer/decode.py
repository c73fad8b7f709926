"""A sample's bytes -> its frames as the model gets them, and its sentences."""

import io
import json
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image

from shards import format, tar
from trainer.order import derive_key

# Frames up to this much larger than `size` are cropped as they are: `ops/bench/decode_jpeg.py` says what that saves.
CROP_ONLY_RATIO = 1.25
# A longer text is no description of a video, and would take a batch's memory: all its texts are padded to it.
_MOST_SENTENCES, _MOST_CHARACTERS = 512, 20_000
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # json can escape one, but no tokenizer takes it


class SampleError(Exception):
    """A sample that cannot be used. `kind` is what failures are counted by."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Recipe:
    """How a stream's samples become arrays."""

    granularity: str
    views: tuple[str, ...]
    frames: int
    size: int
    random_frames: bool
    random_crop: bool
    seed: int
    fields: tuple[str, ...] = ()  # of the sample's json that come along
    required: tuple[str, ...] = ()  # those of them that a sample must have


@dataclass
class Decoded:
    sample_id: str
    frames: int  # rows of `out` that were filled; the rest is zero
    sentences: dict[str, list[str]]
    fields: dict  # those of the recipe, None where the json has none


def decode_sample(data, recipe: Recipe, epoch: int, out: np.ndarray) -> Decoded:
    """Decode one sample's tar slice into `out`, uint8 [frames, size, size, 3] (RGB).

    Frame choice and crop are random by (seed, epoch, sample_id), the crop the same for all frames of a sample.
    Raises SampleError.
    """
    key, members = _members(data)
    meta = _meta(key, members)
    if missing := [name for name in recipe.required if meta.get(name) is None]:
        raise SampleError("no_field", f"{meta['sample_id']}: its json has no {', '.join(missing)}")
    sentences = {view: _sentences(view, meta, members, recipe.granularity) for view in recipe.views}
    rng = random.Random(derive_key(recipe.seed, epoch, meta["sample_id"]))

    def choose(stored: int) -> list[int]:
        return choose_frames(stored, recipe.frames, rng if recipe.random_frames else None)

    frames = stored_frames(members, choose, recipe.granularity, recipe.size, meta["sample_id"])
    place = (rng.random(), rng.random()) if recipe.random_crop else (0.5, 0.5)
    filled = 0
    for filled, frame in enumerate(frames, 1):
        out[filled - 1] = fit(frame, recipe.size, place)
    out[filled:] = 0
    fields = {name: meta.get(name) for name in recipe.fields}
    return Decoded(meta["sample_id"], filled, sentences, fields)


def choose_frames(stored: int, wanted: int, rng: random.Random | None) -> list[int]:
    """One frame from each of `wanted` equal segments, its middle one or a random one; all if there are no more."""
    if stored <= wanted:
        return list(range(stored))
    edges = [i * stored // wanted for i in range(wanted + 1)]
    if rng is None:
        return [(a + b - 1) // 2 for a, b in zip(edges, edges[1:])]
    return [rng.randrange(a, b) for a, b in zip(edges, edges[1:])]


def fit(frame: np.ndarray, size: int, place: tuple[float, float]) -> np.ndarray:
    """A square of `size` from a frame: cut out where the frame is little larger, otherwise the square over its
    whole short side, resized. `place` is where between the edges (0 to 1, vertical and horizontal) it lies."""
    height, width = frame.shape[:2]
    short = min(height, width)
    side = size if size <= short <= CROP_ONLY_RATIO * size else short
    top, left = (min(int(at * (room + 1)), room) for at, room in zip(place, (height - side, width - side)))
    square = frame[top : top + side, left : left + side]
    if side == size:
        return square
    return np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.BILINEAR))


def _members(data) -> tuple[str, dict[str, memoryview]]:
    """Key and members of the sample that the bytes hold."""
    try:
        named = [(tar.split_name(name), value) for name, value in tar.parse_members(data)]
    except tar.TarError as error:
        raise SampleError("bad_tar", str(error)) from None
    keys = {split[0] for split, _ in named if split}
    if len(keys) != 1:
        raise SampleError("bad_offsets", f"the sample's bytes hold {len(keys)} keys, not one")
    return keys.pop(), {split[1]: value for split, value in named if split}


def _meta(key: str, members: dict[str, memoryview]) -> dict:
    """The sample's json; others' samples go by their key, and may have no json."""
    try:
        meta = json.loads(bytes(members.get("json", b"{}")))
    except (ValueError, RecursionError) as error:
        raise SampleError("bad_json", f"{key}: its json is not valid: {error}") from None
    if not isinstance(meta, dict):
        raise SampleError("bad_json", f"{key}: its json is no object")
    return meta | {"sample_id": str(meta.get("sample_id") or key)}


def _sentences(view: str, meta: dict, members: dict[str, memoryview], granularity: str) -> list[str]:
    """The json's sentences; the text member or, as others write it, the json's caption is one."""
    known = meta.get("sentences")
    sentences = known.get(view) if isinstance(known, dict) else None
    if sentences is None:
        member = members.get(format.TEXT_VIEWS[granularity].get(view, ""))
        caption = meta.get("caption") if view == "caption" else None
        text = caption if member is None else bytes(member).decode(errors="replace")
        sentences = [] if text is None else [text]
    if not isinstance(sentences, list) or not all(map(_is_text, sentences)):
        raise SampleError("bad_text", f"{meta['sample_id']}: the view {view} is no text")
    if len(sentences) > _MOST_SENTENCES or sum(map(len, sentences)) > _MOST_CHARACTERS:
        size = f"{len(sentences):,} sentences, {sum(map(len, sentences)):,} characters"
        most = f"{_MOST_SENTENCES:,} and {_MOST_CHARACTERS:,}"
        raise SampleError("bad_text", f"{meta['sample_id']}: the view {view} has {size}; at most {most} are read")
    sentences = [sentence for sentence in sentences if sentence.strip()]
    if not sentences:
        raise SampleError("no_text", f"{meta['sample_id']}: no text for the view {view}")
    return sentences


def _is_text(value) -> bool:
    return isinstance(value, str) and not _HALF_CHARACTER.search(value)


def stored_frames(
    members: dict[str, memoryview], choose: Callable[[int], list[int]], granularity: str, size: int = 1, sample_id: str = ""
) -> Iterable[np.ndarray]:
    """The chosen frames, RGB uint8 [H, W, 3], of the sample's video or pictures; an image's is its picture.

    `choose` is told how many there are; a JPEG much larger than `size` may come smaller. Raises SampleError.
    """
    pictures, videos = (
        [(name, members[name]) for name in sorted(members, key=lambda name: (len(name), name)) if _last(name) in kinds]
        for kinds in (format.PICTURES, format.VIDEOS)
    )
    if videos and not (pictures and granularity == format.IMAGE):
        return _decode_video(videos[0][1], choose, sample_id)
    if not pictures:
        raise SampleError("no_frames", f"{sample_id}: no frames")
    return (_decode_picture(*pictures[index], size, sample_id) for index in choose(len(pictures)))


def _last(extension: str) -> str:
    return extension.rpartition(".")[2]


def _decode_video(data, choose: Callable[[int], list[int]], sample_id: str) -> list[np.ndarray]:
    import av  # a library that few datasets need, in every worker

    from shards.video import VideoError, read_frames

    try:
        return read_frames(bytes(data), choose)
    except (VideoError, av.error.FFmpegError) as error:
        raise SampleError("bad_video", f"{sample_id}: {error}") from None


def _decode_picture(extension: str, data, size: int, sample_id: str) -> np.ndarray:
    if _last(extension) in ("jpg", "jpeg"):
        return _decode_jpeg(data, size, sample_id)
    try:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except Exception as error:  # of damaged files Pillow raises what its parsers happen to run into
        raise SampleError("bad_image", f"{sample_id}: {error}") from None


def _decode_jpeg(data, size: int, sample_id: str) -> np.ndarray:
    """RGB uint8 [H, W, 3]; one too large to be cropped comes scaled by eighths, to little more than `size`."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        least = size if min(height, width) > CROP_ONLY_RATIO * size else 0
        return simplejpeg.decode_jpeg(data, "RGB", min_height=least, min_width=least)
    except ValueError as error:
        raise SampleError("bad_jpeg", f"{sample_id}: {error}") from None
