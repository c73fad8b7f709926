"""A sample's bytes -> its frames as the model gets them, and its sentences."""

import json
import random
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image

from shards import format, tar
from trainer.order import derive_key

# Frames up to this much larger than `size` are cropped as they are stored: a resize costs a third of the decoding.
CROP_ONLY_RATIO = 1.25


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
    members = _members(data)
    meta = _meta(members)
    if missing := [name for name in recipe.required if meta.get(name) is None]:
        raise SampleError("no_field", f"{meta['sample_id']}: its json has no {', '.join(missing)}")
    sentences = {view: _sentences(view, meta, members, recipe.granularity) for view in recipe.views}
    rng = random.Random(derive_key(recipe.seed, epoch, meta["sample_id"]))
    jpegs = [value for name, value in sorted(members.items()) if name == "jpg" or name.endswith(".jpg")]
    if not jpegs:
        raise SampleError("no_frames", f"{meta['sample_id']}: no frames")
    chosen = choose_frames(len(jpegs), recipe.frames, rng if recipe.random_frames else None)
    place = (rng.random(), rng.random()) if recipe.random_crop else (0.5, 0.5)
    for row, index in zip(out, chosen):
        row[:] = fit(_decode_jpeg(jpegs[index], recipe.size, meta["sample_id"]), recipe.size, place)
    out[len(chosen) :] = 0
    fields = {name: meta.get(name) for name in recipe.fields}
    return Decoded(meta["sample_id"], len(chosen), sentences, fields)


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


def _members(data) -> dict[str, memoryview]:
    try:
        named = [(tar.split_name(name), value) for name, value in tar.parse_members(data)]
    except tar.TarError as error:
        raise SampleError("bad_tar", str(error)) from None
    keys = {split[0] for split, _ in named if split}
    if len(keys) != 1:
        raise SampleError("bad_offsets", f"the sample's bytes hold {len(keys)} keys, not one")
    return {split[1]: value for split, value in named if split}


def _meta(members: dict[str, memoryview]) -> dict:
    try:
        meta = json.loads(bytes(members["json"]))
        meta["sample_id"]
    except (KeyError, TypeError, ValueError) as error:
        raise SampleError("bad_json", f"no sample_id in its json: {error!r}") from None
    return meta


def _sentences(view: str, meta: dict, members: dict[str, memoryview], granularity: str) -> list[str]:
    sentences = meta.get("sentences", {}).get(view)
    if sentences is None:
        text = members.get(format.TEXT_VIEWS[granularity].get(view, ""))
        sentences = [] if text is None else [bytes(text).decode(errors="replace")]
    sentences = [sentence for sentence in sentences if sentence.strip()]
    if not sentences:
        raise SampleError("no_text", f"{meta['sample_id']}: no text for the view {view}")
    return sentences


def _decode_jpeg(data, size: int, sample_id: str) -> np.ndarray:
    """RGB uint8 [H, W, 3]; a picture at least twice as large as needed comes halved (or less), which is faster."""
    try:
        return simplejpeg.decode_jpeg(data, "RGB", min_height=size, min_width=size, min_factor=2)
    except ValueError as error:
        raise SampleError("bad_jpeg", f"{sample_id}: {error}") from None
