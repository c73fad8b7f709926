"""Frames of a video by timestamp: the clips of one file from one forward pass.

Time is in integer milliseconds, and time 0 is the file's first frame that can be shown. A file's timestamps are read
first, without decoding, so the wanted frames are known exactly before the first one is decoded:

- at time t the frame being shown is the last one whose timestamp is at most t;
- a clip [start, end) shows only frames whose timestamps lie inside it, so where the frame being shown began before
  the clip, the clip's first own frame stands for it;
- a clip that reaches beyond its video ends with it.

Decoding starts at the keyframe before a wanted frame, passes over whole stretches that no clip needs, and leaves out
frames that are neither wanted nor referred to by others. PyAV decodes; a file that it gets no clip from is given to
decord (an older FFmpeg) once, but not clips of a half damaged file: decord does not tell damage.
PyAV comes first because decord returns wrong frames when it seeks in MPEG-TS, AVI, HEVC and mp4 files with an edit
list, and cannot leave out frames that no clip needs.

Nothing here limits time: native decoders can hang, so callers run this in a process that they can kill.
"""

import os
import stat
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import Interpolation

# Bit-exact flags: the same pixels on every CPU, whatever vector instructions it has.
_SCALER = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
# Codecs whose decoder takes the order to skip unreferenced frames packet by packet.
_SKIPPING_CODECS = {"h264", "hevc"}
# Containers in which decord finds the frames that it counted.
_INDEXED_CONTAINERS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}
_NO_PTS = -(2**63)

MAX_PIXELS = 8192 * 8192  # of a frame
MAX_FRAMES = 10_000_000
MAX_HOURS = 100

av.logging.set_level(None)


class VideoError(Exception):
    """A whole file that cannot give frames; `kind` is one word for the ledger."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


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


def check_file(path: str) -> None:
    """VideoError for what would be no video whatever its bytes: a missing or empty file, a folder, a pipe."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise VideoError("missing_file", "no such file") from None
    except PermissionError:
        raise VideoError("no_permission", "no permission to read this file") from None
    if not stat.S_ISREG(status.st_mode):
        raise VideoError("not_a_file", "a folder, pipe or device, not a file")
    if status.st_size == 0:
        raise VideoError("empty_file", "the file has no bytes")


@dataclass(frozen=True)
class Timeline:
    """What a file's packets say, without decoding any.

    `packet_pts` and `is_key` are in packet order; `packet_of` gives the packet of each frame in the order of showing,
    and `ms` its timestamp. `exact`: the decoder's output can be recognised by its pts; otherwise (AVI, raw streams)
    the k-th frame that comes out is the k-th on the timeline.
    """

    packet_pts: np.ndarray
    is_key: np.ndarray
    packet_of: np.ndarray
    ms: np.ndarray
    end_ms: int
    exact: bool
    container: str
    pixel_aspect: Fraction | None


def scan(path: str, progress: Callable[[str | None], None] = lambda clip_id: None) -> Timeline:
    """Read a file's timestamps."""
    pts, dts, duration = array("q"), array("q"), array("q")
    key, shown = bytearray(), bytearray()
    with _open(path) as container:
        stream = _video_stream(container)
        try:
            for packet in container.demux(stream):
                if packet.size == 0 and packet.dts is None:  # the demuxer's end mark
                    break
                pts.append(_NO_PTS if packet.pts is None else packet.pts)
                dts.append(_NO_PTS if packet.dts is None else packet.dts)
                duration.append(packet.duration or 0)
                key.append(packet.is_keyframe)
                shown.append(packet.size > 0 and not packet.is_discard)
                if len(pts) % 1000 == 0:
                    progress(None)
                if len(pts) > MAX_FRAMES:
                    raise VideoError("too_large", f"more than {MAX_FRAMES} frames")
        except av.error.InvalidDataError:
            pass  # a cut file: what came before is whole
        pts, dts, duration = (np.frombuffer(a, np.int64) for a in (pts, dts, duration))
        packets = (pts, dts, duration, np.frombuffer(key, bool), np.frombuffer(shown, bool))
        return _timeline(*packets, stream.time_base, container.format.name, stream.sample_aspect_ratio)


def _timeline(pts, dts, duration, key, shown, time_base: Fraction, container: str, pixel_aspect) -> Timeline:
    # Nothing before the first keyframe can be shown, nor what is shown before it: those frames refer to an older one.
    first_key = int(key.argmax()) if key.any() else 0
    shown = shown & (np.arange(len(pts)) >= first_key)
    if key.any() and pts[first_key] != _NO_PTS:
        shown &= (pts >= pts[first_key]) | (pts == _NO_PTS)
    packets = np.flatnonzero(shown)
    if not len(packets):
        raise VideoError("no_frames", "the file holds no frame that can be shown")

    when = pts[packets]
    exact = container != "avi" and (when != _NO_PTS).all() and len(np.unique(when)) == len(when)
    if not exact:
        when = dts[packets] if (dts[packets] != _NO_PTS).all() else np.cumsum(duration[packets])
    if len(when) > 1 and when.max() == when.min():
        raise VideoError("no_timestamps", "the file says nothing of when its frames are shown")
    order = np.argsort(when, kind="stable")
    ms = _milliseconds(when[order] - when.min(), time_base)
    last = _milliseconds(duration[packets[order[-1:]]], time_base)[0]
    step = int(np.median(np.diff(ms))) if len(ms) > 1 else 1
    end_ms = int(ms[-1]) + max(int(last) or step, 1)
    if end_ms > MAX_HOURS * 3_600_000:
        raise VideoError("too_large", f"timestamps span {end_ms / 3_600_000:.0f} hours, at most {MAX_HOURS} are read")
    return Timeline(pts, key, packets[order], ms, end_ms, bool(exact), container, pixel_aspect)


def _milliseconds(ticks: np.ndarray, time_base: Fraction) -> np.ndarray:
    """Ticks of a time base -> the nearest integer milliseconds, without floating point."""
    scale = time_base * 1000
    whole, rest = np.divmod(ticks, scale.denominator)
    return whole * scale.numerator + (rest * scale.numerator * 2 + scale.denominator) // (2 * scale.denominator)


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
    for position, frame in _FRAMES[decoder](path, timeline, wanted, lambda: progress(current)):
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


# Decoders: (path, timeline, wanted positions on the timeline ascending, tick) -> (position, frame or None) for each of
# them, in that order; None where the frame cannot be decoded. `tick` is called once a decoded frame.


def _pyav_frames(path: str, timeline: Timeline, wanted: np.ndarray, tick) -> Iterator[tuple[int, av.VideoFrame | None]]:
    due = iter(wanted.tolist())
    expected = next(due, None)
    with _open(path) as container:
        for position, frame in _pyav_decoded(container, timeline, wanted):
            tick()
            while expected is not None and expected < position:
                yield expected, None
                expected = next(due, None)
            if expected == position:
                yield position, frame
                expected = next(due, None)
            if expected is None:
                return
    yield expected, None
    for position in due:
        yield position, None


def _pyav_decoded(container, timeline: Timeline, wanted: np.ndarray) -> Iterator[tuple[int, av.VideoFrame]]:
    """Position and frame of all that comes out of the decoder; of frames that nobody wants, position -1."""
    plan = _decode_plan(timeline, wanted)
    frames = _decode(container, timeline, plan)
    if not timeline.exact:
        yield from enumerate(frames)
        return
    position_of = dict(zip(timeline.packet_pts[timeline.packet_of[wanted]].tolist(), wanted.tolist()))
    for frame in frames:
        yield position_of.get(frame.pts, -1), frame


_UNUSED, _REFERRED, _WANTED = 0, 1, 2


def _decode_plan(timeline: Timeline, wanted: np.ndarray) -> np.ndarray:
    """For each packet: nothing needs it, others may refer to it, or its own frame is wanted."""
    if not timeline.exact:
        return np.full(len(timeline.packet_pts), _WANTED, np.uint8)
    plan = np.full(len(timeline.packet_pts), _UNUSED, np.uint8)
    pts, packets = timeline.packet_pts, timeline.packet_of[wanted]
    keys = np.flatnonzero(timeline.is_key)
    for packet in packets:
        key = int(np.searchsorted(keys, packet, side="right")) - 1
        while key > 0 and pts[packet] < pts[keys[key]]:  # shown before its keyframe: it also refers to the one before
            key -= 1
        plan[keys[key] if key >= 0 else 0 : packet + 1] = _REFERRED
    plan[packets] = _WANTED
    return plan


def _decode(container, timeline: Timeline, plan: np.ndarray) -> Iterator[av.VideoFrame]:
    """Decode the planned packets. What follows damage, up to the next keyframe, does not come out; without exact
    timestamps nothing comes out after damage, since frames can then not be counted."""
    stream = _video_stream(container)
    decoder = stream.codec_context
    decoder.thread_count = 1
    skips = timeline.exact and decoder.name in _SKIPPING_CODECS
    last = int(np.flatnonzero(plan)[-1])
    running = damaged = False  # running: the decoder may hold frames back
    for number, packet in enumerate(container.demux(stream)):
        if number > last:
            break
        if plan[number] == _UNUSED or (damaged and not timeline.is_key[number]):
            if running:
                yield from _drain(decoder)
            running = False
            continue
        if not running:
            first_pts = packet.pts
        running, damaged = True, False
        if skips:
            decoder.skip_frame = "DEFAULT" if plan[number] == _WANTED else "NONREF"
        try:
            frames = decoder.decode(packet)
        except av.error.InvalidDataError:
            frames, damaged = _drain(decoder), True
        for frame in frames:
            if timeline.exact and frame.pts is not None and frame.pts < first_pts:
                continue  # leads a keyframe that decoding started at: its references were never read
            if frame.is_corrupt:
                damaged = True
                decoder.flush_buffers()
                break
            yield frame
        if damaged:
            running = False
            if not timeline.exact:
                return
    if running:
        yield from _drain(decoder)


def _drain(decoder) -> list[av.VideoFrame]:
    """The frames that the decoder still holds back; it can be used again afterwards."""
    try:
        frames = decoder.decode(None)
    except av.error.InvalidDataError:
        frames = []
    decoder.flush_buffers()
    return [frame for frame in frames if not frame.is_corrupt]


def _decord_frames(path: str, timeline: Timeline, wanted: np.ndarray, tick) -> Iterator[tuple[int, av.VideoFrame | None]]:
    import decord  # only where it is needed: it loads a second FFmpeg

    decord.logging.set_level(decord.logging.QUIET)
    due = wanted.tolist()
    # Decord counts frames instead of reading their timestamps. It miscounts in other containers, and wherever it seeks
    # (seen with HEVC and with variable frame rates), so every frame is read.
    if timeline.exact and timeline.container in _INDEXED_CONTAINERS:
        try:
            reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
            seen = reader.get_frame_timestamp(range(len(reader)))[:, 0] * 1000
            same = len(seen) == len(timeline.ms) and np.abs(seen - timeline.ms).max() <= 1
            for position in range(due[-1] + 1 if same else 0):
                frame = reader.next()
                tick()
                if position == due[0]:
                    yield due.pop(0), av.VideoFrame.from_ndarray(frame.asnumpy(), format="rgb24")
        except (decord.DECORDError, AssertionError, StopIteration):
            pass  # the rest cannot be decoded by decord either
    for position in due:
        yield position, None


_FRAMES = {"pyav": _pyav_frames, "decord": _decord_frames}


def _open(path: str):
    """The container, or VideoError; the file: prefix keeps a colon in a name from being read as a protocol."""
    try:
        return av.open(f"file:{path}", metadata_errors="ignore")
    except av.error.InvalidDataError:
        raise VideoError("not_a_video", "no known video format, or damaged beyond recognition") from None


def _video_stream(container):
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise VideoError("no_video_stream", "the file holds no video stream")
    stream = streams[0]
    if stream.codec_context is None:
        raise VideoError("unknown_codec", "no decoder for this video codec")
    if not 0 < stream.width * stream.height <= MAX_PIXELS:
        raise VideoError("too_large", f"frames of {stream.width}x{stream.height}, at most {MAX_PIXELS} pixels are read")
    return stream


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
