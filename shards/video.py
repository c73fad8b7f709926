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
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import Interpolation

from shards.decoders import DECODERS
from shards.timeline import Timeline, VideoError, check_file, scan

__all__ = ["Clip", "Failure", "Request", "Timeline", "VideoError", "check_file", "read_clips", "read_frames", "scan", "target_size"]

# Bit-exact flags: the same pixels on every CPU, whatever vector instructions it has.
_SCALER = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT


@dataclass(frozen=True)
class Request:
    """A clip to read. None: from the video's first frame, to its end."""

    clip_id: str
    start_ms: int | None
    end_ms: int | None


@dataclass(frozen=True)
class Clip:
    """A clip's frames, evenly spread, and its middle frame, each as `convert` made it (default: uint8 [H, W, 3] RGB).

    `frame_ms` and `middle_ms` are the frames' timestamps in their video; `duration_ms` is the clip's own.
    """

    clip_id: str
    frames: list
    frame_ms: list[int]
    middle: object
    middle_ms: int
    duration_ms: int
    decoder: str


@dataclass(frozen=True)
class Failure:
    """A clip that gives no frames, and why; `decoder` is None where none was asked."""

    clip_id: str
    kind: str
    message: str
    decoder: str | None = None


def read_clips(
    path: str,
    requests: Iterable[Request],
    per_clip: int,
    short_side: int,
    convert: Callable[[np.ndarray], object] = lambda frame: frame,
    progress: Callable[[str | None], None] = lambda clip_id: None,
) -> Iterator[Clip | Failure]:
    """One result per request, in the order in which their last frames come.

    Frames are scaled to `short_side` pixels (never up, sides even, rotation and pixel shape applied). `progress` is
    called with the clip that is being waited for, at least once a decoded frame. VideoError where the file as a
    whole is unusable; OSError where reading it failed.
    """
    check_file(path)
    timeline = scan(path, progress)
    selections = []
    for request in requests:
        selected = _select(timeline, request, per_clip)
        if isinstance(selected, Failure):
            yield selected
        else:
            selections.append(selected)
    if not selections:
        return
    results = _read("pyav", path, timeline, selections, short_side, convert, progress)
    failed, decoded = [], 0
    for result in results:
        if isinstance(result, Clip):
            decoded += 1
            yield result
        else:
            failed.append(result)
    if not decoded:
        failed = _read("decord", path, timeline, selections, short_side, convert, progress)
    yield from failed


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
    found = {}
    for position, frame in DECODERS["pyav"](file, timeline, np.unique(positions), lambda: None):
        if frame is None:
            raise VideoError("corrupt", f"frame {position} cannot be decoded")
        found[position] = _scaled(frame, max(frame.width, frame.height), timeline.pixel_aspect)
    return [found[position] for position in positions]


@dataclass(frozen=True)
class _Selection:
    """The frames of one clip, as positions on the timeline; the middle frame is the last of `wanted`."""

    clip_id: str
    wanted: np.ndarray
    duration_ms: int


def _select(timeline: Timeline, request: Request, per_clip: int) -> _Selection | Failure:
    start = request.start_ms or 0
    end = timeline.end_ms if request.end_ms is None else min(request.end_ms, timeline.end_ms)
    if start >= timeline.end_ms:
        message = f"the clip starts at {start} ms, the video ends at {timeline.end_ms} ms"
        return Failure(request.clip_id, "start_after_end_of_video", message)
    first = int(np.searchsorted(timeline.ms, start))
    if first == len(timeline.ms) or timeline.ms[first] >= end:
        return Failure(request.clip_id, "no_frames", f"the video has no frame between {start} and {end} ms")
    spread = (2 * np.arange(per_clip) + 1) / (2 * per_clip)
    times = start + (end - start) * np.append(spread, 0.5)
    wanted = np.searchsorted(timeline.ms, times, side="right") - 1
    return _Selection(request.clip_id, np.maximum(wanted, first), end - start)


def _read(
    decoder: str, path: str, timeline: Timeline, selections: list[_Selection], short_side: int, convert, progress
) -> Iterator[Clip | Failure]:
    """Decode what the selections want, and hand out each clip when its last frame has come."""
    last_of = defaultdict(list)
    for selection in selections:
        last_of[int(selection.wanted.max())].append(selection)
    uses = Counter(i for selection in selections for i in set(selection.wanted.tolist()))
    wanted = np.array(sorted(uses), np.int64)
    upcoming = sorted(last_of)
    waiting_for = iter(last_of[position][0].clip_id for position in upcoming)
    current = next(waiting_for, None)
    progress(current)

    stored = {}
    for position, frame in DECODERS[decoder](path, timeline, wanted, lambda: progress(current)):
        stored[position] = None if frame is None else convert(_scaled(frame, short_side, timeline.pixel_aspect))
        for selection in last_of.get(position, ()):
            yield _finish(selection, stored, timeline, decoder)
            for used in set(selection.wanted.tolist()):
                uses[used] -= 1
                if not uses[used]:
                    del stored[used]
        if position in last_of:
            current = next(waiting_for, current)
            progress(current)


def _finish(selection: _Selection, stored: dict, timeline: Timeline, decoder: str) -> Clip | Failure:
    wanted, times = selection.wanted.tolist(), timeline.ms[selection.wanted].tolist()
    missing = [time for i, time in zip(wanted, times) if stored[i] is None]
    if missing:
        message = f"{len(set(missing))} of the clip's frames cannot be decoded, the first at {missing[0]} ms"
        return Failure(selection.clip_id, "corrupt", message, decoder)
    frames = [stored[i] for i in wanted]
    return Clip(selection.clip_id, frames[:-1], times[:-1], frames[-1], times[-1], selection.duration_ms, decoder)


def _scaled(frame: av.VideoFrame, short_side: int, pixel_aspect: Fraction | None) -> np.ndarray:
    """A decoded frame as it is shown: uint8 [H, W, 3] RGB."""
    turns = frame.rotation // 90 % 4
    width, height = target_size(frame.width, frame.height, pixel_aspect, short_side)
    scaled = frame.reformat(width=width, height=height, format="rgb24", interpolation=_SCALER)
    return np.ascontiguousarray(np.rot90(scaled.to_ndarray(), turns))


def target_size(width: int, height: int, pixel_aspect: Fraction | None, short_side: int) -> tuple[int, int]:
    """Stored size of a frame: square pixels, short side at most `short_side`, both sides even."""
    shown_width = width * (pixel_aspect or 1)
    scale = min(1, Fraction(short_side) / min(shown_width, height))
    return tuple(max(2, min(round(side * scale / 2), int(side) // 2) * 2) for side in (shown_width, height))
