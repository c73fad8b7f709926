"""Annotation files: found by name, read whole, with one clear line where one is missing or broken."""

import csv
import gzip
import io
import json
import zlib
from contextlib import contextmanager
from fnmatch import fnmatch

from shards import storage
from shards.errors import UserError


class Annotations:
    """The annotation files of one benchmark: a folder, or a single file of it; local or any fsspec URL.

    Raises `UserError` where the path does not exist.
    """

    def __init__(self, path: str):
        self.path = path.rstrip("/")
        self.names = storage.list_dir(self.path)
        self.folder = self.path
        if not self.names:
            if not storage.exists(self.path):
                raise UserError(f"--annotations {path}: no such file or folder")
            self.folder, _, name = self.path.rpartition("/")
            self.names = [name]

    def find(self, *patterns: str) -> str | None:
        """The one file whose name fits a pattern (any case), or None; `UserError` if there are several."""
        fits = [name for name in self.names if any(fnmatch(name.lower(), p.lower()) for p in patterns)]
        if len(fits) > 1:
            names = " and ".join(sorted(fits))
            raise UserError(f"--annotations {self.path}: {names} hold the same part; name one file")
        return self.url(fits[0]) if fits else None

    def require(self, *patterns: str) -> str:
        """As `find`, but the file must be there."""
        found = self.find(*patterns)
        if found is None:
            raise UserError(f"--annotations {self.path}: no {' or '.join(patterns)}")
        return found

    def splits(self, patterns: dict[str, tuple[str, ...]]) -> dict[str, str]:
        """Split -> its file, for the splits that have one; at least one must."""
        found = {split: url for split, names in patterns.items() if (url := self.find(*names))}
        if not found:
            wanted = ", ".join(name for names in patterns.values() for name in names)
            raise UserError(f"--annotations {self.path}: none of {wanted}")
        return found

    def subfolder(self, name: str) -> "Annotations":
        return Annotations(self.url(name))

    def url(self, name: str) -> str:
        return storage.join(self.folder, name) if self.folder else name


def read_text(url: str) -> str:
    """UTF-8 text of a file, unpacked where its name ends in .gz; a byte order mark is dropped."""
    try:
        data = storage.read_bytes(url)
        return (gzip.decompress(data) if url.endswith(".gz") else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{url}: cannot be read: {error}") from None


def read_lines(url: str) -> list[str]:
    """Lines that hold something; only line feeds end a line, so odd separators inside a caption stay inside."""
    return [line for line in read_text(url).replace("\r\n", "\n").split("\n") if line.strip()]


def read_json(url: str, kind: type):
    """The JSON value of a file, which must be a `kind` (list or dict)."""
    try:
        value = json.loads(read_text(url))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{url}: not JSON: {error}") from None
    if not isinstance(value, kind):
        raise UserError(f"{url}: holds a {type(value).__name__}, expected a {kind.__name__}")
    return value


def read_json_lines(url: str) -> list[dict]:
    """One JSON object a line."""
    rows = []
    for number, line in enumerate(read_lines(url), 1):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{url}, line {number}: not JSON: {error}") from None
    return rows


def read_csv(url: str, columns: int) -> list[list[str]]:
    """Rows of a csv without a header; each must have `columns` fields."""
    rows = [row for row in _csv_rows(url, csv.reader(io.StringIO(read_text(url), newline=""))) if row]
    for number, row in enumerate(rows, 1):
        if len(row) != columns:
            raise UserError(f"{url}, row {number}: {len(row)} columns, expected {columns}")
    return rows


def read_csv_table(url: str, needed: tuple[str, ...]) -> list[dict[str, str]]:
    """Rows of a csv with a header, which must name the columns `needed`."""
    reader = csv.DictReader(io.StringIO(read_text(url), newline=""))
    rows = _csv_rows(url, reader)
    names = reader.fieldnames or ["nothing"]
    if missing := [name for name in needed if name not in names]:
        raise UserError(f"{url}: no column {', '.join(missing)} (has {', '.join(names)})")
    for number, row in enumerate(rows, 1):
        if cut_off := [name for name in needed if row[name] is None]:
            raise UserError(f"{url}, row {number}: ends before its column {cut_off[0]}")
    return rows


def _csv_rows(url: str, reader) -> list:
    try:
        return list(reader)
    except csv.Error as error:
        raise UserError(f"{url}, line {reader.line_num}: {error}") from None


@contextmanager
def reading(url: str, where: str = ""):
    """Turn a record without a field, or with one of another type, into one line that names the file and the record."""
    place = f"{url}, {where}" if where else url
    try:
        yield
    except KeyError as error:
        raise UserError(f"{place}: no {error}") from error
    except (TypeError, ValueError, IndexError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{place}: {' '.join(str(error).split())}") from error
