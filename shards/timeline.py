"""What a video's packets say of its frames: read without decoding any.

Time is in integer milliseconds, and time 0 is the file's first frame that can be shown.
"""

import os
import stat
from array import array
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import BinaryIO

import av
import numpy as np

_NO_PTS = -(2**63)

av.logging.set_level(None)


@dataclass(frozen=True)
class Limits:
    """What is more is no video that anybody meant: VideoError of kind too_large."""

    megapixels: float = 67.2  # of a frame; 8192 x 8192
    hours: float = 100.0
    frames: int = 10_000_000


class VideoError(Exception):
    """A whole file that cannot give frames; `kind` is one word for the ledger."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


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
    size: tuple[int, int]  # width and height as coded, before any rotation
    pixel_aspect: Fraction | None = None  # of those pixels; None: they are square
    sideways: bool = False  # shown turned by a quarter; only asked of files whose pixels are not square


def scan(
    source: str | BinaryIO, progress: Callable[[str | None], None] = lambda clip_id: None, limits: Limits = Limits()
) -> Timeline:
    """Read a file's timestamps; VideoError where it has none, or is beyond the limits; OSError where it cannot be read."""
    try:
        return _scan(source, progress, limits, is_last=False)
    except _Unsure:
        return _scan(source, progress, limits, is_last=True)


class _Unsure(Exception):
    """FFmpeg says that it cannot read a file which can be read: bytes that are damaged, or a fault that has passed."""


def _scan(source: str | BinaryIO, progress: Callable[[str | None], None], limits: Limits, is_last: bool) -> Timeline:
    pts, dts, duration = array("q"), array("q"), array("q")
    key, shown = bytearray(), bytearray()
    with open_container(source, progress) as container:
        stream = video_stream(container)
        if not 0 < stream.width * stream.height <= limits.megapixels * 1e6:
            size = f"frames of {stream.width}x{stream.height} pixels"
            raise VideoError("too_large", f"{size}, at most {limits.megapixels:g} megapixels are read")
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
                if len(pts) > limits.frames:
                    raise VideoError("too_large", f"more than {limits.frames:,} frames")
        except av.error.FFmpegError as error:  # a cut file: what came before is whole
            if not is_last:
                _check_readable(source, error, progress)
        pts, dts, duration = (np.frombuffer(a, np.int64) for a in (pts, dts, duration))
        packets = (pts, dts, duration, np.frombuffer(key, bool), np.frombuffer(shown, bool))
        size, aspect = (stream.width, stream.height), stream.sample_aspect_ratio
        timeline = _timeline(*packets, stream.time_base, container.format.name, size)
        if aspect and aspect != 1:
            timeline = replace(timeline, pixel_aspect=aspect, sideways=_is_sideways(container, stream))
    if timeline.end_ms > limits.hours * 3_600_000:
        long = f"timestamps span {timeline.end_ms / 3_600_000:.1f} hours"
        raise VideoError("too_large", f"{long}, at most {limits.hours:g} are read")
    return timeline


def _timeline(pts, dts, duration, key, shown, time_base: Fraction, container: str, size) -> Timeline:
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
    return Timeline(pts, key, packets[order], ms, end_ms, bool(exact), container, size)


def _is_sideways(container, stream) -> bool:
    """Only a decoded frame tells. False where none can be decoded."""
    try:
        container.seek(0)
        return next(container.decode(stream)).rotation % 180 != 0
    except (av.error.FFmpegError, StopIteration):
        return False


def _milliseconds(ticks: np.ndarray, time_base: Fraction) -> np.ndarray:
    """Ticks of a time base -> the nearest integer milliseconds, without floating point."""
    scale = time_base * 1000
    whole, rest = np.divmod(ticks, scale.denominator)
    return whole * scale.numerator + (rest * scale.numerator * 2 + scale.denominator) // (2 * scale.denominator)


def open_container(source: str | BinaryIO, progress: Callable[[str | None], None] = lambda clip_id: None):
    """The container, or VideoError; OSError where the file cannot be read."""
    if isinstance(source, str):
        url = f"file:{source}"  # keeps a colon in a name from being read as a protocol
    else:
        url = source
        source.seek(0)
    for _ in range(2):  # once more where the fault may have passed
        try:
            return av.open(url, metadata_errors="ignore")
        except av.error.FFmpegError as error:
            with suppress(_Unsure):
                _check_readable(source, error, progress)
                break
    raise VideoError("not_a_video", "no known video format, or damaged beyond recognition")


def _check_readable(source: str | BinaryIO, error: av.error.FFmpegError, progress: Callable[[str | None], None]) -> None:
    """Of an error that may be the reading's: OSError where the file itself gives one, else _Unsure. FFmpeg says EIO,
    EAGAIN and their like of damaged bytes too."""
    if isinstance(source, str) and isinstance(error, OSError):
        with open(source, "rb", buffering=0) as file:
            while file.read(1 << 20):
                progress(None)
        raise _Unsure from None


def video_stream(container):
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise VideoError("no_video_stream", "the file holds no video stream")
    stream = streams[0]
    if stream.codec_context is None:
        raise VideoError("unknown_codec", "no decoder for this video codec")
    return stream
