"""The decoder process: what it costs when it crashes, hangs, or loses its parent. Real processes, real signals."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from make_video import H264, pattern_video

from gex_pipeline import decoder
from gex_pipeline.config import FramesConfig
from gex_pipeline.decoder import DecodedClip, FailedClip
from gex_pipeline.errors import Transient

ROOT = Path(__file__).parents[2]
# No clip ends before the other starts: each is in progress on its own.
REQUESTS = [(str(i), i * 1000, i * 1000 + 1000) for i in range(8)]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "eight_seconds.mp4"
    pattern_video(path, *H264, seconds=8)
    return str(path)


@pytest.fixture(autouse=True)
def fresh_child():
    decoder.close()
    yield
    decoder.close()


def signalled(path, signal_number, after: list[str], timeout=30.0) -> dict[str, DecodedClip | FailedClip]:
    """Results while each child that is working gets a signal once the clips named in `after` have come, one a child.

    So many frames a clip do not fit into the pipe: the child waits for us in the middle of its work.
    """
    config = FramesConfig(per_clip=100, timeout_seconds=timeout)
    results, due = {}, list(after)
    for result in decoder.read_clips(path, REQUESTS, config):
        results[result.clip_id] = result
        if due and isinstance(result, DecodedClip) and result.clip_id == due[0]:
            due.pop(0)
            os.kill(decoder._current._process.pid, signal_number)
    return results


def kinds(results) -> dict[str, str]:
    return {clip_id: result.kind for clip_id, result in results.items() if isinstance(result, FailedClip)}


def test_one_child_serves_many_videos(path):
    for _ in range(2):
        results = list(decoder.read_clips(path, REQUESTS, FramesConfig(per_clip=3)))
        assert [r.clip_id for r in results] == [r[0] for r in REQUESTS]
        assert all(frame.startswith(b"\xff\xd8") for r in results for frame in [*r.frames, r.middle])
        assert {(r.width, r.height, len(r.frames)) for r in results} == {(256, 64, 3)}
        first = decoder._current._process.pid
    assert decoder._current._process.pid == first


def test_a_hang_costs_the_clip_in_progress(path):
    started = time.monotonic()
    results = signalled(path, signal.SIGSTOP, ["0"], timeout=1.0)
    failed = kinds(results)
    assert list(failed.values()) == ["timeout"] and len(results) == 8
    assert time.monotonic() - started < 20


def test_a_process_that_waits_in_the_kernel_for_a_file_is_known(tmp_path):
    """Here as there: posix_spawn blocks its caller, uninterruptibly, until its child has opened the pipe."""
    os.mkfifo(tmp_path / "pipe")
    opened = f"(os.POSIX_SPAWN_OPEN, 0, {str(tmp_path / 'pipe')!r}, 0, 0)"
    spawn = f"os.posix_spawn('/bin/true', ['true'], {{}}, file_actions=[{opened}])"
    waiting = subprocess.Popen([sys.executable, "-c", f"import os; {spawn}"])
    asleep = subprocess.Popen(["sleep", "60"])
    try:
        deadline = time.monotonic() + 10
        while not decoder._waits_for_storage(waiting.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert decoder._waits_for_storage(waiting.pid)
        assert not decoder._waits_for_storage(asleep.pid)
    finally:
        open(tmp_path / "pipe", "w").close()
        asleep.kill()
        waiting.wait(), asleep.wait()


def test_a_stalled_storage_leaves_the_row_pending(path, monkeypatch):
    monkeypatch.setattr(decoder, "_waits_for_storage", lambda pid: True)
    with pytest.raises(Transient, match="storage gave nothing for 1 s"):
        signalled(path, signal.SIGSTOP, ["0"], timeout=1.0)
    assert not decoder._current.alive()


def test_a_crash_costs_the_clip_in_progress(path):
    results = signalled(path, signal.SIGSEGV, ["1"])
    assert list(kinds(results).values()) == ["crash"]
    assert len(results) == 8


def test_a_child_killed_from_outside_costs_nothing(path):
    assert kinds(signalled(path, signal.SIGKILL, ["2"])) == {}


@pytest.mark.parametrize("script, reason", [("exit 1", "exit code 1"), ("sleep 60", "no sign of life")])
def test_a_child_that_does_not_start_is_no_fault_of_the_video(path, tmp_path, monkeypatch, script, reason):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(decoder, "_START_SECONDS", 0.5)
    before = psutil.Process().children()
    with pytest.raises(Transient, match=f"no decoder process can be started: .*{reason}"):
        list(decoder.read_clips(path, REQUESTS, FramesConfig()))
    assert psutil.Process().children() == before


@pytest.mark.parametrize("parent, status", [(1, 0), (7, 1)])
def test_a_parent_may_be_the_first_process_of_its_container(parent, status):
    code = f"import os; from gex_pipeline import decode_child as c; os.getppid = lambda: 1; c._die_with_parent({parent})"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == status


@contextmanager
def stopped_children(at_most: int):
    """Children hang at their first sign of life, the first so many of them."""
    over, stopped = threading.Event(), set()

    def stop_children():
        while not over.is_set():
            child = decoder._current
            if child is not None and child.alive() and (child._process.pid in stopped or len(stopped) < at_most):
                with suppress(ProcessLookupError):  # it has just ended by itself
                    os.kill(child._process.pid, signal.SIGSTOP)
                    stopped.add(child._process.pid)
            time.sleep(0.005)

    thread = threading.Thread(target=stop_children)
    thread.start()
    try:
        yield stopped
    finally:
        over.set()
        thread.join()


def test_a_video_that_costs_two_children_is_quarantined(path):
    with stopped_children(99) as stopped:
        results = list(decoder.read_clips(path, REQUESTS, FramesConfig(timeout_seconds=0.5, decoders=["pyav"])))
    assert [r.kind for r in results] == ["timeout", "timeout"] + ["quarantined"] * 6 and len(stopped) == 2


def test_a_video_that_one_decoder_hangs_on_is_read_by_the_next(path):
    with stopped_children(2):
        results = list(decoder.read_clips(path, REQUESTS, FramesConfig(per_clip=3, timeout_seconds=2)))
    assert [r.clip_id for r in results] == [r[0] for r in REQUESTS]
    assert {r.decoder for r in results} == {"decord"}


def test_a_video_that_every_decoder_hangs_on_costs_two_children_twice(path):
    with stopped_children(99) as stopped:
        results = list(decoder.read_clips(path, REQUESTS, FramesConfig(timeout_seconds=0.5)))
    assert [r.kind for r in results] == ["timeout", "timeout"] + ["quarantined"] * 6 and len(stopped) == 4


def test_what_the_next_decoder_cannot_read_either_keeps_the_first_reason(tmp_path):
    """Decord reads nothing of MPEG-TS."""
    stream = str(tmp_path / "stream.ts")
    pattern_video(stream, *H264, seconds=8)
    with stopped_children(2):
        results = list(decoder.read_clips(stream, REQUESTS, FramesConfig(timeout_seconds=0.5)))
    assert [r.kind for r in results] == ["timeout", "timeout"] + ["quarantined"] * 6


def test_a_video_that_two_decoders_hang_on_is_read_by_the_third(path):
    order = ["pyav", "decord", "pyav"]  # torchcodec's import alone may take longer than the others' patience
    with stopped_children(4):
        results = list(decoder.read_clips(path, REQUESTS, FramesConfig(per_clip=3, timeout_seconds=2, decoders=order)))
    assert [r.decoder for r in results] == ["pyav"] * 8


def test_the_child_dies_with_its_parent(path):
    """Also when it cannot read its pipe: it is stopped while the parent gets kill -9."""
    code = (
        "import os, signal, sys, time\n"
        "from gex_pipeline import decoder\n"
        "child = decoder._child()._process.pid\n"
        "os.kill(child, signal.SIGSTOP)\n"
        "print(child, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    child = psutil.Process(int(parent.stdout.readline()))
    assert child.is_running()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_the_child_loads_neither_ray_nor_torch():
    code = (
        "import sys, gex_pipeline.decode_child, shards.video, simplejpeg; print({'ray', 'torch', 'polars'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert out.stdout.strip() == "set()"


def test_an_encoder_ends_with_its_decoder(path):
    """The child is killed while an ffmpeg of its own is at work: that one goes too, and the clip is made again."""
    seen = []

    def kill_when_encoding():
        while decoder._current is None:
            time.sleep(0.005)
        child = psutil.Process(decoder._current._process.pid)
        while not seen:
            seen.extend(child.children())
        child.kill()

    thread = threading.Thread(target=kill_when_encoding)
    thread.start()
    (result,) = decoder.read_clips(path, [("whole", None, None)], FramesConfig(format="mp4"))
    thread.join()
    assert isinstance(result, DecodedClip) and len(result.frame_ms) == 200
    gone, alive = psutil.wait_procs(seen, timeout=10)
    assert seen[0] in gone and not alive
