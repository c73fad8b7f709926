"""Plans -> decoded frames, by worker processes that write into shared memory, or in the main process.

The main process decides everything: it opens windows in the shared byte store, has them read, cuts each batch into
tasks for whichever worker has least to do, and hands batches out in order. Workers keep nothing, so one that dies or
hangs is replaced, and its tasks are given out again; what made it die or hang twice is given up as a bad sample.
"""

import logging
import mmap
import os
import signal
import subprocess
import sys
import time
import weakref
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path

import numpy as np
import torch

from shards.errors import UserError
from trainer.data_config import DataConfig
from trainer.plan import BatchPlan, Key
from trainer.work import ByteStore, DecodeTask, Progress, ReadTask, Row, Window, decode_row, read_window, unpack_row
from trainer.worker import THREADS, progress_cells

logger = logging.getLogger(__name__)

Output = tuple[BatchPlan, torch.Tensor, list[Row]]  # frames are uint8 [B, T, H, W, 3]

_ATTEMPTS = 2  # at one sample or shard, before it is given up for having killed or hung workers
_TASKS_PER_WORKER = 4  # that a batch is cut into, so that workers end together
_SPARE_SLOTS = 2  # batches the caller may hold while the next ones are decoded


@dataclass(eq=False)
class _Job:
    """A batch on its way."""

    plan: BatchPlan
    reading: set[int] = field(default_factory=set)  # its read tasks without an answer
    decoding: set[int] | None = None  # its decode tasks without an answer; None before they are given out
    slot: int = -1
    rows: list[Row] = field(default_factory=list)


@dataclass(eq=False)
class _Process:
    """A running worker."""

    process: subprocess.Popen
    connection: Connection
    progress: list[Progress]
    heard: float  # when it last answered, or got work
    answered: bool = False
    tasks: set[int] = field(default_factory=set)  # given to it, without an answer
    load: int = 0  # rows and windows in those tasks


def run_inline(plans: Iterator[BatchPlan], urls: list[str]) -> Iterator[Output]:
    """Do all work in this process, one batch at a time."""
    store, windows = ByteStore(), {}
    try:
        for plan in plans:
            for key, window in plan.opened.items():
                window.base = store.allocate(window.nbytes)
                window.failed = read_window(window, urls, store)
                windows[key] = window
            frames = np.empty(_shape(plan), np.uint8)
            rows = [
                decode_row(row, draw, windows[key], store, plan.recipe, plan.replace, frames[row])
                for row, (key, draw) in enumerate(plan.rows)
            ]
            for key in plan.closed:
                window = windows.pop(key)
                store.free(window.base, window.nbytes)
            yield plan, torch.from_numpy(frames), rows
    finally:
        store.close()


class Pool:
    """Worker processes of one rank.

    slot_bytes: of the largest batch. Workers start with the first `run` and end with `close`, with an error, or with
    the main process.
    """

    def __init__(self, urls: list[str], data: DataConfig, slot_bytes: int):
        self._urls, self._data = urls, data
        head = mmap.PAGESIZE * (1 + data.workers * THREADS * Progress.SIZE * 8 // mmap.PAGESIZE)
        self._slot_bytes = -(-slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        slots = data.prefetch + _SPARE_SLOTS
        self._slots_fd = os.memfd_create("gexia-batches")
        os.ftruncate(self._slots_fd, head + slots * self._slot_bytes)
        self._memory = mmap.mmap(self._slots_fd, 0)
        self._free = deque(head + i * self._slot_bytes for i in range(slots))
        self._cells = progress_cells(self._memory, data.workers)
        self._store = ByteStore()
        self._workers: list[_Process] = []
        self._windows: dict[Key, Window] = {}
        self._tasks: dict[int, tuple[ReadTask | DecodeTask, _Job]] = {}
        self._readers: dict[Key, int] = {}  # window -> its read task, while that has no answer
        self._attempts: Counter = Counter()
        self._next_task = 0

    def run(self, plans: Iterator[BatchPlan]) -> Iterator[Output]:
        """The plans' batches, in order."""
        if not self._workers:
            self._workers = [self._start(number) for number in range(self._data.workers)]
        jobs: deque[_Job] = deque()
        try:
            while True:
                self._top_up(jobs, plans)
                if not jobs:
                    return
                since = time.monotonic()
                while jobs[0].decoding != set():
                    self._hear(since, jobs[0])
                    self._dispatch(jobs)
                job = jobs.popleft()
                self._close_windows(job.plan.closed)
                frames = self._hand_out(job, others=any(other.decoding is not None for other in jobs))
                self._top_up(jobs, plans)
                yield job.plan, frames, sorted(job.rows, key=lambda row: row.row)
                del frames
        finally:
            if self._tasks:  # left early: what is under way is for nobody
                self._stop()
            self._close_windows(list(self._windows))

    def close(self) -> None:
        self._stop()
        self._store.close()
        os.close(self._slots_fd)

    # ---- planning ahead

    def _top_up(self, jobs: deque[_Job], plans: Iterator[BatchPlan]) -> None:
        """Have windows read for twice as many batches as are decoded ahead."""
        while len(jobs) < 2 * self._data.prefetch:
            plan = next(plans, None)
            if plan is None:
                break
            job = _Job(plan)
            for key, window in plan.opened.items():
                window.base = self._store.allocate(window.nbytes)
                self._windows[key] = window
                self._readers[key] = self._give(ReadTask(window), job)
            job.reading = {self._readers[key] for key, _ in plan.rows if key in self._readers}
            jobs.append(job)
        self._dispatch(jobs)

    def _dispatch(self, jobs: deque[_Job]) -> None:
        """Give out the decoding of batches whose windows are there, in order, while slots last."""
        for job in jobs:
            if job.decoding is not None:
                continue
            job.reading &= self._tasks.keys()
            if job.reading or not self._free:
                return
            job.slot, job.decoding = self._free.popleft(), set()
            count = len(job.plan.rows)
            step = max(1, -(-count // (len(self._workers) * _TASKS_PER_WORKER)))
            for first in range(0, count, step):
                rows = [(row, *job.plan.rows[row]) for row in range(first, min(first + step, count))]
                windows = {key: self._windows[key] for _, key, _ in rows}
                task = DecodeTask(job.slot, _shape(job.plan), job.plan.recipe, job.plan.replace, rows, windows)
                job.decoding.add(self._give(task, job))

    def _hand_out(self, job: _Job, others: bool) -> torch.Tensor:
        """The job's frames; their slot is free again when nobody holds them."""
        shape = _shape(job.plan)
        array = np.frombuffer(self._memory, np.uint8, count=int(np.prod(shape)), offset=job.slot).reshape(shape)
        if not self._free and not others:  # the caller keeps all earlier batches: without a copy nothing could go on
            array = array.copy()
            self._free.append(job.slot)
        else:
            weakref.finalize(array, self._free.append, job.slot)
        return torch.from_numpy(array)

    def _close_windows(self, keys: list[Key]) -> None:
        for key in keys:
            window = self._windows.pop(key)
            self._readers.pop(key, None)
            self._store.free(window.base, window.nbytes)

    # ---- talking to workers

    def _start(self, number: int) -> _Process:
        ours, theirs = Pipe()
        fds = (theirs.fileno(), self._store.fd, self._slots_fd)
        self._cells[number] = 0
        root = str(Path(__file__).parents[1])
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "trainer.worker", str(number), str(self._data.workers), *map(str, fds)]
        process = subprocess.Popen(command, pass_fds=fds, env=environment, stdin=subprocess.DEVNULL)
        theirs.close()
        ours.send(self._urls)
        progress = [Progress(cells) for cells in self._cells[number]]
        return _Process(process, ours, progress, heard=time.monotonic())

    def _give(self, task: ReadTask | DecodeTask, job: _Job) -> int:
        """Give a task to the worker with least to do; returns its number."""
        number = self._next_task
        self._next_task += 1
        self._tasks[number] = (task, job)
        self._send(number, min(self._workers, key=lambda worker: worker.load))
        return number

    def _send(self, number: int, worker: _Process) -> None:
        task, _ = self._tasks[number]
        if not worker.tasks:
            worker.heard = time.monotonic()
        worker.tasks.add(number)
        worker.load += _load(task)
        try:
            worker.connection.send((number, task))
        except (BrokenPipeError, ConnectionError):
            pass  # it died: `_hear` finds out, and gives the task out again

    def _hear(self, since: float, head: _Job) -> None:
        """Take the workers' answers; wait a second for one if there is none. `since`: when this wait began."""
        by_connection = {worker.connection: worker for worker in self._workers}
        ready = wait(list(by_connection), timeout=1.0)
        for connection in ready:
            worker = by_connection[connection]
            try:
                number, answer = connection.recv()
            except (EOFError, ConnectionError):
                self._replace(worker, "died")
                continue
            worker.heard, worker.answered = time.monotonic(), True
            worker.tasks.discard(number)
            self._take(number, answer, worker)
        if not ready:
            self._watch(since, head)

    def _take(self, number: int, answer, worker: _Process) -> None:
        if isinstance(answer, Exception):
            raise answer
        task, job = self._tasks.pop(number)
        worker.load -= _load(task)
        if isinstance(task, ReadTask):
            task.window.failed = answer
        else:
            job.rows += answer
            job.decoding.discard(number)

    # ---- when things go wrong

    def _watch(self, since: float, head: _Job) -> None:
        now = time.monotonic()
        if now - max(since, *(worker.heard for worker in self._workers)) > self._data.stall_seconds:
            doing = "; ".join(filter(None, map(self._doing, self._workers))) or "nothing"
            self._dump_stacks()
            raise UserError(
                f"no data for {self._data.stall_seconds:.0f} s (data.stall_seconds) in stream {head.plan.stream}, step "
                f"{head.plan.step}; workers are at: {doing}"
            )
        for worker in list(self._workers):
            times = [current[2] for current in map(Progress.current, worker.progress) if current]
            last = min(times) if times else worker.heard
            if worker.tasks and now - max(last, since) > self._data.read_seconds:
                worker.process.send_signal(signal.SIGUSR1)
                time.sleep(0.5)  # for its stacks to be written
                self._replace(worker, f"made no progress for {self._data.read_seconds:.0f} s")

    def _replace(self, worker: _Process, what: str) -> None:
        """Start another worker in place of one that died or hangs, and give it the same tasks."""
        worker.process.kill()
        number = self._workers.index(worker)
        current = [entry for entry in map(Progress.current, worker.progress) if entry]
        logger.warning("data worker %d (pid %d) %s at: %s", number, worker.process.pid, what, self._doing(worker) or "nothing")
        if not current and not worker.answered:
            raise UserError("data workers do not start; their errors are above")
        for task, detail, _ in current:
            self._attempts[task, detail] += 1
            if task in self._tasks and self._attempts[task, detail] >= _ATTEMPTS:
                self._give_up(self._tasks[task][0], detail, what)
        self._workers[number] = self._start(number)
        worker.connection.close()
        for task in sorted(worker.tasks):
            self._send(task, self._workers[number])

    def _give_up(self, task: ReadTask | DecodeTask, detail: int, what: str) -> None:
        kind = "stalled" if what != "died" else "killed_worker"
        if isinstance(task, ReadTask):
            task.skip[detail] = (kind, f"a worker {what} reading it, {_ATTEMPTS} times")
        else:
            row, draw = unpack_row(detail)
            key = next(key for r, key, _ in task.rows if r == row)
            self._windows[key].failed[draw] = (kind, f"a worker {what} decoding it, {_ATTEMPTS} times")

    def _doing(self, worker: _Process) -> str:
        """What a worker's threads are at, by the tars' names."""
        places = []
        for entry in filter(None, map(Progress.current, worker.progress)):
            task, detail, _ = entry
            if task in self._tasks:
                places.append(self._place(self._tasks[task][0], detail))
        return ", ".join(sorted(set(places)))

    def _place(self, task: ReadTask | DecodeTask, detail: int) -> str:
        if isinstance(task, ReadTask):
            return f"reading {self._urls[detail]}"
        row, draw = unpack_row(detail)
        key = next(key for r, key, _ in task.rows if r == row)
        return f"decoding a sample of {self._urls[task.windows[key].shards[draw]]}"

    def _dump_stacks(self) -> None:
        for worker in self._workers:
            worker.process.send_signal(signal.SIGUSR1)
        time.sleep(0.5)

    def _stop(self) -> None:
        for worker in self._workers:
            worker.connection.close()
            worker.process.kill()
        for worker in self._workers:
            worker.process.wait()
        self._workers, self._tasks, self._readers = [], {}, {}


def _shape(plan: BatchPlan) -> tuple[int, ...]:
    return (len(plan.rows), plan.recipe.frames, plan.recipe.size, plan.recipe.size, 3)


def _load(task: ReadTask | DecodeTask) -> int:
    return 1 if isinstance(task, ReadTask) else len(task.rows)
