"""Videos from servers and out of tars: whole, ahead of their turn, within scratch, and no fault is a hang or a loss."""

import errno
import os
import time

import pytest
from http_files import serve

from gex_pipeline import fetch
from gex_pipeline.config import FetchConfig
from gex_pipeline.errors import Transient
from gex_pipeline.fetch import Fetch, Unavailable
from shards import storage


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """Where scratch files lie: nothing may be left there."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    monkeypatch.setattr(fetch, "_FIRST_PAUSE", 0.02)
    (tmp_path / "scratch").mkdir()
    yield tmp_path / "scratch"
    assert os.listdir(tmp_path / "scratch") == []


@pytest.fixture
def server():
    with serve() as (state, url):
        state.files = {f"v{i}.mp4": bytes([i]) * 50_000 for i in range(12)}
        yield state, url


def config(**keys):
    return FetchConfig(**({"timeout_seconds": 1, "retries": 2} | keys))


def take_all(locations, settings, while_held=lambda: None):
    """What came of each location: its bytes, or the error."""
    found = []
    with Fetch(locations, settings) as videos:
        for location in locations:
            try:
                with videos.take(location) as path:
                    while_held()
                    found.append(open(path, "rb").read())
            except (Unavailable, Transient) as error:
                found.append(error)
    return found


def test_files_come_whole_and_in_order_and_local_ones_are_not_copied(server, tmp_path):
    state, url = server
    (tmp_path / "local.mp4").write_bytes(b"local")
    locations = [f"{url}/v{i}.mp4" for i in range(12)]
    state.delay = 0.05
    locations.insert(3, str(tmp_path / "local.mp4"))
    found = take_all(locations, config())
    assert found.pop(3) == b"local"
    assert found == [state.files[f"v{i}.mp4"] for i in range(12)]
    assert 1 < state.most_active <= 4


def test_a_byte_range_of_a_file_is_all_that_is_read(server, tmp_path):
    state, url = server
    state.files["a.tar"] = bytes(range(256)) * 400
    (tmp_path / "a.tar").write_bytes(state.files["a.tar"])
    wanted = state.files["a.tar"][512:1000]
    for place in (f"{url}/a.tar", str(tmp_path / "a.tar")):
        assert take_all([fetch.ranged(place, 512, 488)], config()) == [wanted]
    assert state.ranges == [("a.tar", 512, 1000)]
    [beyond] = take_all([fetch.ranged(str(tmp_path / "a.tar"), 102_000, 1000)], config())
    assert beyond.kind == "truncated"


def test_a_range_behind_its_files_end_is_the_videos_failure_whatever_the_store_says(server, tmp_path, monkeypatch):
    state, url = server
    state.faults["v0.mp4"] = [416]
    (tmp_path / "a.tar").write_bytes(bytes(1000))
    places = [(f"{url}/v0.mp4", 50_000), (str(tmp_path / "a.tar"), 2**63 - 1), (str(tmp_path / "a.tar"), 2**70)]
    found = take_all([fetch.ranged(place, offset, 5) for place, offset in places], config())
    assert [error.kind for error in found] == ["truncated"] * 3

    def invalid(*args):  # as s3fs has it of a 416, and of passing troubles
        raise OSError(errno.EINVAL, "The requested range is not satisfiable")

    monkeypatch.setattr(storage, "read_range", invalid)
    beyond, within = take_all([fetch.ranged(str(tmp_path / "a.tar"), offset, 5) for offset in (1000, 900)], config())
    assert beyond.kind == "truncated" and isinstance(within, Transient)


def test_fetching_goes_on_while_a_video_is_decoded(server):
    state, url = server
    with Fetch([f"{url}/v{i}.mp4" for i in range(3)], config()) as videos:
        with videos.take(f"{url}/v0.mp4"):
            deadline = time.monotonic() + 10
            while not all(job.done for job in videos._jobs) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert all(job.done for job in videos._jobs)


def test_scratch_is_bounded_but_for_the_video_whose_turn_it_is(server, scratch, monkeypatch):
    state, url = server
    monkeypatch.setattr(fetch, "_BLOCK", 10_000)
    half = 60_000  # one file and a bit
    most = 0

    def measure():
        nonlocal most
        time.sleep(0.05)
        most = max(most, sum(f.stat().st_size for f in scratch.rglob("*") if f.is_file()))

    locations = [f"{url}/v{i}.mp4" for i in range(12)]
    found = take_all(locations, config(scratch_gb=2 * half / 1e9), measure)
    assert found == [state.files[f"v{i}.mp4"] for i in range(12)]
    assert half < most <= 2 * half + 4 * 10_000, "to within a block of each worker"
    [absurd] = take_all(locations[:1], config(scratch_gb=80_000 / 1e9))
    assert absurd.kind == "too_large" and "fetch.scratch_gb" in str(absurd)


@pytest.mark.parametrize("fault", [500, 429, "cut", "stall"])
def test_a_fault_that_passes_costs_a_retry(server, fault):
    state, url = server
    state.faults["v1.mp4"] = [fault, None]
    locations = [f"{url}/v{i}.mp4" for i in range(3)]
    assert take_all(locations, config()) == [state.files[f"v{i}.mp4"] for i in range(3)]


@pytest.mark.parametrize("fault", [503, "cut", "stall"])
def test_a_fault_that_stays_leaves_the_row_pending_in_time(server, fault):
    state, url = server
    state.faults["v0.mp4"] = [fault]
    started = time.monotonic()
    error, other = take_all([f"{url}/v0.mp4", f"{url}/v1.mp4"], config(timeout_seconds=0.3))
    assert isinstance(error, Transient) and "v0.mp4" in str(error)
    assert other == state.files["v1.mp4"] and time.monotonic() - started < 10


def test_a_server_that_is_not_there_leaves_the_row_pending():
    [error] = take_all(["http://127.0.0.1:9/v.mp4"], config())
    assert isinstance(error, Transient)


@pytest.mark.parametrize("status, kind", [(404, "missing_file"), (410, "missing_file"), (403, "no_permission")])
def test_what_the_server_says_for_good_is_the_videos_failure(server, status, kind):
    state, url = server
    state.faults["v0.mp4"] = [status]
    *errors, other = take_all([f"{url}/v0.mp4", fetch.ranged(f"{url}/v0.mp4", 0, 5), f"{url}/v1.mp4"], config())
    assert [getattr(error, "kind", error) for error in errors] == [kind, kind] and other == state.files["v1.mp4"]


def test_leaving_early_leaves_nothing(server):
    state, url = server
    state.faults["v2.mp4"] = ["stall"]
    with pytest.raises(RuntimeError), Fetch([f"{url}/v{i}.mp4" for i in range(12)], config()) as videos:
        with videos.take(f"{url}/v0.mp4"):
            raise RuntimeError("the decoder has a bug")
