"""Every promise of the format, checked against the bytes: one pass over each tar, one sample in memory at a time."""

import hashlib
from collections.abc import Iterator
from itertools import groupby
from typing import BinaryIO, NamedTuple

from tqdm import tqdm

from shards import checks, format, publish, storage, tar
from shards.errors import DatasetError
from shards.reader import Dataset, Shard, open_dataset

_CHUNK = 1 << 20


class Problem(NamedTuple):
    """`path` is relative to the dataset, `key` a sample's or empty."""

    path: str
    key: str
    message: str


class _Run(NamedTuple):
    """Adjacent members that share a key: where they lie (bytes), and what they should be by their own json."""

    offset: int
    end: int
    members: list[str]
    expected: list[str] | None
    frames: int | None
    sample_id: str | None


def validate(root: str) -> list[Problem]:
    """All problems of a dataset; DatasetError where `root` is none."""
    return list(find_problems(open_dataset(root)))


def find_problems(dataset: Dataset) -> Iterator[Problem]:
    """Problems in the order of the manifest; on a terminal with a progress bar."""
    yield from _check_manifest(dataset)
    yield from _check_unlisted(dataset)
    with tqdm(total=sum(s.bytes for s in dataset.shards), unit="B", unit_scale=True, disable=None) as bar:
        for shard in dataset.shards:
            if shard.path == _expected_path(shard):  # another one is reported above, and may lead out of the dataset
                yield from _ShardCheck(dataset, shard).problems()
            bar.update(shard.bytes)


def _check_manifest(dataset: Dataset) -> Iterator[Problem]:
    table = publish.manifest_table([vars(shard) for shard in dataset.shards])
    if publish.content_digest(table) != dataset.manifest.get("digest"):
        yield Problem(publish.MANIFEST_JSON, "", f"digest is not that of {publish.MANIFEST_PARQUET}")
    if publish.counts(table) != dataset.manifest.get("counts"):
        yield Problem(publish.MANIFEST_JSON, "", f"counts are not those of {publish.MANIFEST_PARQUET}")
    first: dict[tuple[str, int], Shard] = {}
    for shard in dataset.shards:
        if shard.path != _expected_path(shard):
            yield Problem(shard.path, "", f"the manifest's path should be {_expected_path(shard)}")
        other = first.setdefault((shard.granularity, shard.row), shard)
        if other is not shard:
            yield Problem(shard.path, "", f"row {shard.row} is in the manifest before, as {other.path}")


def _expected_path(shard: Shard) -> str:
    return format.shard_path(shard.split, shard.granularity, shard.row)


def _check_unlisted(dataset: Dataset) -> Iterator[Problem]:
    """Tars on disk that the manifest does not know. Those of rows without a commit record are work in progress;
    a copy that came without its commit records has no such rows."""
    listed = {shard.path for shard in dataset.shards}
    committed = set(publish.committed_rows(dataset.url))
    for split in storage.list_dir(dataset.url):
        for granularity in format.GRANULARITIES:
            for name in storage.list_dir(storage.join(dataset.url, split, granularity), ".tar"):
                path, row = f"{split}/{granularity}/{name}", name.removesuffix(".tar")
                pending = committed and not (row.isdigit() and int(row) in committed)
                if path not in listed and not pending:
                    yield Problem(path, "", "on disk but not in the manifest")


class _ShardCheck:
    """One tar and its sidecar."""

    def __init__(self, dataset: Dataset, shard: Shard):
        self.dataset, self.shard = dataset, shard
        self.lines: dict[str, list[dict]] | None = None  # the sidecar's samples by key; None: nothing to compare with
        self.runs: dict[str, list[_Run]] = {}
        self.other_keys: dict[str, set[str]] = {}  # keys of shards that foreign keys here belong to

    def problems(self) -> Iterator[Problem]:
        for key, message in self._messages():
            yield Problem(self.shard.path, *(" ".join(text.split()) for text in (key, message)))

    def _messages(self) -> Iterator[tuple[str, str]]:
        url = self.dataset.shard_url(self.shard)
        yield from self._check_sidecar()
        try:
            with storage.open_read(url) as file:
                yield from self._check_tar(_Hashing(file))
        except FileNotFoundError:
            yield "", "listed in the manifest but missing"
        except OSError as error:
            yield "", f"cannot be read: {error}"

    def _check_sidecar(self) -> Iterator[tuple[str, str]]:
        path = format.sidecar_path(self.shard.path)
        try:
            data = storage.read_bytes(storage.join(self.dataset.url, path))
            lines = self.dataset.sidecar(self.shard).to_pylist()
        except (OSError, DatasetError) as error:
            missing = isinstance(error, FileNotFoundError)
            yield "", f"sidecar {path} is missing" if missing else f"sidecar cannot be read: {error}"
            return
        if hashlib.sha256(data).hexdigest() != self.shard.sidecar_sha256:
            yield "", f"sha256 of the sidecar {path} is not the manifest's"
        ok = [line for line in lines if line["status"] == "ok"]
        if len(ok) != self.shard.samples:
            yield "", f"the sidecar lists {len(ok)} samples, the manifest {self.shard.samples}"
        duration = sum(line["duration_ms"] or 0 for line in ok)
        if duration != self.shard.duration_ms:
            yield "", f"the sidecar's samples last {duration} ms, the manifest says {self.shard.duration_ms}"
        self.lines = {key: list(group) for key, group in groupby(sorted(ok, key=_line_key), key=_line_key)}

    def _check_tar(self, file: "_Hashing") -> Iterator[tuple[str, str]]:
        try:
            for key, group in groupby(tar.scan(file), key=_key):
                members = list(group)
                if key is None:
                    yield "", f"member without a key: {members[0].name}"
                else:
                    yield from self._check_run(key, members)
        except tar.TarError as error:
            yield "", f"{error}; {len(self.runs)} of {self.shard.samples} samples before it are whole"
            self.lines = None  # every sample behind the damage differs: one line says it
        else:
            file.drain()
            if file.sha256.hexdigest() != self.shard.sha256:
                yield "", _digest_message(file, self.shard)
        for key, runs in self.runs.items():
            yield from ((key, message) for message in self._check_place(key, runs))
        for key in sorted((self.lines or {}).keys() - self.runs.keys()):
            yield key, "in the sidecar but not in the tar"

    def _check_run(self, key: str, group: list[tar.Member]) -> Iterator[tuple[str, str]]:
        """Contents of adjacent members; what is missing or misplaced is judged when all of the tar is known."""
        members = {tar.split_name(member.name)[1]: member.data for member in group}
        names = [tar.split_name(member.name)[1] for member in group]
        messages, fields, expected = [], {}, None
        if "json" in members:
            try:
                fields = checks.parse_fields(members["json"])
                messages += checks.check_fields(fields, self.shard.granularity, self.shard.split, key)
            except ValueError as error:
                messages.append(str(error))
        messages += checks.check_texts(members, self.shard.granularity)
        messages += checks.check_frames(members, fields)
        frames = self._frame_count(key, fields)
        if frames is not None:
            frames_format = "mp4" if format.VIDEO_MEMBER in names else "jpg"
            expected = checks.expected_members(self.shard.granularity, fields, frames, frames_format)
        run = _Run(group[0].offset, group[-1].end, names, expected, frames, fields.get("sample_id"))
        self.runs.setdefault(key, []).append(run)
        yield from ((key, message) for message in messages)

    def _frame_count(self, key: str, fields: dict) -> int | None:
        if isinstance(fields.get("frame_ms"), list):
            return len(fields["frame_ms"])
        lines = (self.lines or {}).get(key)
        return lines[0]["frames"] if lines else None

    def _check_place(self, key: str, runs: list[_Run]) -> Iterator[str]:
        names = [name for run in runs for name in run.members]
        if len(set(names)) < len(names):
            yield f"duplicate key: {next(n for n in names if names.count(n) > 1)} is there more than once"
        elif len(runs) > 1:
            yield f"members are not adjacent: they lie at bytes {', '.join(str(run.offset) for run in runs)}"
        elif not self._is_own(key):
            yield self._foreign(key)
        else:
            yield from self._check_members(runs[0])
            if self.lines is not None:
                yield from _check_lines(self.lines.get(key, []), runs[0])

    def _check_members(self, run: _Run) -> Iterator[str]:
        if run.expected is None or run.members == run.expected:
            return
        missing = [name for name in run.expected if name not in run.members]
        extra = [name for name in run.members if name not in run.expected]
        if missing:
            yield f"missing member {', '.join(missing)}"
        if extra:
            yield f"extra member {', '.join(extra)}"
        if not missing and not extra:
            yield f"members are in another order: {', '.join(run.members)}"

    def _is_own(self, key: str) -> bool:
        digits = key.isascii() and key.isdigit() and len(key) > format.INDEX_DIGITS
        return digits and key[: -format.INDEX_DIGITS] == f"{self.shard.row:05d}"

    def _foreign(self, key: str) -> str:
        """A key names its row, so one that stands in two shards is foreign to one of them."""
        for other in self.dataset.select(granularity=self.shard.granularity):
            if key[: -format.INDEX_DIGITS] == f"{other.row:05d}" and key in self._keys_of(other):
                return f"duplicate key: also in {other.path}"
        return f"key does not belong to row {self.shard.row}"

    def _keys_of(self, other: Shard) -> set[str]:
        if other.path not in self.other_keys:
            try:
                self.other_keys[other.path] = set(self.dataset.sidecar(other)["key"].to_pylist())
            except DatasetError:
                self.other_keys[other.path] = set()  # reported where that shard is checked
        return self.other_keys[other.path]


def _check_lines(lines: list[dict], run: _Run) -> Iterator[str]:
    """The sidecar's lines of a key against the sample in the tar."""
    if len(lines) != 1:
        yield "in the tar but not in the sidecar" if not lines else f"the sidecar lists it {len(lines)} times"
        return
    line = lines[0]
    if run.sample_id not in (None, line["sample_id"]):
        yield f"json says sample_id {run.sample_id}, the sidecar {line['sample_id']}"
    place, said = (run.offset, run.end - run.offset), (line["offset"], line["size"])
    if place != said:
        yield f"lies at offset {place[0]}, size {place[1]}; the sidecar says offset {said[0]}, size {said[1]}"
    if run.expected is not None and run.members != run.expected:
        return  # already said
    for what, here, there in (("frames", run.frames, line["frames"]), ("members", len(run.members), line["members"])):
        if here != there:
            yield f"{here} {what}, the sidecar says {there}"


def _digest_message(file: "_Hashing", shard: Shard) -> str:
    if file.bytes != shard.bytes:
        return f"sha256 mismatch: {file.bytes} bytes, the manifest says {shard.bytes}"
    return f"sha256 mismatch: {file.sha256.hexdigest()[:16]}, the manifest says {shard.sha256[:16]}"


def _line_key(line: dict) -> str:
    return line["key"] or ""


def _key(member: tar.Member) -> str | None:
    name = tar.split_name(member.name)
    return name and name[0]


class _Hashing:
    """A file that is hashed as it is read."""

    def __init__(self, file: BinaryIO):
        self.file, self.sha256, self.bytes = file, hashlib.sha256(), 0

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.sha256.update(data)
        self.bytes += len(data)
        return data

    def drain(self) -> None:
        while self.read(_CHUNK):
            pass
