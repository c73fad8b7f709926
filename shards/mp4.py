"""MP4 members: all frames of a sample as one H.264 video, written by ffmpeg.

One thread, bit-exact flags, a time base of 1 ms and no B-frames: equal frames give equal bytes (of one ffmpeg), packets
lie in the order of showing, and videos of one size can be joined without another encoding. ffmpeg writes to files that
have no name, so nothing is left behind whatever dies; what it says goes to such a file too, so no pipe ever fills up.
"""

import io
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from fractions import Fraction

import av
import ffmpeg
import numpy as np

_PRESET, _GOP = "veryfast", 50
_MUX = {"format": "mp4", "movflags": "+faststart", "video_track_timescale": 1000, "map_metadata": -1, "fflags": "+bitexact"}
_ENCODE = {
    "vcodec": "libx264", "preset": _PRESET, "g": _GOP, "bf": 0, "pix_fmt": "yuv420p", "threads": 1,
    "fps_mode": "passthrough", "enc_time_base": "1:1000", "flags:v": "+bitexact",
    "sws_flags": "bicubic+accurate_rnd+bitexact",
}  # fmt: skip


class EncoderError(Exception):
    """ffmpeg failed, or passed its deadline: nothing that the frames could be blamed for."""


class Encoder:
    """Frames in, one MP4 out. `deadline` seconds after its start ffmpeg is killed (None: somebody else watches)."""

    def __init__(self, crf: int, deadline: float | None = None):
        self._crf, self._deadline = crf, deadline
        self._process = self._pipe = self._timer = None
        self._late, self._last_ms = False, -1

    def write(self, frame: np.ndarray, ms: int) -> None:
        """A frame, uint8 [H, W, 3] RGB, and when it is shown, ascending; at the earliest 1 ms after the frame before. The
        first one has even sides; others are fitted into its size, with black borders."""
        if self._process is None:
            self._start(frame.shape[1], frame.shape[0])
        picture = av.VideoFrame.from_ndarray(_fitted(frame, self._stream.width, self._stream.height), format="rgb24")
        self._last_ms = max(self._last_ms + 1, ms)
        picture.pts, picture.time_base = self._last_ms, Fraction(1, 1000)
        try:
            self._pipe.mux(self._stream.encode(picture))
        except (OSError, av.error.FFmpegError) as error:
            raise self._failed(str(error)) from None

    def close(self) -> bytes:
        """The whole file."""
        try:
            self._pipe.close()
            self._process.stdin.close()
        except (OSError, av.error.FFmpegError) as error:
            raise self._failed(str(error)) from None
        if self._process.wait():
            raise self._failed()
        self._stop_timer()
        with self._output, self._errors:
            self._output.seek(0)
            return self._output.read()

    def discard(self) -> None:
        """Give up, at any time; what was written is gone."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            self._process.wait()
            self._stop_timer()
            self._output.close()
            self._errors.close()

    def _start(self, width: int, height: int) -> None:
        self._output, self._errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        source = ffmpeg.input("pipe:", format="nut")
        self._process = _spawn(source.output(_path(self._output), crf=self._crf, **_ENCODE, **_MUX), self._output, self._errors)
        if self._deadline is not None:
            self._timer = threading.Timer(self._deadline, self._kill_late)
            self._timer.start()
        self._pipe = av.open(self._process.stdin, "w", format="nut")  # raw frames with their timestamps
        self._stream = self._pipe.add_stream("rawvideo")
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "rgb24"
        self._stream.time_base = self._stream.codec_context.time_base = Fraction(1, 1000)

    def _kill_late(self) -> None:
        self._late = True
        self._process.kill()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _failed(self, reason: str = "") -> EncoderError:
        self._process.kill()  # ends a broken one that still runs
        error = _error(self._process.wait(), self._errors, "killed at its deadline" if self._late else reason)
        self._stop_timer()
        return error


def join(parts: list[bytes], offsets_ms: list[int], crf: int, deadline: float) -> bytes:
    """Members one after the other: the first frame of part i is shown at `offsets_ms[i]`.

    Copied where all parts have one size and encoding; otherwise encoded anew, each fitted into the first one's size
    with black borders. EncoderError after `deadline` seconds.
    """
    if len({_encoding(part) for part in parts}) == 1:
        return _copied(parts, offsets_ms, deadline)
    encoder = Encoder(crf, deadline)
    try:
        for part, offset in zip(parts, offsets_ms):
            for frame, ms in _decoded(part):
                encoder.write(frame, offset + ms)
        return encoder.close()
    finally:
        encoder.discard()


def describe(data: bytes) -> tuple[int, int, list[int]]:
    """(width, height, timestamps in ms in the order of showing) of a member, without decoding; ValueError if it is none."""
    try:
        with av.open(io.BytesIO(data)) as container:
            stream = container.streams.video[0]
            times = [packet.pts * packet.time_base * 1000 for packet in container.demux(stream) if packet.size]
            return stream.width, stream.height, sorted(map(round, times))
    except (av.error.FFmpegError, IndexError, TypeError) as error:
        raise ValueError(f"not a readable MP4: {error}") from None


def _copied(parts: list[bytes], offsets_ms: list[int], deadline: float) -> bytes:
    files = [tempfile.TemporaryFile() for _ in parts]
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            for file, part in zip(files, parts):
                file.write(part)
                file.flush()
            lines = ["ffconcat version 1.0"]
            for number, file in enumerate(files):
                lines.append(f"file 'file:{_path(file)}'")
                if number + 1 < len(files):
                    lines.append(f"duration {offsets_ms[number + 1] - offsets_ms[number]}ms")
            source = ffmpeg.input("pipe:", format="concat", safe=0, protocol_whitelist="file,pipe")
            process = _spawn(source.output(_path(output), vcodec="copy", **_MUX), output, errors, *files)
            try:
                process.communicate("\n".join(lines).encode(), timeout=deadline)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                raise _error(process.returncode, errors, "killed at its deadline") from None
            if process.returncode:
                raise _error(process.returncode, errors)
            output.seek(0)
            return output.read()
        finally:
            for file in files:
                file.close()


def _spawn(graph, output, errors, *more) -> subprocess.Popen:
    command = ffmpeg.compile(graph.global_args("-v", "error", "-filter_threads", "1").overwrite_output())
    descriptors = [file.fileno() for file in (output, *more)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors, pass_fds=descriptors)


def _path(file) -> str:
    """An open file without a name, as a process that inherits it can open it."""
    return f"/proc/self/fd/{file.fileno()}"


def _error(status: int, errors, reason: str = "") -> EncoderError:
    """With ffmpeg's last words, or else the reason."""
    errors.seek(0)
    said = errors.read().decode(errors="replace").split("\n")
    words = " ".join(" ".join(said[-5:]).split())
    return EncoderError(f"ffmpeg ended with {status}: {words or reason or 'it said nothing'}")


def _encoding(data: bytes) -> tuple:
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        return stream.width, stream.height, bytes(stream.codec_context.extradata)


def _decoded(data: bytes) -> Iterator[tuple[np.ndarray, int]]:
    with av.open(io.BytesIO(data)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24"), round(frame.pts * frame.time_base * 1000)


def _fitted(frame: np.ndarray, width: int, height: int) -> np.ndarray:
    """The frame as large as it fits into the size, in the middle of black."""
    if frame.shape[1::-1] == (width, height):
        return frame
    scale = min(width / frame.shape[1], height / frame.shape[0])
    inner = [max(2, round(side * scale / 2) * 2) for side in (frame.shape[1], frame.shape[0])]
    small = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(*inner, interpolation="BICUBIC").to_ndarray()
    canvas = np.zeros((height, width, 3), np.uint8)
    top, left = (height - inner[1]) // 2, (width - inner[0]) // 2
    canvas[top : top + inner[1], left : left + inner[0]] = small
    return canvas
