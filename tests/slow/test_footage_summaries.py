"""The real footage through the real small model: every summary is the model's own, none fell back."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

REPOSITORY = Path(__file__).parents[2]
MODEL = REPOSITORY / ".cache/smollm2"


def test_all_seven_long_samples_get_the_models_own_sentences(tmp_path, shared_data):
    if not MODEL.exists():
        pytest.skip("no .cache/smollm2; make it with: python -m ops.models.smollm2 .cache/smollm2")
    output = tmp_path / "dataset"
    command = [sys.executable, "-m", "gex_pipeline.expand", "--config", "configs/expand/local.yaml"]
    command += ["--input.path", str(shared_data / "footage/clips.jsonl"), "--output.path", str(output)]
    command += ["--compress.backend", "transformers", "--compress.model", str(MODEL)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    files = sorted((output / "summaries").glob("*.parquet"))
    lines = [line for file in files for line in pq.read_table(file).to_pylist()]
    assert len(lines) == 7
    for line in lines:
        told = f"{line['backend']} {line['rejected']}: {line['summary']}"
        assert (line["status"], line["backend"], line["model"]) == ("ok", "transformers", "smollm2"), told
        assert re.fullmatch(r"[A-Z].*[.!?]", line["summary"]) and line["summary"].isascii(), told
        assert 3 <= len(line["summary"].split()) <= 40, told
        assert len(set(line["sentences"])) == len(line["sentences"]), told  # says nothing twice
    told = json.loads((output / "run.json").read_text())["long_texts"]
    assert (told["ok"], told["fallback"]) == (7, 0)
