"""Beside `make_dataset.py`, so that pytest puts this folder on the path: `from make_dataset import make_dataset`."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real videos and annotation files that are no part of the project."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.exists():
        pytest.skip("../shared/data is not here")
    return folder
