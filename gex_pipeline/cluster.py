"""Where the job's Ray is: a private one on this machine, or a cluster that it is told of."""

import logging
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from gex_pipeline.config import RayConfig
from shards.errors import UserError

# Ray sets it for the entry point of `ray job submit`.
_JOB_MARK = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def inside_job() -> bool:
    """Whether `ray job submit` started this process: its working directory then vanishes with the job."""
    return _JOB_MARK in os.environ


def failures() -> tuple[type[Exception], ...]:
    """What Ray raises where a cluster fails as a whole, not one row's task."""
    import ray

    return ray.exceptions.RayError, ray.data.exceptions.SystemException


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class Session:
    """Ray for the duration of a job, started when it is first needed. A cluster that was joined goes on afterwards,
    and so does the connection of a caller that has one already."""

    def __init__(self, config: RayConfig):
        self._config, self._started = config, False

    def start(self) -> None:
        # Loggers of Ray's that read their level here; their news is in our progress lines and in Ray's log files.
        os.environ.setdefault("RAY_DATA_LOG_LEVEL", "CRITICAL")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        # Ray Data's newer one (the default of 2.60) rounds what its stages do not use at the moment down to whole cores
        # and gives the rest to nobody: after ten seconds two cores decode on one.
        os.environ.setdefault("RAY_DATA_CLUSTER_AUTOSCALER", "V2")
        import ray

        if not ray.is_initialized():
            self._connect(ray)
            self._started = True
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        # Ray 2.64 will drop options of tasks that it does not name, and max_retries is one; until then it warns.
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        # A row that was lost with its workers leaves a stage fewer inputs than it may have at once.
        warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks")
        context.max_errored_blocks = -1  # a row whose worker always dies must not end the others; `process` misses it
        context.execution_no_progress_timeout_s = -1  # decoding has deadlines of its own, and a model may load for long

    def _connect(self, ray) -> None:
        address = self._config.address or (None if inside_job() else "local")
        if self._config.address:
            _check_reachable(self._config.address)
        # A private Ray takes the number of cores; a cluster knows its own.
        private = {"num_cpus": self._config.num_cpus, "include_dashboard": False} if address == "local" else {}
        try:
            with _hushed():
                ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **private)
        except (ConnectionError, ValueError) as error:
            raise UserError(f"ray.address: cannot join a Ray cluster at {address}: {first_line(error)}") from None

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if self._started:
            import ray

            ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray itself tries for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return  # a name such as auto or local
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(f"ray.address: nothing answers at {address}: {error.strerror or error}") from None


@contextmanager
def _hushed() -> Iterator[None]:
    """Without the line in which Ray's native part tells the log level that it was given."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
