"""The parent's side of `decode_child`: clips of a video, whatever the decoder does.

A child lives as long as its worker process and takes one video after another. No sign of life for
`frames.timeout_seconds`, or a crash, costs the clip in progress; the rest of the video goes on in a new child. A video
that costs two children is quarantined: its remaining clips fail without another try. The next decoders get what was
lost; where other clips of the video were read, those of them that tell damage.
"""

import atexit
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from gex_pipeline.config import FramesConfig
from gex_pipeline.decode_child import pack, unpack
from gex_pipeline.errors import TRANSIENT_ERRNOS, Transient
from shards.decoders import TELL_DAMAGE

_START_SECONDS = 120  # for a new child on a machine that is very busy
_KILL_SECONDS = 5
_MAX_DEATHS = 2
_LOST_WITH_CHILD = ("timeout", "crash", "quarantined")
_READ_SIZE = 1 << 20


@dataclass(frozen=True)
class DecodedClip:
    """A clip's frames (JPEG files, or one MP4) and its middle frame as JPEG; times in ms of the video, sides in pixels."""

    clip_id: str
    frames: list[bytes] | bytes
    frame_ms: list[int]
    middle: bytes
    middle_ms: int
    duration_ms: int
    width: int
    height: int
    decoder: str
    policy: str


@dataclass(frozen=True)
class FailedClip:
    clip_id: str
    kind: str
    message: str
    decoder: str | None = None


class ChildDied(Exception):
    """`kind` is timeout, crash, or what says nothing about the video: killed, by a SIGKILL that was not ours, or
    stalled, while it waited for storage."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


def read_clips(
    path: str, requests: list[tuple[str, int | None, int | None]], config: FramesConfig
) -> Iterator[DecodedClip | FailedClip]:
    """One result per request (clip_id, start_ms, end_ms) of a local video file, in the order in which they finish.

    Raises Transient where reading failed for a reason that is not the video's.
    """
    lost, decoded = [], False
    for result in _read_clips(path, requests, config):
        decoded |= isinstance(result, DecodedClip)
        if isinstance(result, FailedClip) and result.kind in _LOST_WITH_CHILD:
            lost.append(result)
        else:
            yield result
    # Of a file that is half damaged, those that do not tell damage would not say which half.
    others = [name for name in config.decoders[1:] if not decoded or name in TELL_DAMAGE]
    if not lost or not others:
        yield from lost
        return
    reasons = {result.clip_id: result for result in lost}
    again = [request for request in requests if request[0] in reasons]
    for result in read_clips(path, again, replace(config, decoders=others)):
        yield reasons[result.clip_id] if isinstance(result, FailedClip) else result


def _read_clips(path: str, requests: list[tuple], config: FramesConfig) -> Iterator[DecodedClip | FailedClip]:
    remaining = {request[0]: request for request in requests}
    deaths, spared = 0, set()
    while remaining:
        awaited, child = None, _child()
        try:
            for head, body in child.run(_job(path, list(remaining.values()), config), config.timeout_seconds):
                if head["type"] == "waiting":
                    awaited = head["clip_id"] or awaited
                elif head["type"] == "video_error":
                    yield from (FailedClip(clip_id, head["kind"], head["message"]) for clip_id in remaining)
                    return
                elif head["type"] == "encoder_error":
                    raise Transient(f"{path}: {head['message']}")
                elif head["type"] == "os_error":
                    yield from _os_error(path, head, remaining)
                    return
                else:
                    del remaining[head["clip_id"]]
                    yield _result(head, body)
            assert not remaining, f"{path}: the decoder forgot {list(remaining)}"
        except ChildDied as death:
            if death.kind == "stalled":
                raise Transient(f"{path}: {death}") from death
            blamed = awaited if awaited in remaining else next(iter(remaining))
            if death.kind == "killed" and blamed not in spared:
                spared.add(blamed)  # the first time it may have been anybody; the second time it is the clip's memory
                continue
            deaths += 1
            del remaining[blamed]
            yield FailedClip(blamed, "timeout" if death.kind == "timeout" else "crash", str(death))
            if deaths == _MAX_DEATHS:
                message = f"not tried: this video cost {deaths} decoder processes, the last: {death}"
                yield from (FailedClip(clip_id, "quarantined", message) for clip_id in remaining)
                return


def _job(path: str, requests: list, config: FramesConfig) -> bytes:
    same = ("policy", "per_clip", "fps", "max_per_clip", "short_side", "crf", "decoders")
    recipe = {name: getattr(config, name) for name in same} | {"mp4": config.format == "mp4"}
    limits = {"megapixels": config.max_megapixels, "hours": config.max_hours, "frames": config.max_frames}
    return pack({"path": path, "requests": requests, "quality": config.quality, "recipe": recipe, "limits": limits})


def _os_error(path: str, head: dict, remaining) -> Iterator[FailedClip]:
    if head["errno"] in TRANSIENT_ERRNOS:
        raise Transient(f"{path}: {head['message']}")
    return (FailedClip(clip_id, "unreadable", head["message"]) for clip_id in remaining)


def _result(head: dict, body: bytes) -> DecodedClip | FailedClip:
    fields = {name: value for name, value in head.items() if name != "type"}
    if head["type"] == "failure":
        return FailedClip(**fields)
    ends = [sum(fields["sizes"][: i + 1]) for i in range(len(fields["sizes"]))]
    files = [body[end - size : end] for end, size in zip(ends, fields.pop("sizes"))]
    shown = fields.pop("frames")
    frames = files[0] if shown is None else [files[i] for i in shown]
    return DecodedClip(frames=frames, middle=files[fields.pop("middle")], **fields)


class _Child:
    """A running decode_child. After ChildDied it is gone. Transient where it does not start."""

    def __init__(self):
        root = str(Path(__file__).parents[1])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gex_pipeline.decode_child", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # its own process group, to be killed whole
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            bufsize=0,
        )
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        self._buffer = bytearray()
        try:
            self._next(_START_SECONDS)  # ready
        except ChildDied as death:  # no video has been named to it yet
            self.kill()
            why = "python -c 'import gex_pipeline.decode_child' may say why"
            raise Transient(f"no decoder process can be started: {death}; {why}") from None

    def alive(self) -> bool:
        return self._process.poll() is None

    def run(self, job: bytes, timeout: float) -> Iterator[tuple[dict, bytes]]:
        """Messages of one job, until it is done."""
        finished = False
        try:
            try:
                self._process.stdin.write(job)
            except BrokenPipeError:
                raise self._died() from None
            while True:
                head, body = self._next(timeout)
                if head["type"] == "done":
                    finished = True
                    return
                if head["type"] == "bug":
                    raise RuntimeError(f"decode_child: {head['message']}")
                finished = head["type"] in ("video_error", "os_error")
                yield head, body
        finally:
            if not finished:  # also when the caller gave up: the rest of the job must not reach the next one
                self.kill()

    def kill(self) -> None:
        """End it and its process group, and leave no zombie."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # not while it waits for storage that never answers
                self._process.wait(_KILL_SECONDS)
        self._selector.close()
        self._process.stdin.close()
        self._process.stdout.close()

    def _next(self, timeout: float) -> tuple[dict, bytes]:
        return unpack(lambda size: self._read(size, timeout))

    def _read(self, size: int, timeout: float) -> bytes:
        """Exactly `size` bytes; any byte that comes is a sign of life and starts the time-out anew."""
        while len(self._buffer) < size:
            if not self._selector.select(timeout):
                if _waits_for_storage(self._process.pid):
                    raise ChildDied("stalled", f"storage gave nothing for {timeout:g} s")
                raise ChildDied("timeout", f"no sign of life from the decoder for {timeout:g} s")
            data = os.read(self._process.stdout.fileno(), _READ_SIZE)
            if not data:
                raise self._died()
            self._buffer += data
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _died(self) -> ChildDied:
        status = self._process.wait()
        if status == -signal.SIGKILL:
            return ChildDied("killed", "the decoder process was killed (out of memory?)")
        name = signal.Signals(-status).name if status < 0 else f"exit code {status}"
        return ChildDied("crash", f"the decoder process died: {name}")


def _waits_for_storage(pid: int) -> bool:
    """Whether a process hangs in a read of a file: its state is then D (network file systems, FUSE, swap). A decoder
    that hangs on its own is running or asleep."""
    for thread in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(FileNotFoundError):
            if thread.read_text().rpartition(")")[2].split()[0] == "D":
                return True
    return False


_current: _Child | None = None


def _child() -> _Child:
    """This worker process's child; started at the first use and after each death."""
    global _current
    if _current is None or not _current.alive():
        close()
        _current = _Child()
    return _current


@atexit.register
def close() -> None:
    """End the child, if there is one."""
    global _current
    if _current is not None:
        _current.kill()
        _current = None
