"""`gexia doctor` on the machine that tests run on: all its checks, for real."""

import subprocess
import sys


def test_the_doctor_finds_training_on_two_processes_well():
    done = subprocess.run([sys.executable, "-m", "gexia", "doctor"], capture_output=True, text=True, timeout=900)
    assert "Traceback" not in done.stdout + done.stderr, done.stdout
    for check in ("equal batches", "loss", "gradients", "resume"):
        assert f"ok   2 processes, {check}: ok" in done.stdout, done.stdout
    assert "ok   decoder pyav: reads video" in done.stdout
