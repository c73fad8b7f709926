"""The other environment that the compress stage's actors may run in (`compress.python`), checked before Ray starts it."""

import importlib.util
import json
import os
import platform
import subprocess
from importlib.metadata import version

from shards.errors import UserError

# Run by the other interpreter: what must be equal on both sides, and whether our code and vLLM are there.
_PROBE = """
import importlib.util, json, platform
from importlib.metadata import PackageNotFoundError, version
try:
    ray = version("ray")
except PackageNotFoundError:
    ray = "none"
found = {name: importlib.util.find_spec(name) is not None for name in ("vllm", "gex_pipeline")}
print(json.dumps({"python": platform.python_version(), "ray": ray, **found}))
"""


def check_vllm() -> None:
    """UserError where vLLM is not installed; a mere folder of that name has no origin."""
    if getattr(importlib.util.find_spec("vllm"), "origin", None) is None:
        raise UserError(
            "compress.backend: vllm is not installed in this environment; `make setup-vllm` builds one that has it: give "
            "--compress.python .venv-vllm/bin/python, or start the command from there (.venv-vllm/bin/gexia)"
        )


def check(python: str, backend: str) -> None:
    """UserError where actors could not start there: Ray demands its own version and Python's on both sides."""
    if not os.access(python, os.X_OK) or os.path.isdir(python):
        raise UserError(f"compress.python: {python} is no interpreter; `make setup-vllm` builds .venv-vllm/bin/python")
    try:
        done = subprocess.run([python, "-c", _PROBE], capture_output=True, text=True, timeout=60, check=True)
        theirs = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        raise UserError(f"compress.python: {python} does not run as a Python interpreter") from None
    for name, mine in (("python", platform.python_version()), ("ray", version("ray"))):
        if theirs[name] != mine:
            raise UserError(f"compress.python: {name} is {theirs[name]} in {python} and {mine} here; they must be equal")
    if not theirs["gex_pipeline"]:
        raise UserError(f"compress.python: {python} does not find this project; install it there too (pip install -e .)")
    if backend == "vllm" and not theirs["vllm"]:
        raise UserError(f"compress.python: {python} has no vLLM; `make setup-vllm` builds an environment that has")
