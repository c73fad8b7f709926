"""The expansion with a summary server: what a server that fails, or refuses for good, makes of the job."""

import json
from collections import deque
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from make_video import pattern_video
from openai_server import KEY, Server

from gex_pipeline import expand

REPOSITORY = Path(__file__).parents[2]
SAYS = "Several parts of one pattern follow each other."


@pytest.fixture(scope="module")
def catalog(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    pattern_video(folder / "a.mp4", seconds=8)
    rows = [
        {"source_id": f"s{i // 2}", "video": "a.mp4", "start": i, "end": i + 1, "caption": f"part {i} is shown"}
        for i in range(8)
    ]
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "clips.jsonl"


@pytest.fixture(scope="module", autouse=True)
def private_ray():
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", KEY)  # workers inherit it
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield
        ray.shutdown()


def run(catalog, output, server, model="m") -> int:
    arguments = ["--config", str(REPOSITORY / "configs/expand/local.yaml"), "--input.path", str(catalog)]
    arguments += ["--output.path", str(output), "--output.clips_per_shard", "2", "--compress.backend", "openai"]
    return expand.main([*arguments, "--compress.url", server.url, "--compress.model", model])


def test_rows_wait_for_a_server_that_fails_and_are_finished_when_it_answers(catalog, tmp_path, capfd):
    output = tmp_path / "out"
    with Server() as server:
        server.says, server.script = SAYS, deque([(503, {"retry-after": "0"})])
        assert run(catalog, output, server) == 1
        account = json.loads((output / "run.json").read_text())
        assert account["rows"]["pending"] > 1 and not list(output.glob("summaries/*.parquet"))
        assert all(why.startswith("compress: no summary from") for why in account["pending"].values())
        server.script = deque(["ok"])
        assert run(catalog, output, server) == 0
        lines = [line for file in output.glob("summaries/*.parquet") for line in pq.read_table(file).to_pylist()]
        assert [(line["summary"], line["backend"]) for line in lines] == [(SAYS, "openai")] * 4
        account = json.loads((output / "run.json").read_text())
        assert account["summaries"]["generated"] == account["summaries"]["texts"] == 4
        server.shutdown()
    printed = capfd.readouterr()
    written = [file.read_bytes() for file in output.rglob("*") if file.is_file()]
    assert KEY not in printed.out + printed.err and not any(KEY.encode() in content for content in written)


def test_a_model_that_the_server_does_not_have_ends_the_run_with_one_line(catalog, tmp_path, capfd):
    with Server() as server:
        assert run(catalog, tmp_path / "out", server, model="other") == 2
        server.shutdown()
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert errors == ["error: compress.model: the server has no other; it has m"]
