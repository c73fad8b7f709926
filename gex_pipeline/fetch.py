"""Videos that are not plain local files -> scratch files, fetched ahead while earlier ones are decoded.

A location is a local path, an fsspec URL, or either with `#OFFSET+SIZE` behind it: a byte range of that file, such as
the member of a tar. Plain local files are read where they lie.

Scratch is bounded: half of a task's is for the video whose turn it is, and fetching ahead waits while the other half is
full. Silence and errors of a server cost a few tries and then leave the row pending; what a server says of
one video for good (it is not there, it is forbidden) is that video's failure.
"""

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from gex_pipeline.config import FetchConfig
from gex_pipeline.errors import Transient
from shards import scratch, storage

_RANGE = re.compile(r"(?P<file>.+)#(?P<offset>\d+)\+(?P<size>\d+)", re.DOTALL)
# Asked for at a time, and once more ahead by the library: the least that must come within the deadline.
_BLOCK = 2 << 20
_FIRST_PAUSE = 0.5  # seconds before the second try; each further pause is twice as long
_HTTP = ("http://", "https://")
# HTTP statuses that are about the server's moment; other 4xx are about the URL.
_PASSING_STATUSES = {408, 421, 425, 429}


class Unavailable(Exception):
    """A video that will not come, whatever is tried; `kind` is one word for the ledger."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


def range_of(location: str) -> tuple[str, int, int] | None:
    """File, offset and size of a location that is a byte range."""
    match = _RANGE.fullmatch(location)
    return match and (match["file"], int(match["offset"]), int(match["size"]))


def ranged(file: str, offset: int, size: int) -> str:
    """The location of a byte range."""
    return f"{file}#{offset}+{size}"


def needs_fetching(location: str) -> bool:
    return storage.local_path(location) is None or range_of(location) is not None


@dataclass
class _Job:
    """One video on its way. `generation` counts its tries: a try that went silent is left behind by the next one."""

    index: int
    location: str
    path: str
    bytes: int = 0
    generation: int = 0
    progress: float = 0.0  # time.monotonic() of the last sign of life
    done: bool = False
    error: Exception | None = None


class Fetch:
    """The locations of a row, taken in this order, each fetched before its turn where it must be. A context manager.

    `waited` is for how many seconds taking has had to wait.
    """

    def __init__(self, locations: list[str], config: FetchConfig):
        self.config, self.waited = config, 0.0
        self._half = config.scratch_gb * 1e9 / 2
        self._folder = ExitStack()
        remote = list(filter(needs_fetching, locations))
        folder = self._folder.enter_context(scratch.folder()) if remote else ""
        self._jobs = [_Job(i, place, os.path.join(folder, str(i))) for i, place in enumerate(remote)]
        self._changed = threading.Condition()
        self._started = self._turn = self._held = 0
        self._closed = False

    def __enter__(self) -> "Fetch":
        for _ in range(min(self.config.parallel, len(self._jobs))):
            self._start_worker()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._folder.close()  # workers make and rename files under the same lock, and none once it is closed

    @contextmanager
    def take(self, location: str) -> Iterator[str]:
        """The next location as a local path, for as long as it is needed.

        Unavailable for a video that will not come; Transient where the row must stay pending.
        """
        if not needs_fetching(location):
            yield storage.local_path(location)
            return
        job = self._jobs[self._turn]
        assert job.location == location, "videos are taken in the order in which they were announced"
        started = time.monotonic()
        try:
            self._wait_for(job, started)
            self.waited += time.monotonic() - started
            if job.error is not None:
                raise job.error
            yield job.path
        finally:
            with self._changed:
                self._held -= job.bytes
                self._turn += 1
                self._changed.notify_all()
            _remove(job.path)

    def _wait_for(self, job: _Job, started: float) -> None:
        """Until the job is done. A try from which no byte has come for too long is given up, and made again."""
        with self._changed:
            self._changed.notify_all()  # it is this job's turn now: it need not spare scratch any more
            while not job.done:
                silent = time.monotonic() - max(job.progress, started)
                if silent < self.config.timeout_seconds:
                    self._changed.wait(self.config.timeout_seconds - silent)
                    continue
                job.generation += 1
                self._held -= job.bytes
                job.bytes, started = 0, time.monotonic()
                if job.generation > self.config.retries:
                    job.error = Transient(f"{job.location}: no byte came for {self.config.timeout_seconds:g} s")
                    job.done = True
                else:
                    self._start_worker(job)

    def _start_worker(self, job: _Job | None = None) -> None:
        # A thread that hangs in a system call or a library cannot be ended; as a daemon it keeps nothing from ending.
        threading.Thread(target=self._work, args=(job,), daemon=True, name="fetch").start()

    def _work(self, job: _Job | None) -> None:
        """Fetch the job, then those that nobody has started, until there are none."""
        while job or (job := self._next()):
            generation = job.generation
            error = self._fetched(job, generation)
            with self._changed:
                if self._closed or job.generation != generation:
                    return  # another worker has taken this one's place
                job.error, job.done = error, True
                self._changed.notify_all()
            job = None

    def _next(self) -> _Job | None:
        with self._changed:
            if self._closed or self._started == len(self._jobs):
                return None
            job = self._jobs[self._started]
            self._started += 1
            return job

    def _fetched(self, job: _Job, generation: int) -> Exception | None:
        """Try until the file is there (None) or there is no hope."""
        pause = _FIRST_PAUSE
        for tries_left in reversed(range(self.config.retries + 1)):
            try:
                self._copy(job, generation)
                return None
            except Exception as error:  # storage libraries have error classes of their own
                if (permanent := _permanent(job.location, error)) is not None:
                    return permanent
                if not tries_left or self._closed or job.generation != generation:
                    return Transient(f"{job.location}: {_line(error)}")
            time.sleep(pause)
            pause *= 2
        return None

    def _copy(self, job: _Job, generation: int) -> None:
        path = f"{job.path}.{generation}"
        try:
            with self._changed:
                self._check_wanted(job, generation)
                self._held -= job.bytes
                job.bytes = 0
                file = open(path, "wb")
            with file:
                for block in _blocks(job.location):
                    self._account(job, generation, len(block))
                    file.write(block)
            with self._changed:
                self._check_wanted(job, generation)
                os.replace(path, job.path)
        finally:
            _remove(path)

    def _check_wanted(self, job: _Job, generation: int) -> None:
        if self._closed or job.generation != generation:
            raise Transient("given up")

    def _account(self, job: _Job, generation: int, size: int) -> None:
        """Count bytes of a job, and hold its worker back while scratch is full and another video's turn is sooner."""
        with self._changed:
            self._check_wanted(job, generation)
            job.bytes += size
            self._held += size
            job.progress = time.monotonic()
            if job.bytes > self._half:
                raise Unavailable("too_large", f"over half of fetch.scratch_gb ({self.config.scratch_gb:g} GB)")
            while self._held > self._half and job.index > self._turn and not self._closed:
                self._changed.wait()
            job.progress = time.monotonic()


def _blocks(location: str) -> Iterator[bytes]:
    if (span := range_of(location)) is not None:
        file, offset, size = span
        for at in range(0, size, _BLOCK):
            yield _read_range(file, offset + at, min(_BLOCK, size - at))
        return
    with storage.open_read(location, block_size=_BLOCK) as source:
        while block := source.read(_BLOCK):
            yield block


def _read_range(file: str, offset: int, size: int) -> bytes:
    """EOFError where the file ends before the range does; of one that begins behind the end object stores make an error,
    each its own."""
    try:
        return storage.read_range(file, offset, size)
    except (OSError, OverflowError):
        with suppress(OSError):
            length = storage.size(file)  # None where a server does not tell
            if length is not None and offset >= length:
                raise EOFError from None
        raise


def _permanent(location: str, error: Exception) -> Unavailable | None:
    """The error as the video's own failure, if it is one."""
    if isinstance(error, Unavailable):
        return error
    while location.startswith(_HTTP) and isinstance(error, OSError) and error.__cause__:
        error = error.__cause__  # fsspec says "not found" whatever went wrong, a dead server too
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return Unavailable("missing_file", "no such file")
    if isinstance(error, EOFError):
        return Unavailable("truncated", f"the file ends before byte range {location.rsplit('#', 1)[-1]}")
    # Of object stores a refusal is not believed: credentials that have run out must not fail every video.
    status = getattr(error, "status", None)  # aiohttp's, which fsspec lets through
    if isinstance(status, int) and 400 <= status < 500 and status not in _PASSING_STATUSES:
        return Unavailable("missing_file" if status in (404, 410) else "no_permission", f"HTTP status {status}")
    return None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
