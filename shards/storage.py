"""Local paths and fsspec URLs alike: read, list, and publish so that no reader ever sees half a file.

A local file is written under a name that starts with a dot, in its final folder, flushed to disk and renamed.
A remote object appears when its upload completes, which object stores make atomic.
"""

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

import fsspec

from shards.errors import UserError

# Errors of os.link where a file system (FAT, many network mounts) has no hard links.
_NO_HARD_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK}
_NO_RANGES = "the server sends whole files where a part is asked for; serve it by one with range requests, or copy it"
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")  # what temporary_name makes


def local_path(url: str) -> str | None:
    """The path of a local file, or None for a URL of another file system."""
    if "://" not in url:
        return url
    scheme, path = url.split("://", 1)
    return path if scheme in ("file", "local") else None


def join(root: str, *parts: str) -> str:
    """`root` and relative parts as one path or URL."""
    return "/".join([root.rstrip("/") or "/", *parts]) if parts else root


def exists(url: str) -> bool:
    path = local_path(url)
    if path is not None:
        return os.path.exists(path)
    return _remote(url, "exists")


def size(url: str) -> int:
    """Bytes of a file; FileNotFoundError if there is none."""
    path = local_path(url)
    if path is not None:
        return os.stat(path).st_size
    return _remote(url, "size")


def folder_size(url: str) -> int:
    """Bytes of all files in a folder; 0 where there is none."""
    with suppress(FileNotFoundError):
        return _remote(url, "du")
    return 0


def open_read(url: str, block_size: int | None = None) -> BinaryIO:
    """A seekable binary file; `block_size`: bytes that are fetched of a remote one at a time."""
    path = local_path(url)
    if path is not None:
        return open(path, "rb")
    return _RemoteFile(url, _remote(url, "open", "rb", block_size=block_size))


class _RemoteFile:
    """An open file of a store; what goes wrong as it is read is an OSError, as of a local file."""

    def __init__(self, url: str, file):
        self._url, self._file = url, file

    def read(self, size: int = -1) -> bytes:
        with _as_os_errors(self._url):
            return self._file.read(size)

    def __getattr__(self, name: str):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()


def read_bytes(url: str) -> bytes:
    path = local_path(url)
    if path is not None:
        with open(path, "rb") as file:
            return file.read()
    return _remote(url, "cat_file")


def read_range(url: str, offset: int, size: int) -> bytes:
    """Exactly the bytes [offset, offset + size); EOFError where the file ends before.

    UserError of a server that sends no parts of files."""
    path = local_path(url)
    if path is not None:
        with open(path, "rb", buffering=0) as file:
            data = _pread(file.fileno(), offset, size)
    else:
        data = _remote(url, "cat_file", start=offset, end=offset + size)
        if len(data) > size:
            raise UserError(f"{url}: {_NO_RANGES}")
    if len(data) != size:
        raise EOFError(f"{url}: {len(data)} bytes at offset {offset}, wanted {size}")
    return data


def list_dir(url: str, suffix: str = "") -> list[str]:
    """Sorted names in a folder (files and folders, not recursive) that end in `suffix`, temporaries left out.

    A folder that does not exist is an empty one, as it is on an object store.
    """
    path = local_path(url)
    if path is not None:
        with suppress(FileNotFoundError, NotADirectoryError):
            return sorted(name for name in os.listdir(path) if _listed(name, suffix))
        return []
    try:
        entries = [entry.rstrip("/") for entry in _remote(url, "ls", detail=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    here = _file_system(url)[1].rstrip("/")
    names = {entry.rsplit("/", 1)[-1] for entry in entries if entry != here}
    return sorted(name for name in names if _listed(name, suffix))


def write_bytes_atomic(url: str, data: bytes) -> None:
    """Write a small file whole or not at all, replacing an older one."""
    path = local_path(url)
    if path is None:
        _remote(url, "pipe_file", data)
        return
    with _written_beside(path, data) as temporary:
        os.replace(temporary, path)


def check_file(url: str, name: str) -> None:
    """UserError, before long work, where a file cannot be written to a local path; `name` is what the user gave it by."""
    path = local_path(url)
    if path is None:
        return
    folder = os.path.dirname(os.path.abspath(path))
    while not os.path.exists(folder):  # what is missing will be made
        folder = os.path.dirname(folder)
    if os.path.isdir(path) or not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        what = f"{path} is a folder" if os.path.isdir(path) else f"{folder} is no folder that can be written to"
        raise UserError(f"{name}: {what}; choose another path")


def create_once(url: str, data: bytes) -> bool:
    """Write a small file unless it exists; True for the one writer that made it.

    Remote stores decide by their conditional put. On a local file system without hard links two writers within the
    same moment may both be told True; the file is whole in any case.
    """
    path = local_path(url)
    if path is None:
        try:
            _remote(url, "pipe_file", data, mode="create")
        except FileExistsError:
            return False
        return True
    if os.path.exists(path):
        return False
    with _written_beside(path, data) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            os.replace(temporary, path)
    return True


def publish_file(local: str, url: str) -> None:
    """Move a finished local file to its final place, replacing an older one; the local file is gone afterwards."""
    path = local_path(url)
    if path is None:
        fs, path = _file_system(url)
        with _as_os_errors(url):
            fs.put_file(local, path)
        os.unlink(local)
        return
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    folder = os.path.dirname(path) or "."
    if os.stat(local).st_dev == os.stat(folder).st_dev:
        _sync(local)
        os.replace(local, path)
    else:
        with _temporary_beside(path) as copy:
            shutil.copyfile(local, copy)
            _sync(copy)
            os.replace(copy, path)
        os.unlink(local)
    _sync(folder)


def delete(url: str) -> None:
    """Remove a file, if it is there."""
    path = local_path(url)
    with suppress(FileNotFoundError):
        if path is not None:
            os.unlink(path)
        else:
            _remote(url, "rm_file")


def temporary_name(path: str) -> str:
    """A fresh name beside a local path that no listing shows."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.{uuid.uuid4().hex[:12]}.tmp")


def remove_temporaries(root: str) -> None:
    """Delete the temporaries that killed writers left anywhere under a local folder; nothing may be writing there.

    In a remote store no writer of shards leaves any: what was not completed never existed.
    """
    path = local_path(root)
    for folder, _, names in os.walk(path) if path is not None else ():
        for name in filter(_TEMPORARY.fullmatch, names):
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, name))


def _remote(url: str, method: str, *args, **kwargs):
    """A method of the URL's file system on its path."""
    fs, path = _file_system(url)
    with _as_os_errors(url):
        return getattr(fs, method)(path, *args, **kwargs)


def _file_system(url: str):
    try:
        # Without a listings cache: other machines write to the same folder.
        return fsspec.core.url_to_fs(url, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise UserError(f"{url}: cannot open this kind of URL: {error}") from None


@contextmanager
def _as_os_errors(url: str) -> Iterator[None]:
    """Stores have error classes of their own: of a dead endpoint, of missing credentials."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if "support range requests" in str(error):  # fsspec's words, in a ValueError
            raise UserError(f"{url}: {_NO_RANGES}") from None
        raise OSError(f"{url}: {error}") from error


def _listed(name: str, suffix: str) -> bool:
    return name.endswith(suffix) and not name.startswith(".")


def _pread(fd: int, offset: int, size: int) -> bytes:
    data = os.pread(fd, size, offset)
    while 0 < len(data) < size:  # one call gives at most 2 GiB, and less where a signal interrupts it
        more = os.pread(fd, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


@contextmanager
def _written_beside(path: str, data: bytes) -> Iterator[str]:
    """A flushed temporary file with the data, beside the final path; removed if it is still there afterwards."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with _temporary_beside(path) as temporary:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
        _sync(os.path.dirname(path) or ".")


@contextmanager
def _temporary_beside(path: str) -> Iterator[str]:
    """A name for a temporary file, which is removed if it is still there afterwards."""
    temporary = temporary_name(path)
    try:
        yield temporary
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot flush folders
            raise
    finally:
        os.close(fd)
