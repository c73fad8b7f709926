"""Progress by clips: a bar on a terminal, a line a minute where the output goes to a file."""

import sys
import time
from threading import Event, Thread

from tqdm import tqdm

_LINE_SECONDS = 60


class Progress:
    """Counts clips of finished rows. `done` are those that an earlier run committed."""

    def __init__(self, total: int, done: int):
        self.total, self.done, self._first = total, done, done
        self._started = time.monotonic()
        self._bar, self._over = None, Event()
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=done, unit="clip", smoothing=0.05, dynamic_ncols=True)

    def add(self, clips: int) -> None:
        self.done += clips
        if self._bar is not None:
            self._bar.update(clips)

    def __enter__(self) -> "Progress":
        if self._bar is None:  # a row may take many minutes, so lines do not wait for one
            Thread(target=self._log, daemon=True).start()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._over.set()
        if self._bar is not None:
            self._bar.close()

    def _log(self) -> None:
        while not self._over.wait(_LINE_SECONDS):
            print(self._line(time.monotonic()), file=sys.stderr, flush=True)

    def _line(self, now: float) -> str:
        rate = (self.done - self._first) / (now - self._started)
        left = f"{tqdm.format_interval((self.total - self.done) / rate)} left" if rate else "no estimate yet"
        return f"{self.done:,} of {self.total:,} clips, {rate:.1f} clips/s, {left}"
