"""A worker process: reads windows and decodes rows for a `pool.Pool`, which starts it as

    python -m trainer.worker NUMBER WORKERS CONNECTION_FD STORE_FD SLOTS_FD

A program of its own and no fork or spawn of the training script: it starts in a fraction of a second, holds neither
torch nor the script's modules, and ends as soon as the main process does, however that ends. Everything large goes
through the two anonymous files; the connection carries tasks and their answers.
"""

import faulthandler
import mmap
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection
from queue import SimpleQueue

import numpy as np

from trainer.tars import Tars
from trainer.work import ByteStore, DecodeTask, Progress, ReadTask, decode_row, pack_row, read_window

READY = -1  # sent in place of a task's number, once at the start
READERS = 4  # threads that read: what a remote store needs to be busy
THREADS = 1 + READERS


def progress_cells(slots: mmap.mmap, workers: int) -> np.ndarray:
    """The view of the slots file's head that `Progress` works on: int64 [workers, threads, 3]."""
    shape = (workers, THREADS, Progress.SIZE)
    return np.frombuffer(slots, np.int64, count=int(np.prod(shape))).reshape(shape)


class Worker:
    def __init__(self, number: int, workers: int, connection: Connection, store: ByteStore, slots: mmap.mmap):
        self._connection, self._store, self._slots = connection, store, slots
        self._tars: Tars = connection.recv()
        self._progress = [Progress(cells) for cells in progress_cells(slots, workers)[number]]
        self._reads, self._decodes, self._send_lock = SimpleQueue(), SimpleQueue(), threading.Lock()

    def run(self) -> None:
        """Serve until the main process goes away."""
        for thread in range(1, THREADS):
            threading.Thread(target=self._serve, args=(self._reads, self._read, thread), daemon=True).start()
        threading.Thread(target=self._serve, args=(self._decodes, self._decode, 0), daemon=True).start()
        self._connection.send((READY, None))
        while True:
            number, task = self._connection.recv()
            (self._reads if isinstance(task, ReadTask) else self._decodes).put((number, task))

    def _serve(self, queue: SimpleQueue, do, thread: int) -> None:
        progress = self._progress[thread]
        while True:
            number, task = queue.get()
            try:
                answer = do(number, task, progress)
            except Exception as error:  # a defect, not a bad sample: the main process raises it
                answer = error
            progress.stop()
            with self._send_lock:
                self._connection.send((number, answer))

    def _read(self, number: int, task: ReadTask, progress: Progress):
        return read_window(task.window, self._tars, self._store, task.skip, lambda shard: progress.start(number, shard))

    def _decode(self, number: int, task: DecodeTask, progress: Progress):
        out = np.frombuffer(self._slots, np.uint8, count=int(np.prod(task.shape)), offset=task.slot).reshape(task.shape)
        return [
            decode_row(
                row,
                draw,
                task.windows[key],
                self._store,
                task.recipe,
                task.replace,
                out[row],
                lambda candidate: progress.start(number, pack_row(row, candidate)),
            )
            for row, key, draw in task.rows
        ]


def main(argv: list[str]) -> None:
    number, workers, connection, store, slots = map(int, argv)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # the watchdog asks for stacks
    try:
        Worker(number, workers, Connection(connection), ByteStore(store), mmap.mmap(slots, 0)).run()
    except (EOFError, ConnectionError):
        os._exit(0)  # the main process is gone; a reader may hang in a system call


if __name__ == "__main__":
    main(sys.argv[1:])
