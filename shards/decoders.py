"""The frames of a video that are wanted, by one of several decoders: the same frames from each.

A decoder is a function (path, timeline, wanted positions on the timeline ascending, tick) -> (position, frame or None)
for each of them, in that order; None where it cannot give the frame. `tick` is called once a decoded frame.

PyAV starts at the keyframe before a wanted frame, passes over whole stretches that no clip needs, and leaves out frames
that are neither wanted nor referred to by others.
"""

from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO

import av
import numpy as np

from shards.timeline import Timeline, open_container, video_stream

# Codecs whose decoder takes the order to skip unreferenced frames packet by packet.
_SKIPPING_CODECS = {"h264", "hevc"}
# Containers in which decord finds the frames that it counted.
_INDEXED_CONTAINERS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}


def _pyav_frames(
    path: str | BinaryIO, timeline: Timeline, wanted: np.ndarray, tick
) -> Iterator[tuple[int, av.VideoFrame | None]]:
    due = iter(wanted.tolist())
    expected = next(due, None)
    with open_container(path) as container:
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
    stream = video_stream(container)
    decoder = stream.codec_context
    decoder.thread_count = 1
    skips = timeline.exact and decoder.name in _SKIPPING_CODECS
    last = int(np.flatnonzero(plan)[-1])
    running = damaged = False  # running: the decoder may hold frames back
    # No packet beyond: there the file may be damaged. Up to there it was read once, so what fails now is the reading.
    for number, packet in enumerate(islice(container.demux(stream), last + 1)):
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
        except av.error.FFmpegError:
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
    except av.error.FFmpegError:
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


def _torchcodec_frames(path: str, timeline: Timeline, wanted: np.ndarray, tick) -> Iterator[tuple[int, av.VideoFrame | None]]:
    from torchcodec.decoders import VideoDecoder  # brings torch along

    due = wanted.tolist()
    try:
        reader = VideoDecoder(path, num_ffmpeg_threads=1, dimension_order="NHWC")
        first = reader.get_frame_at(0).pts_seconds if len(reader) == len(timeline.ms) else None
        while first is not None and due:
            frame = reader.get_frame_at(due[0])
            tick()
            if abs((frame.pts_seconds - first) * 1000 - timeline.ms[due[0]]) > 1:
                break
            yield due.pop(0), av.VideoFrame.from_ndarray(frame.data.numpy(), format="rgb24")
    except (RuntimeError, ValueError, IndexError):
        pass  # the rest cannot be decoded by torchcodec either
    for position in due:
        yield position, None


# Decoders that do not hand out what follows damage as if it were whole.
TELL_DAMAGE = {"pyav"}
DECODERS = {"pyav": _pyav_frames, "decord": _decord_frames, "torchcodec": _torchcodec_frames}
