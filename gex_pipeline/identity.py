"""What decides a dataset's bytes, as digests: so that a run knows its own dataset again, on any cluster."""

import contextlib
import functools
import subprocess
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

from gex_pipeline.config import ExpandConfig
from gex_pipeline.llm import chat, prompt
from shards.format import digest

# Software that shapes the bytes.
_PACKAGES = ("av", "decord", "torchcodec", "simplejpeg", "numpy", "gexia")
# Keys of frames.* and compress.* that only say how the work is done.
_HOW = {
    "timeout_seconds", "batch_size", "threads", "reuse", "prompt", "chat_template", "actors", "tensor_parallel",
    "rows_in_flight", "engine", "python", "env", "url", "key_env", "requests",
}  # fmt: skip


def frame_settings(config: ExpandConfig) -> dict:
    """Every setting that shapes stored frames."""
    return {name: value for name, value in asdict(config.frames).items() if name not in _HOW}


def config_digest(config: ExpandConfig) -> str:
    """Over the settings that shape the bytes; the clips themselves are in the plan's digest."""
    how = _HOW - {"engine"} if config.compress.backend == "openai" else _HOW  # there: fields of each request
    compress = {name: value for name, value in asdict(config.compress).items() if name not in how}
    compress["prompt"] = prompt.load(config.compress.prompt, config.compress.max_words).digest
    if config.compress.chat_template:
        compress["chat_template"] = digest(chat.read_template(config.compress.chat_template))
    granularities = sorted(config.output.granularities)
    return digest({"frames": frame_settings(config), "compress": compress, "granularities": granularities})


def sample_parameters(config: ExpandConfig) -> str:
    """The last part of a sample's identity (`shards.format.sample_id`)."""
    return digest(frame_settings(config))


@functools.cache
def versions() -> dict[str, str]:
    """Of what is installed; ffmpeg's is the program's, which writes mp4 members."""
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    with contextlib.suppress(OSError, IndexError):
        told = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
        found["ffmpeg"] = told.stdout.split()[2]
    return found
