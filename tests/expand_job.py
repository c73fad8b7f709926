"""The expansion job as a process that tests start, watch and kill."""

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parents[1]
CONFIG = ["--config", "configs/expand/local.yaml"]


def start(catalog, output, *more) -> subprocess.Popen:
    command = [sys.executable, "-m", "gex_pipeline.expand", *CONFIG, "--input.path", catalog, "--output.path", output]
    command += ["--ray.num_cpus", 2, *more]
    return subprocess.Popen(
        list(map(str, command)), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen, timeout=240) -> str:
    """Its output; the exit code must be 0."""
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, output
    return output


def tars(output) -> dict[str, str]:
    files = sorted(Path(output).rglob("*.tar"))
    return {str(f.relative_to(output)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def committed(output) -> dict[str, int]:
    """Commit record -> when it was written."""
    return {f.name: f.stat().st_mtime_ns for f in Path(output, "commits").glob("[0-9]????.json")}


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "what the test waits for did not happen"
        time.sleep(0.02)
    return found


def working(process, *words) -> list[psutil.Process]:
    """Descendants whose command line has all words."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if all(word in " ".join(child.cmdline()) for word in words):
                found.append(child)
        except psutil.NoSuchProcess:
            pass
    return found
