"""Where the job's Ray is: a private one on this machine, or a cluster that it is told of."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from gex_pipeline.config import RayConfig

# Ray sets it for the entry point of `ray job submit`.
_JOB_MARK = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def inside_job() -> bool:
    """Whether `ray job submit` started this process: its working directory then vanishes with the job."""
    return _JOB_MARK in os.environ


@contextmanager
def session(config: RayConfig) -> Iterator[None]:
    """Ray Data, quiet, for the duration of the job. A cluster that was joined goes on afterwards."""
    import ray

    address = config.address or (None if inside_job() else "local")
    # A private Ray takes the number of cores; a cluster knows its own.
    cpus = {"num_cpus": config.num_cpus, "include_dashboard": False} if address == "local" else {}
    ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False, **cpus)
    try:
        _quiet(ray)
        yield
    finally:
        ray.shutdown()


def _quiet(ray) -> None:
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # decoding has deadlines of its own, and a model may load for long
