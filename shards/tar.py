"""Tar archives by their 512-byte headers: written so that equal samples give equal bytes, read without copies."""

import tarfile
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from shards.format import TAR_BLOCK

END = bytes(2 * TAR_BLOCK)
_ZERO = bytes(TAR_BLOCK)
_PIECE = 1 << 24
_REGULAR = b"0\0"
_PAX, _GNU_LONG_NAME = b"x", b"L"
_EXTENSIONS = (_PAX, _GNU_LONG_NAME)  # headers that belong to the next one, whatever that is


class TarError(ValueError):
    """The bytes are no tar, or end before the tar does."""


class Member(NamedTuple):
    """A regular file of a tar. `offset` counts from the start of the tar to the first header that belongs to it,
    `start` to its first byte, `end` to the end of its padding."""

    name: str
    offset: int
    start: int
    size: int
    end: int
    data: bytes | None


def header(name: str, size: int) -> bytes:
    """The USTAR header of a file: mtime, uid and gid 0, mode 0644."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


def padded(size: int) -> int:
    """Bytes that a file of `size` takes in a tar, without its header."""
    return -(-size // TAR_BLOCK) * TAR_BLOCK


def parse_members(buffer) -> list[tuple[str, memoryview]]:
    """Regular files of a tar, or of a slice that starts at a header, as (name, view of the bytes).

    No copies and no checksums: this is the trainer's hot path. TarError where a header or a file's bytes are cut.
    """
    view = memoryview(buffer)
    length, at, long_name, members = len(view), 0, None, []
    while at < length:
        block = bytes(view[at : at + TAR_BLOCK])
        if block == _ZERO:
            break
        name, size, kind = _parse_header(block, at)
        start = at + TAR_BLOCK
        at = start + padded(size)
        if at > length:
            raise TarError(f"cut at byte {length}: {name} ends at {at}")
        if kind in _EXTENSIONS:
            long_name = _long_name(kind, view[start : start + size]) or long_name
            continue
        if kind in _REGULAR:
            members.append((long_name or name, view[start : start + size]))
        long_name = None
    return members


def scan(file: BinaryIO, read: Callable[[str], bool] = lambda name: True) -> Iterator[Member]:
    """Regular files of a whole tar, in order, checksums checked; `data` is None of those whose names `read` leaves out.

    TarError where the tar is damaged or ends without its zero block.
    """
    at, first, long_name = 0, None, None
    while True:
        block = file.read(TAR_BLOCK)
        if block == _ZERO:
            return
        name, size, kind = _parse_header(block, at, checksum=True)
        first = at if first is None else first
        start, at = at + TAR_BLOCK, at + TAR_BLOCK + padded(size)
        regular = kind in _REGULAR
        data = None
        if not regular or read(long_name or name):
            data = _read(file, padded(size))
            if len(data) < padded(size):
                raise TarError(f"truncated at byte {start + len(data)}, inside {name}")
            data = data[:size]
        else:
            file.seek(at)
        if kind in _EXTENSIONS:
            long_name = _long_name(kind, data) or long_name
            continue
        if regular:
            yield Member(long_name or name, first, start, size, at, data)
        first, long_name = None, None


def split_name(name: str) -> tuple[str, str] | None:
    """(key, extension) by WebDataset's rule: the file name's first dot. None for names without a key."""
    slash = name.rfind("/") + 1
    dot = name.find(".", slash)
    return (name[:dot], name[dot + 1 :].lower()) if dot > slash else None


def _parse_header(block: bytes, at: int, checksum: bool = False) -> tuple[str, int, bytes]:
    if len(block) < TAR_BLOCK:
        raise TarError(f"truncated at byte {at + len(block)}, where a header should be")
    if block[257:262] != b"ustar":
        raise TarError(f"no tar header at byte {at}")
    try:
        size = _number(block[124:136])
        if checksum and sum(block) - sum(block[148:156]) + 8 * 32 != _number(block[148:156]):
            raise TarError(f"damaged header at byte {at}")
        name = block[: block.find(b"\0", 0, 101) if block[99] == 0 else 100].decode()
        if block[345] and block[257:263] == b"ustar\0":
            name = block[345:500].rstrip(b"\0").decode() + "/" + name
    except ValueError as error:
        raise error if isinstance(error, TarError) else TarError(f"damaged header at byte {at}") from None
    return name, size, block[156:157]


def _number(field: bytes) -> int:
    if field[0] == 0x80:  # GNU's base-256, for files over 8 GiB
        return int.from_bytes(field[1:], "big")
    number = int(field.rstrip(b"\0 ") or b"0", 8)
    if number < 0:
        raise ValueError("negative number")
    return number


def _read(file: BinaryIO, size: int) -> bytes:
    """Up to `size` bytes, in pieces: a damaged header may ask for more than there is memory."""
    data = file.read(min(size, _PIECE))
    while len(data) < size and (more := file.read(min(size - len(data), _PIECE))):
        data += more
    return data


def _long_name(kind: bytes, data) -> str | None:
    """The name that an extension header gives the next member, if it gives one."""
    try:
        return _pax_path(bytes(data)) if kind == _PAX else bytes(data).rstrip(b"\0").decode()
    except ValueError:
        raise TarError("damaged extension header") from None


def _pax_path(records: bytes) -> str | None:
    while records:
        digits, _, _ = records.partition(b" ")
        length = int(digits)
        if length <= len(digits):
            raise ValueError("a record shorter than its own length")
        keyword, _, value = records[len(digits) + 1 : length - 1].partition(b"=")
        if keyword == b"path":
            return value.decode()
        records = records[length:]
    return None
