"""The stream among faults: damaged samples, killed and frozen workers, reads that hang."""

import gc
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import fsspec
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from make_dataset import make_dataset
from test_stream import SHORT, STREAMS, content, contents, own_root, root, streams, tokenizer  # noqa: F401

from shards.errors import UserError
from shards.reader import open_dataset
from trainer.data_config import DataConfig
from trainer.stream import evaluation_batches
from trainer.tars import Tar


def damage(root, what: str) -> Path:
    """Break the first training shard of short samples; returns its tar."""
    tar = root / "train/short/00000.tar"
    data = bytearray(tar.read_bytes())
    dataset = open_dataset(str(root))
    sidecar = dataset.sidecar(dataset.select("train", "short")[0])
    offset = sidecar["offset"][3].as_py()
    if what == "truncated":
        tar.write_bytes(data[: len(data) * 2 // 3])
    elif what == "bad_jpeg":
        at = data.index(b"\xff\xd8", offset)
        data[at : at + 200] = bytes(200)
        tar.write_bytes(data)
    elif what == "bad_tar":
        shifted = sidecar.set_column(7, "offset", pa.array([o + 700 for o in sidecar["offset"].to_pylist()]))
        pq.write_table(shifted, tar.with_suffix(".parquet"))
    elif what == "unreadable":
        tar.unlink()
    elif what == "bad_json":
        data[data.index(b"{", offset)] = ord("[")
        tar.write_bytes(data)
    return tar


@pytest.mark.parametrize("what", ["truncated", "bad_jpeg", "bad_tar", "unreadable", "bad_json"])
def test_a_bad_sample_is_replaced_by_a_rule_counted_and_named(own_root, what, caplog):
    healthy = contents(own_root, steps=6, configs=SHORT)
    tar = damage(own_root, what)
    with caplog.at_level(logging.WARNING), streams(own_root, SHORT) as stream:
        damaged = [content(batch) for batch in stream.batches(0, 6)]
        failures = dict(stream.failures)
    assert [len(batch[2]) for batch in damaged] == [16] * 6
    bad = {i for a, b in zip(healthy, damaged) for i, j in zip(a[2], b[2]) if i != j}
    assert 0 < len(bad) <= 20  # only samples of the damaged shard
    assert not bad & {i for batch in damaged for i in batch[2]} or what == "bad_tar"
    assert all(url == str(tar) for _, url in failures) and what in {kind for kind, _ in failures}
    assert str(tar) in caplog.text
    assert contents(own_root, steps=6, configs=SHORT, workers=2) == damaged


def test_too_many_bad_samples_end_the_run_with_one_clear_line(own_root):
    tar = damage(own_root, "unreadable")
    with streams(own_root, SHORT, max_failures=3, workers=1) as stream:
        with pytest.raises(UserError, match=rf"more bad samples than max_failures=3 allows: 4 unreadable in {tar}"):
            list(stream.batches(0, 20))


def test_an_evaluation_counts_batches_of_which_nothing_can_be_read(own_root, caplog):
    def batches(max_failures):
        dataset, data = open_dataset(str(own_root)), DataConfig(size=32, workers=0, max_failures=max_failures)
        return list(evaluation_batches(dataset, "val", "short", ["caption"], 3, 3, 0, 1, data, tokenizer))

    tar = next(own_root.glob("val/short/*.tar"))
    tar.unlink()
    assert sum(len(batch.sample_ids) for batch in batches(3)) == 6
    assert f"{tar}: unreadable sample left out" in caplog.text
    with pytest.raises(UserError, match=f"more bad samples than max_failures=2 allows: 3 unreadable in {tar}"):
        batches(2)


def test_a_tar_without_sidecar_is_scanned_and_gives_the_same_batches(own_root):
    with_sidecars = contents(own_root, steps=5)
    for sidecar in own_root.glob("train/*/*.parquet"):
        sidecar.unlink()
    assert contents(own_root, steps=5) == with_sidecars


@pytest.mark.parametrize(
    "column, value",
    [("size", 1 << 40), ("size", 1 << 62), ("size", -51200), ("offset", -512), ("offset", 1 << 62), ("offset", None)],
)
def test_a_sidecar_that_points_outside_its_tar_costs_that_sample_alone(own_root, column, value):
    sidecar = own_root / "train/short/00000.parquet"
    table = pq.read_table(sidecar)
    values = table[column].to_pylist()
    values[3] = value
    healthy = contents(own_root, steps=3, configs=SHORT)
    pq.write_table(table.set_column(table.schema.get_field_index(column), column, pa.array(values, pa.int64())), sidecar)
    with streams(own_root, SHORT) as stream:
        damaged = [content(batch) for batch in stream.batches(0, 3)]
        assert dict(stream.failures) == {("bad_index", str(sidecar.with_suffix(".tar"))): 1}
    assert sum(i != j for a, b in zip(healthy, damaged) for i, j in zip(a[2], b[2])) == 1


@pytest.fixture
def failing(own_root, monkeypatch):
    """own_root as a memory:// URL, and a list of (path, how often) whose next reads fail."""
    remote, faults = fsspec.filesystem("memory"), []
    remote.put(str(own_root), "/gexia-faults", recursive=True)

    def may_fail(method):
        def read(self, path, *args, **kwargs):
            for fault in faults:
                if path.endswith(fault[0]) and fault[1] > 0:
                    fault[1] -= 1
                    raise OSError("503 Slow Down")
            return method(self, path, *args, **kwargs)

        return read

    for name in ("cat_file", "_open"):
        monkeypatch.setattr(MemoryFileSystem, name, may_fail(getattr(MemoryFileSystem, name)))
    yield "memory://gexia-faults", faults
    remote.rm("/gexia-faults", recursive=True)


def test_an_outage_while_indexes_are_read_changes_nothing(own_root, failing, caplog):
    url, faults = failing
    expected = contents(own_root, steps=6, configs=SHORT)
    fsspec.filesystem("memory").rm("/gexia-faults/train/short/00000.parquet")  # that tar is scanned
    with streams(url, SHORT) as stream:
        faults += [["short/00000.tar", 1], ["short/00001.parquet", 2]]
        assert [content(batch) for batch in stream.batches(0, 6)] == expected
        assert not stream.failures and faults == [["short/00000.tar", 0], ["short/00001.parquet", 0]]
    assert "00001.parquet" not in caplog.text


@pytest.mark.parametrize("missing", [False, True], ids=["sidecar", "tar"])
def test_a_store_that_keeps_failing_ends_the_run_instead_of_leaving_the_shard_out(failing, missing):
    url, faults = failing
    if missing:
        fsspec.filesystem("memory").rm("/gexia-faults/train/short/00001.parquet")
    name = "short/00001.tar" if missing else "short/00001.parquet"
    with streams(url, SHORT) as stream:
        faults.append([name, 99])
        with pytest.raises(UserError, match=f"{name}: .*503 Slow Down; (try again|go on when the store answers again)"):
            next(stream.batches(0, 1))


def test_the_tar_of_a_damaged_sidecar_is_scanned(own_root, caplog):
    expected = contents(own_root, steps=4, configs=SHORT)
    sidecar = own_root / "train/short/00001.parquet"
    data = sidecar.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for damaged in (data[:-7], data[:footer] + bytes(30) + data[footer + 30 :]):  # Arrow raises ValueError and OSError
        sidecar.write_bytes(damaged)
        caplog.clear()
        assert contents(own_root, steps=4, configs=SHORT) == expected
        assert f"{sidecar}: cannot read it" in caplog.text


def workers_of(pid: int) -> list[psutil.Process]:
    children = [p for p in psutil.Process(pid).children() if p.status() != psutil.STATUS_ZOMBIE]
    return [p for p in children if "trainer.worker" in " ".join(p.cmdline())]


def test_a_killed_worker_is_replaced_and_changes_nothing(root):
    expected = contents(root, steps=30)
    got = []
    with streams(root, workers=2, prefetch=1) as stream:
        for step, batch in enumerate(stream.batches(0, 30)):
            got.append(content(batch))
            if step in (3, 4, 15):
                workers_of(os.getpid())[0].kill()
    assert got == expected


def test_workers_of_a_stream_that_nobody_closed_end_with_it(root):
    stream = streams(root, workers=2)
    next(stream.batches(0, 1))
    list(stream.batches(0, 1))
    workers = workers_of(os.getpid())
    assert len(workers) == 2
    del stream
    gc.collect()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive


def read_with_one_frozen(stream) -> list:
    """Twenty batches, one of the workers stopped after the fourth."""
    got = []
    for step, batch in enumerate(stream.batches(0, 20)):
        got.append(content(batch))
        if step == 3:
            workers_of(os.getpid())[0].send_signal(signal.SIGSTOP)
    return got


def test_a_frozen_worker_is_named_and_replaced(root, caplog):
    with streams(root, workers=2, prefetch=1, read_seconds=1.5) as stream:
        assert read_with_one_frozen(stream) == contents(root, steps=20)
    assert "made no progress for 2 s" in caplog.text


@pytest.mark.timeout(60)
def test_a_frozen_worker_that_takes_no_more_messages_is_replaced(tmp_path, caplog):
    """One lane, so that its window, and with it every task, is large: more than a socket holds of them lie ahead."""
    make_dataset(tmp_path, shorts={"train": 2000}, longs={}, rows=1, size=(16, 16), frames=1)
    configs = {"svst": replace(STREAMS["svst"], frames=1, lanes=1)}
    with streams(tmp_path, configs, workers=2, read_seconds=1.5) as stream:
        assert read_with_one_frozen(stream) == contents(tmp_path, steps=20, configs=configs)
    assert "made no progress for 2 s" in caplog.text


def test_a_read_that_hangs_is_given_up_and_the_run_goes_on(own_root, caplog):
    """The first shard becomes a pipe that nobody writes to."""
    tar = own_root / "train/short/00000.tar"
    tar.unlink()
    os.mkfifo(tar)
    with streams(own_root, SHORT, workers=2, read_seconds=1.0, stall_seconds=30) as stream:
        batches = list(stream.batches(0, 3))
        failures = dict(stream.failures)
    assert [len(batch.sample_ids) for batch in batches] == [16] * 3
    assert set(failures) == {("stalled", str(tar))}
    assert f"reading {tar}" in caplog.text


def test_without_any_progress_the_run_ends_and_names_the_shard(own_root, capfd):
    tar = own_root / "train/short/00000.tar"
    with streams(own_root, SHORT, workers=1, read_seconds=60, stall_seconds=2.0) as stream:
        tar.unlink()
        os.mkfifo(tar)
        with pytest.raises(UserError, match=rf"no data for 2 s .*svst, step 0; workers are at: reading {tar}"):
            list(stream.batches(0, 3))
    assert "Thread 0x" in capfd.readouterr().err  # the stacks


def test_a_store_that_hangs_ends_the_run_however_often_workers_are_replaced(own_root, capfd):
    """Every tar hangs. Each is given up after two reads, in each window anew."""
    with streams(own_root, SHORT, workers=2, read_seconds=1.0, stall_seconds=6.0) as stream:
        for tar in own_root.glob("train/short/*.tar"):
            tar.unlink()
            os.mkfifo(tar)
        began = time.monotonic()
        with pytest.raises(UserError, match="no data for 6 s .*svst, step 0; workers are at: "):
            list(stream.batches(0, 3))
    assert time.monotonic() - began < 15


def test_workers_that_cannot_start_end_the_run_in_one_line_however_many_tars(root, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with streams(root, SHORT, workers=1) as stream:
        stream._tars.tars += [Tar(f"{number:0100d}.tar", 1, "") for number in range(5000)]
        with pytest.raises(UserError, match="data workers do not start"):
            list(stream.batches(0, 1))


def test_workers_take_no_modules_from_the_folder_they_are_started_in(root, tmp_path, monkeypatch):
    (tmp_path / "queue.py").write_text("raise ImportError('not the library')")
    monkeypatch.chdir(tmp_path)
    assert contents(root, steps=2, workers=1) == contents(root, steps=2)


def test_an_index_that_does_not_come_ends_the_run_and_is_named(own_root, capfd):
    sidecar = own_root / "train/short/00001.parquet"
    sidecar.unlink()
    os.mkfifo(sidecar)
    with streams(own_root, SHORT, stall_seconds=1.0) as stream:
        with pytest.raises(UserError, match=rf"no answer for 1 s .* about {sidecar.with_suffix('.tar')}"):
            list(stream.batches(0, 1))
    assert "Thread 0x" in capfd.readouterr().err


def test_a_killed_run_leaves_no_process_and_no_shared_memory(root, tmp_path):
    before = set(os.listdir("/dev/shm"))
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys
            sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]
            from test_stream import streams
            with streams({str(root)!r}, workers=2) as stream:
                for batch in stream.batches(0, 10**6):
                    print(batch.step, flush=True)
            """
        )
    )
    run = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    for line in run.stdout:
        if int(line) == 20:
            break
    workers = workers_of(run.pid)
    assert len(workers) == 2
    run.kill()
    run.wait()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
    assert set(os.listdir("/dev/shm")) <= before
