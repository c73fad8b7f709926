"""Plans -> decoded frames, by worker processes that write into shared memory, or in the main process.

The main process decides everything: it opens windows in the shared byte store, has them read, cuts each batch into
tasks for whichever worker has least to do, and hands batches out in order. Workers keep nothing, so one that dies or
hangs is replaced, and its tasks are given out again; what made it die or hang twice is given up as a bad sample.
"""

import logging
import mmap
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import torch

from shards.errors import UserError
from trainer.data_config import DataConfig
from trainer.plan import BatchPlan, Key
from trainer.tars import Tars
from trainer.work import ByteStore, DecodeTask, Progress, ReadTask, Row, Window, decode_row, read_window, unpack_row
from trainer.worker import READY, THREADS, progress_cells

logger = logging.getLogger(__name__)

Output = tuple[BatchPlan, torch.Tensor, list[Row]]  # frames are uint8 [B, T, H, W, 3]

_ATTEMPTS = 2  # workers that a sample or shard may kill or hang before it is given up
_START_SECONDS = 60  # a worker may take to start
_TASKS_PER_WORKER = 4  # that a batch is cut into, so that workers end together
_SPARES = 8  # windows tried for a row whose own has no good sample
_SPARE_SLOTS = 2  # batches the caller may hold while the next ones are decoded


@dataclass(eq=False)
class _Job:
    """A batch on its way."""

    plan: BatchPlan
    reading: set[int] = field(default_factory=set)  # its read tasks without an answer
    decoding: set[int] | None = None  # its decode tasks without an answer; None before they are given out
    slot: int = -1
    rows: dict[int, Row] = field(default_factory=dict)
    spares: Counter = field(default_factory=Counter)  # row -> spare windows tried
    filling: dict[int, list] = field(default_factory=dict)  # read task of a spare window -> the row to decode from it

    def done(self) -> bool:
        return self.decoding is not None and not self.decoding and not self.filling


@dataclass(eq=False)
class _Process:
    """A running worker."""

    process: subprocess.Popen
    connection: Connection
    outbox: SimpleQueue  # pickled messages to it; None ends them
    progress: list[Progress]
    is_first: bool  # not in the place of another: workers that start again and again are no progress
    heard: float  # when it started, last answered, or got work after it had none
    started: bool = False
    tasks: set[int] = field(default_factory=set)  # given to it, without an answer
    load: int = 0  # rows and windows in those tasks


def run_inline(plans: Iterator[BatchPlan], tars: Tars) -> Iterator[Output]:
    """Do all work in this process, one batch at a time."""
    store, windows = ByteStore(), {}

    def fetch(window: Window) -> Window:
        window.base = store.allocate(window.nbytes)
        window.failed = read_window(window, tars, store)
        return window

    def decode(plan: BatchPlan, row: int, out: np.ndarray) -> Row:
        key, draw = plan.rows[row]
        done = decode_row(row, draw, windows[key], store, plan.recipe, bool(plan.spare), out)
        for attempt in range(1, _SPARES + 1):
            if done.decoded or not plan.spare:
                break
            window = fetch(plan.spare(key, attempt))
            done.decoded = decode_row(row, draw, window, store, plan.recipe, True, out).decoded
            store.free(window.base, window.nbytes)
        return done

    try:
        for plan in plans:
            windows.update((key, fetch(window)) for key, window in plan.opened.items())
            frames = np.empty(_shape(plan), np.uint8)
            rows = [decode(plan, row, frames[row]) for row in range(len(plan.rows))]
            for window in map(windows.pop, plan.closed):
                store.free(window.base, window.nbytes)
            yield plan, torch.from_numpy(frames), rows
    finally:
        store.close()


class Pool:
    """Worker processes of one rank.

    slot_bytes: of the largest batch. Workers start with the first `run` and end with `close`, with an error, or with
    the main process.
    """

    def __init__(self, tars: Tars, data: DataConfig, slot_bytes: int):
        self._tars, self._data = tars, data
        head = mmap.PAGESIZE * (1 + data.workers * THREADS * Progress.SIZE * 8 // mmap.PAGESIZE)
        self._slot_bytes = -(-slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        slots = data.prefetch + _SPARE_SLOTS
        self._slots = open(os.memfd_create("gexia-batches"), "r+b", buffering=0)
        self._slots.truncate(head + slots * self._slot_bytes)
        self._memory = mmap.mmap(self._slots.fileno(), 0)
        self._free = deque(head + i * self._slot_bytes for i in range(slots))
        self._cells = progress_cells(self._memory, data.workers)
        self._store = ByteStore()
        self._workers: list[_Process] = []
        self._windows: dict[Key, Window] = {}
        self._tasks: dict[int, tuple[ReadTask | DecodeTask, _Job]] = {}
        self._readers: dict[Key, int] = {}  # window -> its read task, while that has no answer
        self._attempts: Counter = Counter()
        self._heard = 0.0  # when a worker last had data to show for a task
        self._next_task = 0

    def run(self, plans: Iterator[BatchPlan]) -> Iterator[Output]:
        """The plans' batches, in order."""
        if not self._workers:
            self._workers = [self._start(number, is_first=True) for number in range(self._data.workers)]
        jobs: deque[_Job] = deque()
        try:
            while True:
                self._top_up(jobs, plans)
                if not jobs:
                    return
                since = time.monotonic()
                while not jobs[0].done():
                    self._hear(since, jobs[0])
                    self._dispatch(jobs)
                job = jobs.popleft()
                self._close_windows(job.plan.closed)
                frames = self._hand_out(job, others=any(other.decoding is not None for other in jobs))
                self._top_up(jobs, plans)
                yield job.plan, frames, [job.rows[row] for row in range(len(job.rows))]
                del frames
        finally:
            if self._tasks:  # left early: what is under way is for nobody
                self._stop()
            self._free.extend(job.slot for job in jobs if job.decoding is not None)
            self._close_windows(list(self._windows))

    def close(self) -> None:
        self._stop()
        self._store.close()
        self._slots.close()

    # ---- planning ahead

    def _top_up(self, jobs: deque[_Job], plans: Iterator[BatchPlan]) -> None:
        """Have windows read for twice as many batches as are decoded ahead."""
        while len(jobs) < 2 * self._data.prefetch:
            plan = next(plans, None)
            if plan is None:
                break
            job = _Job(plan)
            for key, window in plan.opened.items():
                self._readers[key] = self._open(key, window, job)
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
                self._decode(job, rows)

    def _open(self, key: Key, window: Window, job: _Job) -> int:
        """Have a window read; returns the task's number."""
        window.base = self._store.allocate(window.nbytes)
        self._windows[key] = window
        return self._give(ReadTask(window), job)

    def _decode(self, job: _Job, rows: list[tuple[int, Key, int]]) -> None:
        windows = {key: self._windows[key] for _, key, _ in rows}
        task = DecodeTask(job.slot, _shape(job.plan), job.plan.recipe, bool(job.plan.spare), rows, windows)
        job.decoding.add(self._give(task, job))

    def _replace_row(self, row: int, job: _Job) -> None:
        """Have a row without a good sample in its own window filled from another."""
        key, draw = job.plan.rows[row]
        job.spares[row] += 1
        window = job.plan.spare(key, job.spares[row])
        spare = (*key, "spare", job.plan.step, row, job.spares[row])
        job.plan.closed.append(spare)
        job.filling[self._open(spare, window, job)] = [(row, spare, draw)]

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

    def _start(self, number: int, is_first: bool) -> _Process:
        ours, theirs = Pipe()
        fds = (theirs.fileno(), self._store.fd, self._slots.fileno())
        self._cells[number] = 0
        root = str(Path(__file__).parents[1])
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
            "OMP_NUM_THREADS": "1",
        }
        # -P: a queue.py or the like in the folder that training was started from is not theirs.
        command = [sys.executable, "-P", "-m", "trainer.worker", str(number), str(self._data.workers), *map(str, fds)]
        process = subprocess.Popen(command, pass_fds=fds, env=environment, stdin=subprocess.DEVNULL)
        theirs.close()
        outbox = SimpleQueue()
        threading.Thread(target=_send_all, args=(outbox, ours), daemon=True).start()
        outbox.put(pickle.dumps(self._tars))
        progress = [Progress(cells) for cells in self._cells[number]]
        worker = _Process(process, ours, outbox, progress, is_first, heard=time.monotonic())
        weakref.finalize(worker, outbox.put, None)
        return worker

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
        worker.outbox.put(pickle.dumps((number, task)))

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
            worker.heard, worker.started = time.monotonic(), True
            if number == READY:
                if worker.is_first:
                    self._heard = worker.heard
            else:
                worker.tasks.discard(number)
                self._take(number, answer, worker)
        if not ready:
            self._watch(since, head)

    def _take(self, number: int, answer, worker: _Process) -> None:
        if isinstance(answer, Exception):
            raise answer
        task, job = self._tasks.pop(number)
        worker.load -= _load(task)
        if _has_data(task, answer):
            self._heard = worker.heard
        if isinstance(task, ReadTask):
            task.window.failed = answer
            if number in job.filling:
                self._decode(job, job.filling.pop(number))
            return
        job.decoding.discard(number)
        for row in answer:
            first = job.rows.setdefault(row.row, row)
            first.decoded = row.decoded
            if row.decoded is None and job.plan.spare and job.spares[row.row] < _SPARES:
                self._replace_row(row.row, job)

    # ---- when things go wrong

    def _watch(self, since: float, head: _Job) -> None:
        now = time.monotonic()
        started = all(worker.started for worker in self._workers)
        patience = self._data.stall_seconds if started else max(self._data.stall_seconds, _START_SECONDS)
        if now - max(since, self._heard) > patience:
            doing = "; ".join(filter(None, map(self._doing, self._workers))) or "nothing"
            self._dump_stacks()
            raise UserError(
                f"no data for {patience:.0f} s (loader.stall_seconds) in stream {head.plan.stream}, step "
                f"{head.plan.step}; workers are at: {doing}"
            )
        for worker in list(self._workers):
            times = [current[2] for current in map(Progress.current, worker.progress) if current]
            last = min(times) if times else worker.heard
            patience = self._data.read_seconds if worker.started else max(self._data.read_seconds, _START_SECONDS)
            if worker.tasks and now - max(last, since) > patience:
                worker.process.send_signal(signal.SIGUSR1)
                time.sleep(0.5)  # for its stacks to be written
                self._replace(worker, f"made no progress for {patience:.0f} s")

    def _replace(self, worker: _Process, what: str) -> None:
        """Start another worker in place of one that died or hangs, and give it the same tasks."""
        worker.process.kill()
        number = self._workers.index(worker)
        current = [entry for entry in map(Progress.current, worker.progress) if entry]
        doing = self._doing(worker) or "nothing"
        logger.warning("data worker %d (pid %d) %s at: %s", number, worker.process.pid, what, doing)
        if not current and not worker.started:
            raise UserError("data workers do not start; their errors are above")
        self._suspect({(task, detail) for task, detail, _ in current if task in self._tasks}, what)
        self._workers[number] = self._start(number, is_first=False)
        for task in sorted(worker.tasks):
            self._send(task, self._workers[number])

    def _suspect(self, doing: set[tuple[int, int]], what: str) -> None:
        """Count what a worker died or hung at; give up shards and samples at which that happened before."""
        reason = "killed_worker" if what == "died" else "stalled", f"a worker {what} at it, {_ATTEMPTS} times"
        reading = {detail for number, detail in doing if isinstance(self._tasks[number][0], ReadTask)}
        decoding = {entry for entry in doing if isinstance(self._tasks[entry[0]][0], DecodeTask)}
        self._attempts.update([*reading, *decoding])
        given_up = {shard: reason for shard in reading if self._attempts[shard] >= _ATTEMPTS}
        for task, _ in self._tasks.values():
            if isinstance(task, ReadTask):
                task.skip |= given_up
        for number, detail in decoding:
            if self._attempts[number, detail] >= _ATTEMPTS:
                key, draw = _drawn(self._tasks[number][0], detail)
                self._windows[key].failed[draw] = reason

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
            return f"reading {self._tars.url(detail)}"
        key, draw = _drawn(task, detail)
        return f"decoding a sample of {self._tars.url(task.windows[key].shards[draw])}"

    def _dump_stacks(self) -> None:
        for worker in self._workers:
            worker.process.send_signal(signal.SIGUSR1)
        time.sleep(0.5)

    def _stop(self) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.wait()
        self._workers, self._tasks, self._readers = [], {}, {}


def _send_all(outbox: SimpleQueue, connection: Connection) -> None:
    """A thread's work, so that a worker that takes nothing in blocks nobody else; closes the connection at last."""
    while (message := outbox.get()) is not None:
        with suppress(OSError):  # it died: `_hear` finds out, and gives its tasks out again
            connection.send_bytes(message)
    connection.close()


def _shape(plan: BatchPlan) -> tuple[int, ...]:
    return (len(plan.rows), plan.recipe.frames, plan.recipe.size, plan.recipe.size, 3)


def _drawn(task: DecodeTask, detail: int) -> tuple[Key, int]:
    """Window and draw of what a worker's progress says it decodes."""
    row, draw = unpack_row(detail)
    return next(key for number, key, _ in task.rows if number == row), draw


def _has_data(task: ReadTask | DecodeTask, answer) -> bool:
    """Whether any sample was read or decoded: shards that hang and are given up answer too."""
    if isinstance(task, ReadTask):
        return len(answer) < len(task.window.sizes)
    return any(row.decoded for row in answer)


def _load(task: ReadTask | DecodeTask) -> int:
    return 1 if isinstance(task, ReadTask) else len(task.rows)
