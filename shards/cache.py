"""A bounded folder of pages of remote files, which any number of processes fill and read at once.

    FOLDER/lock             held while bytes are reserved; its content is how many the folder holds
    FOLDER/<file>/<page>    a page and its CRC; <file> is a hash of the file's URL and version

A training epoch asks for every page once, in an order of its own, so what is there is as likely to be asked for next
as what comes. Hence a full cache keeps what it has; only files that nobody read for an hour give way to new pages.
Putting out the page used longest ago would keep those that were asked for last, which come again last.

A cache never fails a read: what it cannot keep is fetched again.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shards import storage
from shards.errors import UserError

logger = logging.getLogger(__name__)

PAGE = 1 << 20  # bytes; a read fetches at most two pages more than it needs
_CRC = 4
_IDLE_SECONDS = 3600  # after which a file's pages may be put out
_PAUSE_SECONDS = 60  # between two looks for room in a full cache


class RangeCache:
    """Pages in `folder`, at most `max_bytes` of them. Can be sent to other processes.

    Raises UserError if the folder cannot be made or written.
    """

    def __init__(self, folder: str, max_bytes: int):
        self.folder, self.max_bytes = Path(folder).expanduser().resolve(), max_bytes
        self._pause_until, self._touched = 0.0, {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._reserving():
                pass
        except OSError as error:
            raise UserError(f"cache folder {folder}: {error.strerror or error}; choose another") from None

    def read(self, name: str, length: int, offset: int, size: int, fetch: Callable[[int, int], bytes]) -> bytes:
        """The bytes [offset, offset + size) of a file of `length` bytes, from pages or by `fetch(offset, size)`.

        name: changes when the file's bytes do. What `fetch` raises passes through.
        """
        folder = self.folder / hashlib.sha256(name.encode()).hexdigest()[:24]
        numbers = range(offset // PAGE, -(-(offset + size) // PAGE))
        pages = {number: self._load(folder, number, min(PAGE, length - number * PAGE)) for number in numbers}
        missing = [number for number, page in pages.items() if page is None]
        if missing and time.monotonic() < self._pause_until:
            return fetch(offset, size)
        for first, last in _runs(missing):
            start, end = first * PAGE, min((last + 1) * PAGE, length)
            data = fetch(start, end - start)
            for number in range(first, last + 1):
                pages[number] = data[number * PAGE - start :][:PAGE]
                self._store(folder, number, pages[number])
        start = offset - numbers[0] * PAGE if size else 0
        return b"".join(pages.values())[start : start + size]

    def _load(self, folder: Path, number: int, size: int) -> bytes | None:
        """A page that is there and whole."""
        try:
            data = (folder / str(number)).read_bytes()
        except OSError:
            return None
        page = data[:-_CRC]
        if len(page) != size or zlib.crc32(page).to_bytes(_CRC, "little") != data[-_CRC:]:
            with suppress(OSError):
                (folder / str(number)).unlink()
            return None
        self._touch(folder)
        return page

    def _touch(self, folder: Path) -> None:
        """Say that a file is in use, once a minute."""
        now = time.time()
        if now - self._touched.get(folder.name, 0) > 60:
            self._touched[folder.name] = now
            with suppress(OSError):
                os.utime(folder)

    def _store(self, folder: Path, number: int, page: bytes) -> None:
        temporary = None
        try:
            temporary = self._reserve(folder / str(number), len(page) + _CRC)
            if temporary:
                with open(temporary, "r+b") as file:
                    file.write(page + zlib.crc32(page).to_bytes(_CRC, "little"))
                os.replace(temporary, folder / str(number))
        except OSError as error:
            self._pause_until = time.monotonic() + _PAUSE_SECONDS
            logger.warning("cache folder %s: %s; nothing is added for a minute", self.folder, error)
            if temporary:
                with suppress(OSError):
                    os.unlink(temporary)

    def _reserve(self, path: Path, size: int) -> str | None:
        """A temporary file of `size` bytes, counted; None where the page is there already or finds no room."""
        with self._reserving() as count:
            if path.exists():
                return None
            if count.bytes + size > self.max_bytes:
                count.bytes = self._make_room(size)
            if count.bytes + size > self.max_bytes:
                self._pause_until = time.monotonic() + _PAUSE_SECONDS
                return None
            path.parent.mkdir(exist_ok=True)
            temporary = storage.temporary_name(str(path))
            with open(temporary, "xb") as file:
                os.truncate(file.fileno(), size)
            count.bytes += size
            return temporary

    def _make_room(self, size: int) -> int:
        """Delete pages of idle files, longest idle first, until there is room; returns the bytes that are left."""
        sizes = {path: _sweep(path) for path in self.folder.iterdir() if path.is_dir()}
        used, now = sum(sizes.values()), time.time()
        for path in sorted(sizes, key=lambda path: path.stat().st_mtime):
            if used + size <= self.max_bytes or now - path.stat().st_mtime < _IDLE_SECONDS:
                break
            shutil.rmtree(path, ignore_errors=True)
            used -= sizes[path] - _sweep(path)
        return used

    @contextmanager
    def _reserving(self) -> Iterator["_Count"]:
        """The folder's count of bytes, for one process and thread at a time."""
        with open(os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o666), "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            text = file.read()
            count = _Count(int(text) if text.isdigit() else self._make_room(0))
            yield count
            file.seek(0)
            file.truncate()
            file.write(str(count.bytes))


class _Count:
    def __init__(self, used: int):
        self.bytes = used


def _sweep(folder: Path) -> int:
    """Bytes in a folder, once temporaries that killed processes left are gone."""
    used = 0
    with suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            status = entry.stat()
            if entry.name.startswith(".") and time.time() - status.st_mtime > _IDLE_SECONDS:
                os.unlink(entry)
            else:
                used += status.st_size
    return used


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """First and last of each run of neighbours in ascending numbers."""
    runs = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs
