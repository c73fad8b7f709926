"""What a person sees while the expansion runs: a bar on a terminal, a line a minute in a log."""

import os
import pty
import subprocess
import sys
import termios
import threading
import time

from gex_pipeline import progress


def test_a_log_gets_a_line_a_minute_with_rate_and_time_left(monkeypatch, capsys):
    """Whether or not a row was finished within it."""
    now, minutes, finished = 1000.0, [], {2: 1200, 4: 1200}

    def wait(over, seconds):
        nonlocal now
        minutes.append(seconds)
        now += seconds
        shown.add(finished.get(len(minutes), 0))
        return len(minutes) > 4

    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    monkeypatch.setattr(progress.Event, "wait", wait)
    shown = progress.Progress(total=10_000, done=4_000)
    shown._log()
    assert set(minutes) == {60} and capsys.readouterr().err.splitlines() == [
        "4,000 of 10,000 clips, 0.0 clips/s, no estimate yet",
        "5,200 of 10,000 clips, 10.0 clips/s, 08:00 left",
        "5,200 of 10,000 clips, 6.7 clips/s, 12:00 left",
        "6,400 of 10,000 clips, 10.0 clips/s, 06:00 left",
    ]


def test_the_lines_come_by_themselves_and_end_with_the_work(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.02)
    before = threading.active_count()
    with progress.Progress(total=10, done=4):
        time.sleep(0.5)
    assert capsys.readouterr().err.startswith("4 of 10 clips, ")
    time.sleep(0.2)
    assert threading.active_count() == before and capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_that_counts_what_was_done_before():
    code = (
        "import time; from gex_pipeline.progress import Progress\n"
        "with Progress(total=10, done=4) as shown:\n"
        "    for _ in range(5): time.sleep(0.15); shown.add(1)\n"
    )
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=slave)
    os.close(slave)
    shown = b""
    try:
        while part := os.read(master, 1 << 16):
            shown += part
    except OSError:  # the other end is closed
        pass
    os.close(master)
    assert process.wait() == 0
    assert "4/10" in shown.decode() and "9/10" in shown.decode() and "clip/s" in shown.decode()
