"""The command line and YAML of the expansion job -> a checked `ExpandConfig`."""

import importlib.util
import os
import shutil
from dataclasses import asdict

import jsonargparse

from gex_pipeline import cluster, llm
from gex_pipeline.config import ExpandConfig, FramesConfig
from gex_pipeline.llm import environment
from shards import storage
from shards.config_help import describe
from shards.errors import UserError
from shards.format import LONG, SHORT

_DECODER_MODULES = {"pyav": "av", "decord": "decord", "torchcodec": "torchcodec"}


def parse(argv: list[str] | None) -> ExpandConfig:
    """UserError for unknown keys, wrong types and unreadable config files."""
    parser = jsonargparse.ArgumentParser(prog="gex_pipeline.expand", description=ExpandConfig.__doc__, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the keys below")
    parser.add_class_arguments(ExpandConfig)
    describe(parser, ExpandConfig)
    try:
        values = vars(parser.instantiate(parser.parse_args(argv)))
    except jsonargparse.ArgumentError as error:
        raise UserError(" ".join(str(error).split())) from None
    del values["config"]
    config = ExpandConfig(**values)
    if config.output.path and "://" not in config.output.path and not cluster.inside_job():
        config.output.path = os.path.abspath(config.output.path)  # workers have another working directory
    if config.compress.python:
        config.compress.python = os.path.abspath(config.compress.python)
    return config


def check(config: ExpandConfig) -> None:
    """UserError for values that no run can work with; those of the plan are checked where it is built."""
    frames, output = config.frames, config.output
    positive = "per_clip per_long fps max_per_clip short_side max_megapixels max_hours max_frames timeout_seconds"
    for name in positive.split():
        if getattr(frames, name) <= 0:
            raise UserError(f"frames.{name} is {getattr(frames, name)}; it must be positive")
    for name in ("scratch_gb", "parallel", "timeout_seconds"):
        if getattr(config.fetch, name) <= 0:
            raise UserError(f"fetch.{name} is {getattr(config.fetch, name)}; it must be positive")
    for stage, wanted in asdict(config.resources).items():
        for name, value in wanted.items():
            if value is not None and value <= 0:
                raise UserError(f"resources.{stage}.{name} is {value}; it must be positive")
    if not 1 <= frames.quality <= 100:
        raise UserError(f"frames.quality is {frames.quality}; it must be 1 to 100")
    for name in ("per_clip", "max_per_clip"):
        if getattr(frames, name) > 1000:
            raise UserError(f"frames.{name} is {getattr(frames, name)}; at most 1000 frames of a clip are stored")
    _check_decoders(frames.decoders)
    if frames.format == "mp4":
        _check_mp4(frames)
    if not output.granularities:
        raise UserError("output.granularities is empty; name at least one of short, long, image")
    if LONG in output.granularities:
        _check_long(config)
        llm.check(config.compress)
        _check_environment(config)
    _check_paths(config)


def _check_decoders(decoders: list[str]) -> None:
    if not decoders or len(set(decoders)) < len(decoders):
        raise UserError(f"frames.decoders is {decoders}; name at least one decoder, each once")
    for name in decoders:
        module = _DECODER_MODULES[name]
        if importlib.util.find_spec(module) is None:
            raise UserError(f"frames.decoders: {name} is not installed; pip install {module}, or leave it out")
    if "torchcodec" in decoders:  # it may be there and find no FFmpeg that it can use
        try:
            importlib.import_module("torchcodec")
        except (ImportError, RuntimeError, OSError) as error:
            reason = cluster.first_line(error)
            raise UserError(f"frames.decoders: torchcodec cannot be loaded ({reason}); leave it out") from None


def _check_mp4(frames: FramesConfig) -> None:
    if not 0 <= frames.crf <= 51:
        raise UserError(f"frames.crf is {frames.crf}; it must be 0 to 51")
    if frames.policy == "keyframe":
        raise UserError("frames.policy: keyframe makes pictures; with frames.format mp4 use uniform (every frame) or fps")
    if shutil.which("ffmpeg") is None:
        raise UserError("frames.format: mp4 needs ffmpeg, which is not installed; sudo apt-get install ffmpeg")


def _check_long(config: ExpandConfig) -> None:
    if SHORT not in config.output.granularities:
        raise UserError("output.granularities: long samples are cut from the short ones; add short")
    if config.compress.backend == "none":
        raise UserError(
            "compress.backend: none makes no summaries, which long samples need; use extractive, or leave long out of "
            "output.granularities"
        )
    if config.frames.format == "jpg" and config.frames.per_long < config.integrate.max_clips:
        raise UserError(
            f"frames.per_long is {config.frames.per_long}, fewer than integrate.max_clips ({config.integrate.max_clips}): "
            "every clip of a long sample needs a frame; raise the one or lower the other"
        )


def _check_environment(config: ExpandConfig) -> None:
    compress = config.compress
    elsewhere = config.ray.address or cluster.inside_job()
    if compress.python and not (elsewhere and not os.path.exists(compress.python)):  # a path of the nodes alone
        environment.check(compress.python, compress.backend)
    elif compress.backend == "vllm" and not elsewhere:
        environment.check_vllm()


def _check_paths(config: ExpandConfig) -> None:
    for key, value in (("input.path", config.input.path), ("output.path", config.output.path)):
        if not value:
            raise UserError(f"{key} is missing; give it in the config file or as --{key} PATH")
    if cluster.inside_job() and storage.local_path(config.output.path) and not os.path.isabs(config.output.path):
        raise UserError(
            f"output.path: {config.output.path} is relative, and this job's working directory vanishes with it; "
            "give an absolute path on storage that all nodes share, or a URL"
        )
