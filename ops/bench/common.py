"""What every benchmark prints: a table for people and one JSON line for machines."""

import importlib.metadata
import json
import os
import platform
import threading
import time

import psutil

PACKAGES = ("ray", "polars", "pyarrow", "decord", "av", "torch", "open_clip_torch", "webdataset", "simplejpeg")


def machine() -> str:
    """One line about where a figure was taken."""
    memory = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.machine()}, Python {platform.python_version()}"


def versions() -> dict[str, str]:
    """Installed versions of the packages that figures depend on."""
    installed = {d.metadata["Name"].lower().replace("-", "_"): d.version for d in importlib.metadata.distributions()}
    return {p: installed[p] for p in PACKAGES if p in installed}


class PeakMemory:
    """Highest summed resident memory of this process and all it started, bytes, sampled while inside."""

    def __init__(self, interval_seconds: float = 0.1):
        self.peak = 0
        self._interval = interval_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *exc) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.is_set():
            self.peak = max(self.peak, sum(map(_resident, [me, *me.children(recursive=True)])))
            time.sleep(self._interval)


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0


def emit(name: str, rows: list[tuple[str, float, str]], ratio: float, target: str, **details) -> None:
    """Print `rows` (label, value, unit) as a table, then the JSON line.

    `ratio` is ours over the bound (or peer) of the same run, `target` says in words what it should be.
    """
    width = max(len(label) for label, _, _ in rows)
    print(f"\n{name} on {machine()}")
    for label, value, unit in rows:
        print(f"  {label:<{width}}  {value:>12,.3f} {unit}")
    print(f"  {'ratio':<{width}}  {ratio:>12,.3f}  (target: {target})")
    line = {"benchmark": name, "ratio": round(ratio, 4), "target": target, "machine": machine(), "versions": versions()}
    line |= {label: [round(value, 4), unit] for label, value, unit in rows} | details
    print(json.dumps(line), flush=True)
