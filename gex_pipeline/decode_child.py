"""The process that decodes: `python -m gex_pipeline.decode_child PARENT_PID`, one job after another on its pipes.

Native decoders crash, and hang where no signal handler or thread can stop them; so they run here, where the parent
(`decoder.py`) can kill them. A job is one video and its clips; finished clips go back as they come, as JPEG or MP4.

Both directions: 4 bytes length of a JSON head, 4 bytes length of a body, head, body. Heads that go back have a type:
`ready` once, then for each job any of `waiting` (a sign of life: the clip whose frames are awaited), `clip` (body: its
distinct files one after the other), `failure`, and one of `done`, `video_error`, `os_error`, `encoder_error`, `bug`.
"""

import ctypes
import json
import os
import signal
import struct
import sys
import time
import traceback

import simplejpeg

from shards import mp4, timeline, video

_HEAD = struct.Struct(">II")
_PR_SET_PDEATHSIG = 1
_SIGN_OF_LIFE_SECONDS = 0.5


def pack(head: dict, body: bytes = b"") -> bytes:
    """A message as it goes over the pipe."""
    encoded = json.dumps(head).encode()
    return _HEAD.pack(len(encoded), len(body)) + encoded + body


def unpack(read) -> tuple[dict, bytes]:
    """The next message; `read(n)` gives exactly n bytes or raises."""
    head_length, body_length = _HEAD.unpack(read(_HEAD.size))
    return json.loads(read(head_length)), read(body_length)


def main() -> None:
    _die_with_parent(int(sys.argv[1]))
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not end up between the messages
    jobs = sys.stdin.buffer

    def send(type: str, body: bytes = b"", **head) -> None:
        replies.write(pack({"type": type, **head}, body))
        replies.flush()

    def read(size: int) -> bytes:
        data = jobs.read(size)
        if len(data) < size:
            raise EOFError
        return data

    send("ready")
    while True:
        try:
            job, _ = unpack(read)
        except EOFError:  # the parent is gone, or is done with us
            return
        _run(job, send)


def _run(job: dict, send) -> None:
    try:
        requests = [video.Request(*request) for request in job["requests"]]
        jpeg = _jpeg_encoder(job["quality"])
        progress = _signs_of_life(send)
        recipe = video.Recipe(**job["recipe"], limits=timeline.Limits(**job["limits"]))
        for result in video.read_clips(job["path"], requests, recipe, jpeg, progress):
            if isinstance(result, video.Failure):
                send("failure", **vars(result))
            else:
                _send_clip(result, send)
        send("done")
    except video.VideoError as error:
        send("video_error", kind=error.kind, message=str(error))
    except OSError as error:
        send("os_error", errno=error.errno, message=str(error))
    except mp4.EncoderError as error:
        send("encoder_error", message=str(error))
    except Exception:
        send("bug", message=traceback.format_exc())


def _jpeg_encoder(quality: int):
    def encode(frame) -> tuple[bytes, int, int]:
        data = simplejpeg.encode_jpeg(frame, quality=quality, colorspace="RGB", colorsubsampling="420", fastdct=False)
        return data, frame.shape[1], frame.shape[0]

    return encode


def _send_clip(clip, send) -> None:
    """Each distinct file travels once. `frames` says which of them the clip shows (null: the first, an MP4)."""
    middle, width, height = clip.middle
    if isinstance(clip.frames, bytes):
        files, shown, at = [clip.frames, middle], None, 1
    else:
        pictures = {ms: data for ms, (data, _, _) in zip(clip.frame_ms, clip.frames)} | {clip.middle_ms: middle}
        index = {ms: number for number, ms in enumerate(pictures)}
        files, shown, at = list(pictures.values()), [index[ms] for ms in clip.frame_ms], index[clip.middle_ms]
    send(
        "clip",
        b"".join(files),
        clip_id=clip.clip_id,
        frame_ms=clip.frame_ms,
        middle_ms=clip.middle_ms,
        duration_ms=clip.duration_ms,
        decoder=clip.decoder,
        policy=clip.policy,
        width=width,
        height=height,
        sizes=[len(data) for data in files],
        frames=shown,
        middle=at,
    )


def _signs_of_life(send):
    """Tells the parent at once which clip is awaited, and from then on a few times a second that frames come."""
    last_time, last_clip = 0.0, object()

    def progress(clip_id: str | None) -> None:
        nonlocal last_time, last_clip
        now = time.monotonic()
        if clip_id != last_clip or now - last_time > _SIGN_OF_LIFE_SECONDS:
            send("waiting", clip_id=clip_id)
            last_time, last_clip = now, clip_id

    return progress


def _die_with_parent(parent: int) -> None:
    """Also when the parent is killed while a native decoder keeps this process from reading its pipe."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before
        os._exit(1)


if __name__ == "__main__":
    main()
