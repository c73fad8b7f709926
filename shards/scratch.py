"""Temporary folders that go with their process: what a killed one leaves goes when the next folder is made."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# A folder has its final name once its owner holds it.
_NEW, _HELD = "gexia-new-", "gexia-scratch-"


@contextmanager
def folder() -> Iterator[str]:
    """A new folder under the system's temporary one, for as long as the context; other owners' dead ones are removed."""
    _sweep()
    made = tempfile.mkdtemp(prefix=_NEW)
    owner = os.open(made, os.O_RDONLY)
    try:
        fcntl.flock(owner, fcntl.LOCK_EX)  # ends with the process, however that ends
        path = os.path.join(os.path.dirname(made), os.path.basename(made).replace(_NEW, _HELD, 1))
        os.rename(made, path)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(owner)


def _sweep() -> None:
    for path in Path(tempfile.gettempdir()).glob(f"{_HELD}*"):
        try:
            owner = os.open(path, os.O_RDONLY)
        except OSError:
            continue  # it is going already, or is another user's
        try:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            pass  # its owner lives
        finally:
            os.close(owner)
