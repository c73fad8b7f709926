"""The tars that windows are read from, by number: what the main process tells its workers of them."""

import time
from dataclasses import dataclass
from typing import NamedTuple

from shards import storage
from shards.cache import RangeCache

# Pauses before a failed read is tried again. A file that is missing or too short stays so.
_RETRY_PAUSES = (0.1, 1.0)


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
        for pause in _RETRY_PAUSES:
            try:
                return self._read(self.tars[number], offset, size)
            except FileNotFoundError:
                raise
            except OSError:
                time.sleep(pause)
        return self._read(self.tars[number], offset, size)

    def _read(self, tar: Tar, offset: int, size: int) -> bytes:
        whole = 0 <= offset and offset + size <= tar.length
        if self.cache is None or not whole or storage.local_path(tar.url) is not None:
            return storage.read_range(tar.url, offset, size)
        name = f"{tar.url} {tar.length} {tar.version}"
        try:
            return self.cache.read(name, tar.length, offset, size, lambda *span: storage.read_range(tar.url, *span))
        except EOFError:  # a page reaches beyond a cut tar's end; this sample may not
            return storage.read_range(tar.url, offset, size)
