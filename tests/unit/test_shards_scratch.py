"""Scratch folders: gone with their context, or, where the process was killed, with the next folder's making."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from shards import scratch

OWNER = """import time; from shards import scratch
with scratch.folder() as f: open(f + '/x', 'w'); print(f, flush=True); time.sleep(60)"""


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield
    tempfile.tempdir = None


def test_a_folder_goes_with_its_context(tmp_path):
    with pytest.raises(ValueError), scratch.folder() as folder:
        assert os.path.dirname(folder) == str(tmp_path)
        Path(folder, "video").write_bytes(b"x")
        raise ValueError
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_leaves_is_removed_and_a_living_ones_is_kept(tmp_path):
    owners = [subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        killed, alive = (owner.stdout.readline().strip() for owner in owners)
        owners[0].send_signal(signal.SIGKILL)
        owners[0].wait()
        assert Path(killed, "x").exists()
        with scratch.folder() as mine:
            assert {str(path) for path in tmp_path.iterdir()} == {alive, mine}
        assert Path(alive, "x").exists()
    finally:
        for owner in owners:
            owner.kill()
            owner.communicate()
