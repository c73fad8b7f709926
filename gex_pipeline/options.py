"""The command line and YAML of the expansion job -> a checked `ExpandConfig`."""

import os

import jsonargparse

from gex_pipeline import cluster, llm
from gex_pipeline.config import ExpandConfig
from shards import storage
from shards.errors import UserError
from shards.format import LONG, SHORT


def parse(argv: list[str] | None) -> ExpandConfig:
    """UserError for unknown keys, wrong types and unreadable config files."""
    parser = jsonargparse.ArgumentParser(prog="gex_pipeline.expand", description=ExpandConfig.__doc__, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the keys below")
    parser.add_class_arguments(ExpandConfig)
    try:
        values = vars(parser.instantiate(parser.parse_args(argv)))
    except jsonargparse.ArgumentError as error:
        raise UserError(" ".join(str(error).split())) from None
    del values["config"]
    config = ExpandConfig(**values)
    if config.output.path and "://" not in config.output.path and not cluster.inside_job():
        config.output.path = os.path.abspath(config.output.path)  # workers have another working directory
    return config


def check(config: ExpandConfig) -> None:
    """UserError for values that no run can work with; those of the plan are checked where it is built."""
    frames, output = config.frames, config.output
    for name in ("per_clip", "per_long", "short_side", "timeout_seconds"):
        if getattr(frames, name) <= 0:
            raise UserError(f"frames.{name} is {getattr(frames, name)}; it must be positive")
    for name in ("scratch_gb", "parallel", "timeout_seconds"):
        if getattr(config.fetch, name) <= 0:
            raise UserError(f"fetch.{name} is {getattr(config.fetch, name)}; it must be positive")
    if not 1 <= frames.quality <= 100:
        raise UserError(f"frames.quality is {frames.quality}; it must be 1 to 100")
    if frames.per_clip > 1000:
        raise UserError(f"frames.per_clip is {frames.per_clip}; at most 1000 frames of a clip are stored")
    if not output.granularities:
        raise UserError("output.granularities is empty; name at least one of short, long, image")
    if LONG in output.granularities:
        _check_long(config)
        llm.check(config.compress)
    _check_paths(config)


def _check_long(config: ExpandConfig) -> None:
    if SHORT not in config.output.granularities:
        raise UserError("output.granularities: long samples are cut from the short ones; add short")
    if config.compress.backend == "none":
        raise UserError("compress.backend: none makes no summaries, which long samples need; use extractive, or leave long out of output.granularities")
    if config.frames.per_long < config.integrate.max_clips:
        raise UserError(
            f"frames.per_long is {config.frames.per_long}, fewer than integrate.max_clips ({config.integrate.max_clips}): "
            "every clip of a long sample needs a frame; raise the one or lower the other"
        )


def _check_paths(config: ExpandConfig) -> None:
    for key, value in (("input.path", config.input.path), ("output.path", config.output.path)):
        if not value:
            raise UserError(f"{key} is missing; give it in the config file or as --{key} PATH")
    if cluster.inside_job() and storage.local_path(config.output.path) and not os.path.isabs(config.output.path):
        raise UserError(
            f"output.path: {config.output.path} is relative, and this job's working directory vanishes with it; "
            "give an absolute path on storage that all nodes share, or a URL"
        )
