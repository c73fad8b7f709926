"""What a person sees while the expansion runs: a bar on a terminal, a line a minute in a log."""

import os
import pty
import subprocess
import sys
import termios

from gex_pipeline import progress


def test_a_log_gets_a_line_a_minute_with_rate_and_time_left(monkeypatch, capsys):
    now = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.Progress(total=10_000, done=4_000) as shown:
        for _ in range(240):
            now += 1
            shown.add(10)
    assert capsys.readouterr().err.splitlines() == [
        f"{clips:,} of 10,000 clips, 10.0 clips/s, {left} left"
        for clips, left in ((4_600, "09:00"), (5_200, "08:00"), (5_800, "07:00"), (6_400, "06:00"))
    ]


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
