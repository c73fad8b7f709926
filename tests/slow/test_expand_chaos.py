"""A long expansion, killed again and again at random moments, ends with the tars of a calm one."""

import random
import subprocess
import sys
import time

import psutil
import pytest
from expand_job import REPOSITORY, committed, finish, start, tars, working

from shards.validate import validate

# What gets kill -9, by words of its command line; None is the driver.
VICTIMS = [("gex_pipeline.decode_child",), ("ray::", "Map(step)"), ("ray::", "MapWorker"), None]
KILLS = 16


@pytest.fixture(scope="module")
def catalog(shared_data, tmp_path_factory):
    """72 clips of 720p from 6 sources: more than 20 seconds of decoding on two cores."""
    work = tmp_path_factory.mktemp("work")
    footage = shared_data / "footage/videos"
    maker = REPOSITORY.parent / "shared/bench/make_work.py"
    command = [sys.executable, maker, work, "--sources", "6", "--seconds", "60", "--footage"]
    command += [footage / "onebyone.mp4", footage / "bottles.mp4"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=600)
    return work / "clips.jsonl"


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [0, 1])
def test_kills_at_random_moments_change_no_byte(catalog, tmp_path, seed):
    finish(start(catalog, tmp_path / "calm"), timeout=600)
    chance, output, kept = random.Random(seed), tmp_path / "out", {}
    process = start(catalog, output)
    for _ in range(KILLS):
        time.sleep(chance.uniform(0.5, 6))
        if process.poll() is not None:
            break
        victim = chance.choice(VICTIMS)
        if victim is None:
            process.kill()
            process.communicate()
            assert kept.items() <= committed(output).items()
            kept = committed(output)
            process = start(catalog, output)
            continue
        found = working(process, *victim)
        if found:
            try:
                chance.choice(found).kill()
            except psutil.NoSuchProcess:
                pass
    finish(process, timeout=600)
    assert kept.items() <= committed(output).items()
    assert tars(output) == tars(tmp_path / "calm") and validate(str(output)) == []
    assert not [f for f in output.rglob(".*.tmp")]
