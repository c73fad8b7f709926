"""Which frames of a video its clips want, known from the timeline before any is decoded."""

import heapq
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from shards.timeline import Limits, Timeline

# Clips of one video that are encoded at the same time: each is an ffmpeg of its own.
_MAX_OPEN_VIDEOS = 8


@dataclass(frozen=True)
class Request:
    """A clip to read. None: from the video's first frame, to its end."""

    clip_id: str
    start_ms: int | None
    end_ms: int | None


@dataclass(frozen=True)
class Recipe:
    """How clips become frames.

    `policy` uniform: `per_clip` frames at even midpoints (with `mp4`, every frame); fps: a frame every 1/fps s, each
    stored once; keyframe: the clip's key frames, or uniform where it has none. `max_per_clip` bounds the last two; a
    clip with more gets as many, evenly spread. `mp4`: one video a clip instead of pictures. `crf`: x264's quality.
    """

    policy: Literal["uniform", "fps", "keyframe"] = "uniform"
    per_clip: int = 8
    fps: float = 1.0
    max_per_clip: int = 64
    short_side: int = 256
    mp4: bool = False
    crf: int = 20
    decoders: tuple[str, ...] = ("pyav", "decord")
    limits: Limits = field(default_factory=Limits)

    @property
    def max_side(self) -> int:
        """Pixels; what x264 and JPEG encoders take."""
        return 16_384 if self.mp4 else 65_500


@dataclass(frozen=True)
class Failure:
    """A clip that gives no frames, and why; `decoder` is None where none was asked."""

    clip_id: str
    kind: str
    message: str
    decoder: str | None = None


@dataclass(frozen=True)
class Selection:
    """The frames of one clip, as positions on the timeline, ascending; `policy` is the one that chose them."""

    clip_id: str
    wanted: np.ndarray
    middle: int
    duration_ms: int
    policy: str

    @property
    def first(self) -> int:
        return min(int(self.wanted[0]), self.middle)

    @property
    def last(self) -> int:
        return max(int(self.wanted[-1]), self.middle)


def select(timeline: Timeline, request: Request, recipe: Recipe) -> Selection | Failure:
    start = request.start_ms or 0
    end = timeline.end_ms if request.end_ms is None else min(request.end_ms, timeline.end_ms)
    if start >= timeline.end_ms:
        message = f"the clip starts at {start} ms, the video ends at {timeline.end_ms} ms"
        return Failure(request.clip_id, "start_after_end_of_video", message)
    first, beyond = np.searchsorted(timeline.ms, [start, end])
    if first == beyond:
        return Failure(request.clip_id, "no_frames", f"the video has no frame between {start} and {end} ms")

    def shown(times) -> np.ndarray:
        return np.maximum(np.searchsorted(timeline.ms, times, side="right") - 1, first)

    policy, middle = recipe.policy, int(shown(start + (end - start) / 2))
    keys = first + np.flatnonzero(timeline.is_key[timeline.packet_of[first:beyond]])
    if policy == "keyframe" and len(keys):
        middle = int(keys[np.abs(timeline.ms[keys] - timeline.ms[middle]).argmin()])
        wanted = _thinned(keys, recipe.max_per_clip)
    elif policy == "fps":
        wanted = np.unique(shown(_ticks(start, end, recipe.fps)))
        wanted = wanted if recipe.mp4 else _thinned(wanted, recipe.max_per_clip)
    elif recipe.mp4:
        wanted, policy = np.arange(first, beyond), "uniform"
    else:
        wanted, policy = shown(start + (end - start) * _midpoints(recipe.per_clip)), "uniform"
    return Selection(request.clip_id, wanted, middle, end - start, policy)


def passes(selections: list[Selection], recipe: Recipe) -> list[list[Selection]]:
    """What one pass over the video can read: everything, but for videos of very many clips at a time."""
    if not recipe.mp4:
        return [selections] if selections else []
    done = []
    while selections:
        now, later, open_until = [], [], []
        for selection in sorted(selections, key=lambda item: item.first):
            while open_until and open_until[0] < selection.first:
                heapq.heappop(open_until)
            if len(open_until) < _MAX_OPEN_VIDEOS:
                heapq.heappush(open_until, selection.last)
                now.append(selection)
            else:
                later.append(selection)
        done.append(now)
        selections = later
    return done


def _midpoints(count: int) -> np.ndarray:
    return (2 * np.arange(count) + 1) / (2 * count)


def _ticks(start: int, end: int, fps: float) -> np.ndarray:
    """The middles of the clip's stretches of 1/fps s, in ms; of a clip shorter than half of one, its own middle."""
    step = 1000 / fps
    times = start + step * (np.arange(int((end - start) / step) + 1) + 0.5)
    times = times[times < end]
    return times if len(times) else np.array([(start + end) / 2])


def _thinned(positions: np.ndarray, most: int) -> np.ndarray:
    if len(positions) <= most:
        return positions
    return positions[(_midpoints(most) * len(positions)).astype(int)]
