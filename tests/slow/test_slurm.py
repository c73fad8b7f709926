"""The SLURM script, with stand-ins for `srun` and `scontrol` only: its processes and signals are real."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from make_dataset import make_dataset

ROOT = Path(__file__).parents[2]

SRUN = """#!/bin/bash
# Starts the tasks as SLURM would on one node.
[ "$1" = --kill-on-bad-exit=1 ] && shift
for i in $(seq 0 $((SLURM_NTASKS - 1))); do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & done
for job in $(jobs -p); do wait "$job" || status=$?; done
exit ${status:-0}
"""
SCONTROL = """#!/bin/bash
[ "$1" = show ] && echo 127.0.0.1 || echo "$@" >> "$CALLS"
"""


def ranks_of(job: subprocess.Popen) -> list[psutil.Process]:
    """The job's Python processes that train (not their data workers)."""
    children = psutil.Process(job.pid).children(recursive=True)
    return [p for p in children if "trainer/pretrain.py" in " ".join(p.cmdline()[1:3]) and "RANK" in p.environ()]


def test_a_signal_before_the_time_limit_saves_and_requeues(tmp_path):
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    make_dataset(tmp_path / "data")
    calls, output = tmp_path / "calls", tmp_path / "run"
    env = os.environ | {
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CALLS": str(calls),
        "SLURM_NTASKS": "2",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "one",
        "ACCELERATE_USE_CPU": "true",
        "PYTHONUNBUFFERED": "1",
    }
    command = ["bash", "ops/slurm/pretrain.sbatch", "--config", "configs/pretrain/tiny.yaml"]
    command += ["--data", str(tmp_path / "data"), "--output", str(output), "--steps", "100000"]
    job = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        metrics = output / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
            assert job.poll() is None and time.monotonic() < deadline, job.stdout.read()
            time.sleep(0.2)
        ranks = ranks_of(job)
        assert len(ranks) == 2
        for rank in ranks:
            rank.send_signal(signal.SIGUSR1)
        printed, _ = job.communicate(timeout=60)
    finally:
        for process in ranks_of(job) if job.poll() is None else []:
            process.kill()
        job.kill()
    assert job.returncode == 0, printed
    assert list((output / "checkpoints").glob("step-*/checkpoint.json"))
    assert calls.read_text() == "requeue 7\n"
