"""Local paths, file:// and memory:// behave alike; a published file is whole, and the first writer wins."""

import os
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor

import http_files
import pytest

from shards import storage
from shards.errors import UserError


@pytest.fixture(params=["path", "file", "memory"])
def root(request, tmp_path) -> str:
    return {"path": str(tmp_path), "file": f"file://{tmp_path}", "memory": f"memory://{uuid.uuid4().hex}"}[request.param]


def test_what_is_written_is_read_back_whole_and_in_ranges(root):
    url = storage.join(root, "a", "b.bin")
    assert not storage.exists(url)
    storage.write_bytes_atomic(url, b"0123456789")
    storage.write_bytes_atomic(url, b"abcdefghij")
    assert storage.exists(url)
    assert storage.read_bytes(url) == b"abcdefghij"
    assert storage.read_range(url, 3, 4) == b"defg"
    assert storage.size(url) == 10
    with storage.open_read(url) as file:
        file.seek(8)
        assert file.read() == b"ij"


def test_a_body_that_breaks_off_is_an_os_error(tmp_path):
    with http_files.serve() as (server, root):
        server.files["a.bin"], server.faults["a.bin"] = bytes(1000), ["cut"]
        with storage.open_read(f"{root}/a.bin") as file, pytest.raises(OSError, match="a.bin"):
            file.read(10)
        with pytest.raises(OSError, match="a.bin"):
            storage.read_range(f"{root}/a.bin", 0, 10)


def test_a_range_beyond_the_end_is_an_error_not_fewer_bytes(root):
    url = storage.join(root, "a.bin")
    storage.write_bytes_atomic(url, b"0123456789")
    with pytest.raises(EOFError, match="a.bin: 2 bytes at offset 8, wanted 4"):
        storage.read_range(url, 8, 4)


@pytest.mark.parametrize("read", [storage.read_bytes, storage.size, storage.open_read])
def test_a_missing_file_is_file_not_found_everywhere(root, read):
    with pytest.raises(FileNotFoundError):
        read(storage.join(root, "nothing"))


def test_listings_are_sorted_names_without_temporaries(root):
    for name in ("d/2.tar", "d/1.tar", "d/1.parquet", "d/.1.tar.x.tmp", "d/e/3.tar"):
        storage.write_bytes_atomic(storage.join(root, name), b"")
    assert storage.list_dir(storage.join(root, "d"), ".tar") == ["1.tar", "2.tar"]
    assert storage.list_dir(storage.join(root, "d")) == ["1.parquet", "1.tar", "2.tar", "e"]
    assert storage.list_dir(storage.join(root, "nothing")) == []
    assert storage.list_dir(storage.join(root, "d", "1.tar")) == []


def test_a_folders_size_is_that_of_all_its_files(root):
    assert storage.folder_size(storage.join(root, "none")) == 0
    for name in ("a/1", "a/b/2"):
        storage.write_bytes_atomic(storage.join(root, name), b"12345")
    assert storage.folder_size(storage.join(root, "a")) == 10


def test_the_first_of_many_writers_wins(root):
    url = storage.join(root, "commits", "00000.json")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: storage.create_once(url, b"%d" % i), range(32)))
    assert won.count(True) == 1
    assert storage.read_bytes(url) == b"%d" % won.index(True)


def test_without_hard_links_a_file_is_still_made_once_and_whole(tmp_path, monkeypatch):
    def no_links(*args):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    url = str(tmp_path / "a.json")
    assert [storage.create_once(url, data) for data in (b"first", b"second")] == [True, False]
    assert storage.read_bytes(url) == b"first"


def test_a_published_file_has_moved(root, tmp_path):
    local = tmp_path / ".work.tmp"
    local.write_bytes(b"shard")
    url = storage.join(root, "train", "short", "00000.tar")
    storage.publish_file(str(local), url)
    assert storage.read_bytes(url) == b"shard"
    assert not local.exists()


def test_publishing_from_another_file_system_is_a_move_too(tmp_path):
    if os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("/dev/shm is on the same file system")
    local = f"/dev/shm/{uuid.uuid4().hex}.tmp"
    with open(local, "wb") as file:
        file.write(b"shard")
    storage.publish_file(local, str(tmp_path / "out" / "a.tar"))
    assert (tmp_path / "out" / "a.tar").read_bytes() == b"shard"
    assert os.listdir(tmp_path / "out") == ["a.tar"] and not os.path.exists(local)


def test_a_copy_to_another_file_system_that_fails_leaves_the_local_file_and_nothing_else(tmp_path, monkeypatch):
    if os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("/dev/shm is on the same file system")

    def full(source, target):
        with open(target, "wb") as file:
            file.write(b"sh")
        raise OSError(28, "No space left on device")

    local = f"/dev/shm/{uuid.uuid4().hex}.tmp"
    with open(local, "wb") as file:
        file.write(b"shard")
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        storage.publish_file(local, str(tmp_path / "out" / "a.tar"))
    assert os.listdir(tmp_path / "out") == []
    os.unlink(local)


def test_what_killed_writers_left_can_be_removed_and_nothing_else(tmp_path):
    (tmp_path / "train").mkdir()
    kept = [tmp_path / ".lock", tmp_path / "train" / "00000.tar", tmp_path / "train" / ".hidden.tmp"]
    left = [storage.temporary_name(str(path)) for path in (tmp_path / "a.json", tmp_path / "train" / "00000.tar")]
    for path in (*kept, *left):
        open(path, "w").close()
    storage.remove_temporaries(str(tmp_path))
    assert all(path.exists() for path in kept) and not any(map(os.path.exists, left))


def test_a_url_that_nothing_can_open_is_the_users_error():
    with pytest.raises(UserError, match="nosuch://bucket/x: cannot open this kind of URL"):
        storage.read_bytes("nosuch://bucket/x")
