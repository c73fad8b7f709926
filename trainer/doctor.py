"""`gexia doctor`: what is installed, what works, and what to do about the rest. Exit code 1 if anything must be fixed.

Every check that could crash or hang runs in a process of its own with a time limit; a check without what it looks at
(no GPU, no Ray) is a note, not a fault.
"""

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30
MIN_SCRATCH, MIN_SHARED = 10 * GIB, 2 * GIB
DECODERS = {"pyav": "av", "decord": "decord", "torchcodec": "torchcodec"}  # name -> module
PARTS = ("", "pipeline", "train")  # extras whose absence is worth a line; "" is the core

READ_VIDEO = """
import sys
from shards import video
recipe = video.Recipe(per_clip=3, short_side=64, decoders=(sys.argv[2],))
(clip,) = video.read_clips(sys.argv[1], [video.Request("x", None, None)], recipe)
sys.exit(getattr(clip, "message", None) or len(clip.frames) != 3)
"""
START_RAY = """
import ray
ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
assert ray.get(ray.remote(lambda: 7).remote()) == 7
ray.shutdown()
"""
SEE_GPUS = """
import torch
seen = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
print("; ".join(f"{p.name}, {p.total_memory / 2**30:.0f} GiB" for p in seen))
if torch.cuda.is_available():
    x = torch.randn(64, 64, device="cuda", dtype=torch.bfloat16)
    (x @ x).sum().item()
"""


@dataclass
class Finding:
    what: str
    said: str
    remedy: str | None = None  # None: nothing to fix


def main(argv: list[str]) -> int:
    """Print one line a check as it ends; returns 0, or 1 with something to fix."""
    parser = argparse.ArgumentParser(prog="gexia doctor", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="without starting Ray and the training on two processes")
    args = parser.parse_args(argv)
    checks = [versions, ffmpeg, decoders, gpu, disk] + ([] if args.quick else [ray_works, training])
    faults = 0
    for check in checks:
        for finding in check():
            faults += finding.remedy is not None
            print(f"{'FIX ' if finding.remedy else 'ok  '} {finding.what}: {finding.said}", flush=True)
            if finding.remedy:
                print(f"     -> {finding.remedy}", flush=True)
    print(f"{faults} to fix" if faults else "all well")
    return 1 if faults else 0


def versions() -> Iterator[Finding]:
    """Python, and each part's packages against the ranges that this package asks for."""
    old = sys.version_info < (3, 11)
    yield Finding("python", platform.python_version(), "install Python 3.11 or newer" if old else None)
    if sys.platform != "linux":
        yield Finding("system", platform.system(), "use Linux: shared memory and process limits need it")
    try:
        from packaging.requirements import Requirement

        wanted = [Requirement(line) for line in importlib.metadata.requires("gexia") or []]
    except (ImportError, importlib.metadata.PackageNotFoundError) as error:
        yield Finding("packages", f"cannot be checked ({error})", "pip install -e '.[pipeline,train]'")
        return
    for part in PARTS:
        own = [r for r in wanted if (r.marker.evaluate({"extra": part}) if r.marker else not part)]
        yield _packages(part, [r for r in own if part == "" or not r.marker.evaluate({"extra": ""})])


def _packages(part: str, wanted: list) -> Finding:
    found, faults = [], []
    for requirement in wanted:
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            faults.append(f"{requirement.name} is missing")
            continue
        found.append(f"{requirement.name} {version}")
        if not requirement.specifier.contains(version, prereleases=True):
            faults.append(f"{requirement.name} {version} is not {requirement.specifier}")
    remedy = f"pip install 'gexia[{part}]'" if part else "pip install gexia"
    what = f"packages ({part or 'core'})"
    if part and not found:
        return Finding(what, f"not installed ({remedy})")
    return Finding(what, "; ".join(faults) or ", ".join(found), remedy if faults else None)


def ffmpeg() -> Iterator[Finding]:
    """ffmpeg and ffprobe, with the encoder that mp4 members need."""
    for name in ("ffmpeg", "ffprobe"):
        if shutil.which(name) is None:
            yield Finding(name, "not on the path", "install ffmpeg (Debian: sudo apt-get install ffmpeg)")
            continue
        done = _run([name, "-version"])
        yield Finding(name, done.stdout.split(" Copyright")[0].strip(), None if done.returncode == 0 else "install it anew")
    if shutil.which("ffmpeg") and "libx264" not in _run(["ffmpeg", "-hide_banner", "-encoders"]).stdout:
        yield Finding("libx264", "ffmpeg has no such encoder", "install an ffmpeg with libx264, or keep frames.format jpg")


def decoders() -> Iterator[Finding]:
    """Each decoder reads a small video that ffmpeg makes. One that is not installed is a note."""
    if shutil.which("ffmpeg") is None:
        return
    with tempfile.TemporaryDirectory(prefix="gexia-doctor-") as folder:
        path = f"{folder}/test.mp4"
        _run(["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc=size=128x96:rate=10:duration=1", path])
        for name, module in DECODERS.items():
            if importlib.util.find_spec(module) is None:
                yield Finding(f"decoder {name}", "not installed", "pip install 'av>=14'" if name == "pyav" else None)
                continue
            done = _run([sys.executable, "-c", READ_VIDEO, path, name])
            said = _last(done) if done.returncode else "reads video"
            remedy = f"reinstall {module}, or leave it out of frames.decoders" if done.returncode else None
            yield Finding(f"decoder {name}", said, remedy)


def gpu() -> Iterator[Finding]:
    """What torch sees, and whether it can compute there, beside what the driver sees."""
    if importlib.util.find_spec("torch") is None:
        return
    driver = _run(["nvidia-smi", "-L"]).stdout.strip() if shutil.which("nvidia-smi") else ""
    done = _run([sys.executable, "-c", SEE_GPUS])
    if done.returncode:
        yield Finding("GPU", _last(done), "install a torch build for this driver's CUDA version (see pytorch.org)")
    elif done.stdout.strip():
        yield Finding("GPU", done.stdout.strip())
    elif driver:
        yield Finding("GPU", "the driver sees one, torch does not", "install a torch build with CUDA; see CUDA_VISIBLE_DEVICES")
    else:
        yield Finding("GPU", "none; training runs on the CPU")


def disk() -> Iterator[Finding]:
    """Room where a run works: this folder, scratch, and shared memory, where Ray keeps its objects."""
    for name, path, least, remedy in (
        ("this folder", os.getcwd(), MIN_SCRATCH, "make room, or work on another disk"),
        ("scratch", tempfile.gettempdir(), MIN_SCRATCH, "make room, or set TMPDIR to a larger disk"),
        ("shared memory", "/dev/shm", MIN_SHARED, "give the container more (docker run --shm-size=8g)"),
    ):
        if Path(path).is_dir():
            free = shutil.disk_usage(path).free
            yield Finding(name, f"{free / GIB:.1f} GiB free in {path}", remedy if free < least else None)


def ray_works() -> Iterator[Finding]:
    """A local Ray starts and runs a task, or the cluster that RAY_ADDRESS names answers."""
    if importlib.util.find_spec("ray") is None:
        return
    done = _run([sys.executable, "-c", START_RAY], seconds=120)
    where = os.environ.get("RAY_ADDRESS")
    remedy = "set RAY_ADDRESS to a cluster that answers, or unset it" if where else "ray stop --force, then try again"
    said = f"runs a task ({where or 'a local one'})" if done.returncode == 0 else _last(done)
    yield Finding("Ray", said, remedy if done.returncode else None)


def training() -> Iterator[Finding]:
    """Two gloo processes against one: gradients, equal batches, resume (see selfcheck.py)."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("accelerate") is None:
        return
    done = _run([sys.executable, "-W", "ignore", "-m", "trainer.selfcheck"], seconds=600)
    lines = [line for line in done.stdout.splitlines() if ": " in line]
    for what, said in (line.split(": ", 1) for line in lines):
        remedy = None if said == "ok" else "reinstall torch and accelerate at the versions of constraints.txt, and report it"
        yield Finding(f"2 processes, {what}", said, remedy)
    if not lines:
        remedy = "gloo must reach this machine by its name: check /etc/hosts and GLOO_SOCKET_IFNAME"
        yield Finding("2 processes", _last(done), remedy)


def _run(command: list[str], seconds: int = 60) -> subprocess.CompletedProcess:
    """A finished process; one that took too long, or could not start, has exit code 1 and says so."""
    root = str(Path(__file__).parents[1])
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=env, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no end after {seconds} s")
    except OSError as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


def _last(done: subprocess.CompletedProcess) -> str:
    """The last line that a process left, which is where errors say what they are."""
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1].strip()[:200] if lines else f"ended with exit code {done.returncode}"
