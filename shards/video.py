"""Frames of a video by timestamp: the clips of one file from one forward pass.

Time is in integer milliseconds, and time 0 is the file's first frame that can be shown. A file's timestamps are read
first, without decoding, so the wanted frames are known exactly before the first one is decoded:

- at time t the frame being shown is the last one whose timestamp is at most t;
- a clip [start, end) shows only frames whose timestamps lie inside it, so where the frame being shown began before
  the clip, the clip's first own frame stands for it;
- a clip that reaches beyond its video ends with it.

PyAV decodes; a file that it gets no clip from is given to
decord (an older FFmpeg) once, but not clips of a half damaged file: decord does not tell damage.
PyAV comes first because decord returns wrong frames when it seeks in MPEG-TS, AVI, HEVC and mp4 files with an edit
list, and cannot leave out frames that no clip needs.

Nothing here limits time: native decoders can hang, so callers run this in a process that they can kill.
"""

import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from shards.decoders import DECODERS, TELL_DAMAGE
from shards.mp4 import Encoder
from shards.selection import Failure, Recipe, Request, Selection, passes, select
from shards.timeline import Timeline, VideoError, check_file, scan

__all__ = [
    "Clip", "Failure", "Recipe", "Request", "Timeline", "VideoError",
    "check_file", "read_clips", "read_frames", "scan", "target_size",
]  # fmt: skip

# Area averaging: half the time of swscale's bicubic, and of the same quality when pictures shrink, which is all that
# happens here. Bit-exact flags: the same pixels on every CPU, whatever vector instructions it has.
_SCALER = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.BITEXACT


@dataclass(frozen=True)
class Clip:
    """A clip's frames and its middle frame, each as `convert` made it (default: uint8 [H, W, 3] RGB).

    `frames` is a list, or with `Recipe.mp4` one MP4 file; `frame_ms` and `middle_ms` are the frames' timestamps in
    their video; `duration_ms` is the clip's own. `policy` is the one that chose the frames.
    """

    clip_id: str
    frames: list | bytes
    frame_ms: list[int]
    middle: object
    middle_ms: int
    duration_ms: int
    decoder: str
    policy: str


def read_clips(
    path: str,
    requests: Iterable[Request],
    recipe: Recipe,
    convert: Callable[[np.ndarray], object] = lambda frame: frame,
    progress: Callable[[str | None], None] = lambda clip_id: None,
) -> Iterator[Clip | Failure]:
    """One result per request, in the order in which their last frames come.

    Frames are scaled to `recipe.short_side` pixels (never up, sides even, rotation and pixel shape applied). A clip that
    a decoder cannot read is given to the next of `recipe.decoders`; one that does not tell damage gets it only where
    those before it read no clip at all. `progress` is called with the clip that is being waited for, at least once a
    decoded frame. VideoError where the file as a whole is unusable; OSError where reading it failed.
    """
    check_file(path)
    timeline = scan(path, progress, recipe.limits)
    width, height = target_size(*timeline.size, timeline.pixel_aspect, recipe.short_side)
    if max(width, height) > recipe.max_side:
        size = f"frames of {width}x{height} pixels to be stored"
        raise VideoError("too_large", f"{size}, at most {recipe.max_side:,} on a side can be written")
    chosen = [select(timeline, request, recipe) for request in requests]
    yield from (item for item in chosen if isinstance(item, Failure))
    selections = [item for item in chosen if isinstance(item, Selection)]
    failures, decoded = {}, False
    for decoder in recipe.decoders:
        if failures and decoded and decoder not in TELL_DAMAGE:
            continue
        asked = [item for item in selections if item.clip_id in failures] if failures else selections
        failures = {}
        for part in passes(asked, recipe):
            for result in _read(decoder, path, timeline, part, recipe, convert, progress):
                if isinstance(result, Failure):
                    failures[result.clip_id] = result
                else:
                    decoded = True
                    yield result
        if not failures:
            return
    yield from failures.values()


def read_frames(data: bytes, positions: Iterable[int] | Callable[[int], Iterable[int]]) -> list[np.ndarray]:
    """Frames of an MP4 member, uint8 [H, W, 3] RGB, by their positions in the order of showing (as in `frame_ms`), or by
    a function that chooses among so many.

    VideoError where it has no such frames, or they cannot be decoded.
    """
    file = io.BytesIO(data)
    timeline = scan(file)
    positions = list(positions(len(timeline.ms)) if callable(positions) else positions)
    if not all(0 <= position < len(timeline.ms) for position in positions):
        raise VideoError("no_frames", f"the video has {len(timeline.ms)} frames, asked for {max(positions)}")
    found, scaler = {}, VideoReformatter()
    for position, frame in DECODERS["pyav"](file, timeline, np.unique(positions), lambda: None):
        if frame is None:
            raise VideoError("corrupt", f"frame {position} cannot be decoded")
        found[position] = _scaled(scaler, frame, max(frame.width, frame.height), timeline)
    return [found[position] for position in positions]


def _read(
    decoder: str, path: str, timeline: Timeline, selections: list[Selection], recipe: Recipe, convert, progress
) -> Iterator[Clip | Failure]:
    """Decode what the selections want, and hand out each clip when its last frame has come."""
    wanted_by = defaultdict(list)
    for clip in [_Clip(selection, timeline, recipe, decoder) for selection in selections]:
        for position in {*clip.selection.wanted.tolist(), clip.selection.middle}:
            wanted_by[position].append(clip)
    waiting = iter([item.clip_id for item in sorted(selections, key=lambda item: item.last)])
    current = next(waiting, None)
    progress(current)
    wanted, scaler = np.array(sorted(wanted_by), np.int64), VideoReformatter()
    try:
        for position, frame in DECODERS[decoder](path, timeline, wanted, lambda: progress(current)):
            picture = None
            if frame is not None:
                with suppress(VideoError):
                    picture = _Picture(_scaled(scaler, frame, recipe.short_side, timeline), convert)
            for clip in wanted_by.pop(position):
                clip.add(position, picture)
                if position == clip.selection.last:
                    yield clip.finish()
                    current = next(waiting, current)
                    progress(current)
    finally:
        for clip in (clip for clips in wanted_by.values() for clip in clips):
            clip.discard()


class _Picture:
    """A frame that is converted once, and only if a clip wants it so."""

    def __init__(self, pixels: np.ndarray, convert: Callable[[np.ndarray], object]):
        self.pixels, self._convert = pixels, convert

    @cached_property
    def converted(self) -> object:
        return self._convert(self.pixels)


class _Clip:
    """A clip whose frames are coming in."""

    def __init__(self, selection: Selection, timeline: Timeline, recipe: Recipe, decoder: str):
        self.selection, self._times, self._decoder = selection, timeline.ms, decoder
        self._wanted = set(selection.wanted.tolist())
        self._encoder = Encoder(recipe.crf) if recipe.mp4 else None
        self._pictures: dict[int, object] = {}
        self._missing: list[int] = []

    def add(self, position: int, picture: _Picture | None) -> None:
        if picture is None:
            self._missing.append(position)
        if self._missing:
            return
        if self._encoder is None or position == self.selection.middle:
            self._pictures[position] = picture.converted
        if self._encoder is not None and position in self._wanted:
            self._encoder.write(picture.pixels, int(self._times[position] - self._times[self.selection.wanted[0]]))

    def finish(self) -> Clip | Failure:
        if self._missing:
            self.discard()
            first = self._times[self._missing[0]]
            message = f"{len(self._missing)} of the clip's frames cannot be decoded, the first at {first} ms"
            return Failure(self.selection.clip_id, "corrupt", message, self._decoder)
        chosen = self.selection
        return Clip(
            chosen.clip_id,
            frames=self._encoder.close() if self._encoder else [self._pictures[i] for i in chosen.wanted.tolist()],
            frame_ms=self._times[chosen.wanted].tolist(),
            middle=self._pictures[chosen.middle],
            middle_ms=int(self._times[chosen.middle]),
            duration_ms=chosen.duration_ms,
            decoder=self._decoder,
            policy=chosen.policy,
        )

    def discard(self) -> None:
        if self._encoder is not None:
            self._encoder.discard()


def _scaled(scaler: VideoReformatter, frame: av.VideoFrame, short_side: int, timeline: Timeline) -> np.ndarray:
    """A decoded frame as it is shown: uint8 [H, W, 3] RGB; VideoError where damage left it without a sensible format.

    `scaler`: one for a file's frames, it keeps its tables.
    """
    turns = frame.rotation // 90 % 4
    if timeline.sideways and not turns:  # the decoder has turned it
        height, width = target_size(frame.height, frame.width, timeline.pixel_aspect, short_side)
    else:
        width, height = target_size(frame.width, frame.height, timeline.pixel_aspect, short_side)
    try:
        scaled = scaler.reformat(frame, width=width, height=height, format="rgb24", interpolation=_SCALER, threads=1)
    except av.error.FFmpegError:
        raise VideoError("corrupt", "a frame that cannot be converted to RGB") from None
    return np.ascontiguousarray(np.rot90(scaled.to_ndarray(), turns))


def target_size(width: int, height: int, pixel_aspect: Fraction | None, short_side: int) -> tuple[int, int]:
    """Stored size of a frame: square pixels, short side at most `short_side`, both sides even."""
    shown_width = width * (pixel_aspect or 1)
    scale = min(1, Fraction(short_side) / min(shown_width, height))
    return tuple(max(2, min(round(side * scale / 2), int(side) // 2) * 2) for side in (shown_width, height))
