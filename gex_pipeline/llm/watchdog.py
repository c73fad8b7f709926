"""Ends an engine's processes when ours is gone, or when they start for ever: vLLM's own outlive a parent that is killed,
and keep its memory.

    python -m gex_pipeline.llm.watchdog PID...   ends them and all that they started once stdin is closed
"""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """End the processes that ours starts meanwhile if that takes longer: vLLM waits for a new engine while it lives."""
    before = psutil.Process().children()
    timer = threading.Timer(seconds, lambda: kill(started_since(before)))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def started_since(before: list[psutil.Process]) -> list[psutil.Process]:
    """Our processes that were not there before."""
    return [process for process in psutil.Process().children() if process not in before]


def guard(processes: list[psutil.Process]) -> subprocess.Popen:
    """Start a watchdog over processes of ours; it acts when this process ends, however that comes, or on `release`."""
    command = [sys.executable, "-m", "gex_pipeline.llm.watchdog", *(str(process.pid) for process in processes)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def release(watchdog: subprocess.Popen) -> None:
    """Let it act now, and wait until it has."""
    watchdog.stdin.close()
    watchdog.wait()


def main() -> None:
    guarded = [psutil.Process(int(pid)) for pid in sys.argv[1:] if psutil.pid_exists(int(pid))]
    sys.stdin.read()
    kill(guarded)


def kill(processes: list[psutil.Process]) -> None:
    """End processes and all that they started."""
    for process in processes:
        try:
            for one in [*process.children(recursive=True), process]:  # psutil tells a pid that was given anew apart
                one.kill()
        except psutil.NoSuchProcess:
            pass


if __name__ == "__main__":
    main()
