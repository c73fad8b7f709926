"""The cache of remote files: right bytes, never too many of them, whatever shares the folder."""

import contextlib
import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import fsspec
import pytest

from shards import cache
from shards.cache import PAGE, RangeCache
from shards.errors import UserError
from trainer import tars as tars_module
from trainer.tars import Tar, Tars

LENGTH = 5 * PAGE + 1234
DATA = random.Random(0).randbytes(LENGTH)


class Remote:
    """A file that counts what is fetched from it."""

    def __init__(self):
        self.fetched = []

    def __call__(self, offset: int, size: int) -> bytes:
        self.fetched.append((offset, size))
        return DATA[offset : offset + size]


def held(folder: Path) -> int:
    """Bytes in the folder; where others change it meanwhile, of what was there all the time."""
    before, after = sizes(folder), sizes(folder)
    return sum(before[path] for path in before.keys() & after.keys())


def sizes(folder: Path) -> dict[str, int]:
    found = {}
    for place, _, names in os.walk(folder):
        for name in set(names) - {"lock"}:
            with contextlib.suppress(FileNotFoundError):
                found[f"{place}/{name}"] = os.stat(os.path.join(place, name)).st_size
    return found


def test_any_range_is_the_files_bytes_and_each_page_is_fetched_once(tmp_path):
    kept, remote, rng = RangeCache(str(tmp_path), 10**9), Remote(), random.Random(1)
    spans = [(0, LENGTH), (LENGTH - 1, 1), (PAGE - 1, 2), (3 * PAGE, 0)]
    spans += [(start := rng.randrange(LENGTH), rng.randrange(LENGTH - start + 1)) for _ in range(50)]
    for offset, size in rng.sample(spans, len(spans)):
        assert kept.read("file", LENGTH, offset, size, remote) == DATA[offset : offset + size]
    assert sum(size for _, size in remote.fetched) == LENGTH
    again = RangeCache(str(tmp_path), 10**9)
    assert again.read("file", LENGTH, 7, PAGE, remote) == DATA[7 : 7 + PAGE]
    assert sum(size for _, size in remote.fetched) == LENGTH
    assert kept.read("the file's next version", LENGTH, 0, 9, lambda *span: b"x" * span[1]) == b"x" * 9


def test_a_full_cache_keeps_what_is_in_use_and_fetches_the_rest_as_asked(tmp_path):
    kept, remote = RangeCache(str(tmp_path), 2 * (PAGE + 100)), Remote()
    for page in range(4):
        assert kept.read("file", LENGTH, page * PAGE, PAGE, remote) == DATA[page * PAGE :][:PAGE]
    assert held(tmp_path) == 2 * (PAGE + 4)
    remote.fetched.clear()
    assert kept.read("file", LENGTH, 10, 20, remote) == DATA[10:30] and not remote.fetched
    assert kept.read("file", LENGTH, 3 * PAGE + 10, 20, remote) == DATA[3 * PAGE + 10 :][:20]
    assert remote.fetched == [(3 * PAGE + 10, 20)]


def test_a_file_that_nobody_reads_any_more_gives_way(tmp_path):
    RangeCache(str(tmp_path), 2 * (PAGE + 100)).read("old", LENGTH, 0, 2 * PAGE, Remote())
    (old,) = (path for path in tmp_path.iterdir() if path.is_dir())
    os.utime(old, (0, 0))
    remote, kept = Remote(), RangeCache(str(tmp_path), 2 * (PAGE + 100))
    for _ in range(2):
        kept.read("new", LENGTH, 0, PAGE, remote)
    assert not old.exists() and len(remote.fetched) == 1


@pytest.mark.parametrize("damage", [b"", b"short", bytes(PAGE + 4)])
def test_a_damaged_page_is_fetched_again(tmp_path, damage):
    kept, remote = RangeCache(str(tmp_path), 10**9), Remote()
    kept.read("file", LENGTH, 0, PAGE, remote)
    (page,) = tmp_path.glob("*/0")
    page.write_bytes(damage)
    for _ in range(2):
        assert kept.read("file", LENGTH, 0, PAGE, remote) == DATA[:PAGE]
    assert len(remote.fetched) == 2


def test_a_disk_that_takes_no_more_costs_no_read(tmp_path, monkeypatch, caplog):
    kept, remote = RangeCache(str(tmp_path), 10**9), Remote()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "replace", full)
    assert kept.read("file", LENGTH, 0, LENGTH, remote) == DATA
    assert "No space left" in caplog.text and held(tmp_path) == 0


def test_processes_share_a_folder_and_its_limit_even_when_killed(tmp_path):
    """Four processes read three files at random; one is killed now and then. The folder never outgrows its limit."""
    script = textwrap.dedent(
        f"""
        import random, sys
        sys.path.insert(0, {str(Path(cache.__file__).parents[1])!r})
        from shards.cache import PAGE, RangeCache
        seed, limit = map(int, sys.argv[1:])
        rng, length = random.Random(seed), 4 * PAGE
        kept = RangeCache({str(tmp_path)!r}, limit)
        for _ in range(150):
            name = rng.randrange(3)
            data = kept.read(str(name), length, rng.randrange(length - 9), 9, lambda _, size: bytes([name]) * size)
            assert data == bytes([name]) * 9
        """
    )
    limit = 7 * (PAGE + 4)
    start = lambda seed: subprocess.Popen([sys.executable, "-c", script, str(seed), str(limit)])  # noqa: E731
    processes = [start(seed) for seed in range(5)]
    victims, others = processes[:2], processes[2:]
    while any(process.poll() is None for process in others):
        assert held(tmp_path) <= limit
        if victims and len(list(tmp_path.glob("*/*"))) > 2:
            victims.pop().kill()
    for process in processes:
        process.wait()
    assert [process.returncode for process in others] == [0] * 3
    assert held(tmp_path) <= limit


def test_a_remote_tar_cut_short_gives_the_samples_that_it_has(tmp_path):
    fsspec.filesystem("memory").pipe_file("/cut.tar", DATA[: PAGE + 100])
    tars = Tars([Tar("memory://cut.tar", LENGTH, "v")], RangeCache(str(tmp_path), 10**9))
    assert tars.read(0, PAGE + 10, 20) == DATA[PAGE + 10 :][:20]
    with pytest.raises(EOFError, match="memory://cut.tar"):
        tars.read(0, PAGE + 90, 20)


def test_a_read_that_fails_for_a_moment_is_tried_again(tmp_path, monkeypatch):
    failures = ["connection reset", "timed out"]

    def flaky(url, offset, size):
        if failures:
            raise OSError(failures.pop())
        return DATA[offset : offset + size]

    monkeypatch.setattr(tars_module.storage, "read_range", flaky)
    monkeypatch.setattr(tars_module, "_RETRY_PAUSES", (0.0, 0.0))
    tars = Tars([Tar("memory://x.tar", LENGTH, "v")], RangeCache(str(tmp_path), 10**9))
    assert tars.read(0, 5, 10) == DATA[5:15]
    failures += ["gone"] * 3
    with pytest.raises(OSError, match="gone"):
        tars.read(0, 2 * PAGE, 10)


@pytest.mark.parametrize("folder", ["file/in/the/way", "/proc/nowhere"])
def test_a_folder_that_cannot_be_is_refused(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cache folder"):
        RangeCache(folder, 10**9)
