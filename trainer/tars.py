"""The tars that windows are read from, by number: what the main process tells its workers of them."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from shards import storage
from shards.cache import RangeCache
from shards.errors import DatasetError

_RETRY_PAUSES = (0.1, 1.0)  # before a failed read is tried again
_Answer = TypeVar("_Answer")


class Tar(NamedTuple):
    """One tar. length: its bytes, as the manifest says. version: changes when they do."""

    url: str
    length: int
    version: str


@dataclass
class Tars:
    """Tars by number. cache: where pages of remote ones are kept."""

    tars: list[Tar]
    cache: RangeCache | None = None

    def url(self, number: int) -> str:
        return self.tars[number].url

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Exactly the bytes [offset, offset + size) of a tar, tried again where that may help.

        Raises FileNotFoundError, EOFError where the tar ends before, and OSError after the last attempt.
        """
        return try_again(lambda: self._read(self.tars[number], offset, size))

    def _read(self, tar: Tar, offset: int, size: int) -> bytes:
        whole = 0 <= offset and offset + size <= tar.length
        if self.cache is None or not whole or storage.local_path(tar.url) is not None:
            return storage.read_range(tar.url, offset, size)
        name = f"{tar.url} {tar.length} {tar.version}"
        try:
            return self.cache.read(name, tar.length, offset, size, lambda *span: storage.read_range(tar.url, *span))
        except EOFError:  # a page reaches beyond a cut tar's end; this sample may not
            return storage.read_range(tar.url, offset, size)


def try_again(read: Callable[[], _Answer]) -> _Answer:
    """What `read` returns or at last raises, tried again where that may help."""
    for pause in _RETRY_PAUSES:
        try:
            return read()
        except (OSError, DatasetError) as error:
            if not is_store_failure(error):
                raise
            time.sleep(pause)
    return read()


def is_store_failure(error: Exception) -> bool:
    """Whether a read may yet succeed: a file that is missing, damaged or too short stays so."""
    reason = error.__context__ if isinstance(error, DatasetError) else error
    return isinstance(reason, OSError) and not isinstance(reason, FileNotFoundError)
