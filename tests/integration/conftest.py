"""What several integration tests look at."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def footage(shared_data, tmp_path_factory) -> Path:
    """The real footage, expanded by the command of the README, without interruption. Look, do not touch."""
    output = tmp_path_factory.mktemp("footage") / "dataset"
    command = [sys.executable, "-m", "gex_pipeline.expand", "--config", "configs/expand/local.yaml"]
    command += ["--input.path", str(shared_data / "footage/clips.jsonl"), "--output.path", str(output)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "clips/s" not in line]  # progress, where it took a minute
    assert said == ["36 rows, 36 clips"]  # Ray keeps quiet
    return output
