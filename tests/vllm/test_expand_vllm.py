"""The whole expansion with real vLLM on the CPU: the job runs here, its compress stage in .venv-vllm."""

import json
import signal
import time
from pathlib import Path

import expand_job
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gex_pipeline import summaries
from shards.validate import validate

REPOSITORY = Path(__file__).parents[2]
PYTHON, MODEL = REPOSITORY / ".venv-vllm/bin/python", REPOSITORY / ".cache/smollm2"
VLLM = ["--config", "configs/expand/vllm_cpu.yaml"]


@pytest.fixture(autouse=True, scope="module")
def prepared():
    for path, remedy in ((PYTHON, "make setup-vllm"), (MODEL, "make .cache/smollm2")):
        if not path.exists():
            pytest.skip(f"no {path.relative_to(REPOSITORY)}; remedy: {remedy}")


@pytest.fixture(scope="module")
def clips(shared_data) -> Path:
    return shared_data / "footage/clips.jsonl"


def stored(output) -> list[dict]:
    files = sorted(Path(output, summaries.FOLDER).glob("*.parquet"))
    return pa.concat_tables(map(pq.read_table, files)).to_pylist() if files else []


def account(output) -> dict:
    return json.loads(Path(output, "run.json").read_text())


def engines(process=None) -> list[psutil.Process]:
    """Processes of vLLM's: below a job, or all that there are."""
    every = psutil.Process(process.pid).children(recursive=True) if process else psutil.process_iter()
    return [one for one in every if _title(one).startswith("VLLM::")]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def assert_complete(output) -> None:
    lines = stored(output)
    assert len(lines) == account(output)["granularities"]["long"]["samples"] == 7
    assert {line["backend"] for line in lines} <= {"vllm", "extractive"} and validate(str(output)) == []
    assert all(line["attempts"] >= 1 and line["output_tokens"] > 3 and line["prompt_tokens"] > 100 for line in lines)
    assert all(line["summary"] and line["summary"] != line["text"] for line in lines)
    assert sum(line["backend"] == "vllm" for line in lines) >= 5


@pytest.fixture(scope="module")
def calm(clips, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("calm") / "out"
    before = {one.pid for one in engines()}
    print(expand_job.finish(expand_job.start(clips, output, *VLLM), timeout=400))
    deadline = time.monotonic() + 20
    while left := {one.pid for one in engines()} - before:
        assert time.monotonic() < deadline, f"engine processes outlive the job: {left}"
        time.sleep(0.5)
    return output


def test_footage_is_expanded_with_summaries_by_vllm(calm):
    assert_complete(calm)
    run = account(calm)
    assert run["summaries"]["texts"] == run["summaries"]["generated"] == 7
    assert {"extract", "compress", "compose"} <= set(run["busy_seconds"])


def test_another_dataset_takes_the_summaries_over(calm, clips, tmp_path):
    """Other frames, the same texts: nothing is generated."""
    more = [*VLLM, "--frames.per_clip", 4, "--compress.reuse", f"[{calm}]"]
    expand_job.finish(expand_job.start(clips, tmp_path / "out", *more), timeout=400)
    lines, before = stored(tmp_path / "out"), {line["key"]: line["summary"] for line in stored(calm)}
    taken = [line for line in lines if line["attempts"] == 0]
    assert len(taken) >= 5 and all(line["summary"] == before[line["key"]] for line in lines)
    assert account(tmp_path / "out")["summaries"]["generated"] == len(lines) - len(taken)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_an_engine_that_dies_or_stalls_in_mid_batch_loses_no_text(clips, tmp_path, blow):
    """One row at a time, so that others are waiting and one is at work when the first is done."""
    output = tmp_path / "out"
    more = ["--compress.rows_in_flight", 2, "--compress.timeout_seconds", 20]
    process = expand_job.start(clips, output, *VLLM, *more)
    expand_job.wait_for(lambda: list(output.glob("summaries/[0-9]*.parquet")), process, seconds=300)
    first = engines(process)
    for one in first:
        one.send_signal(blow)
    second = expand_job.wait_for(lambda: set(engines(process)) - set(first), process, seconds=120)
    expand_job.finish(process, timeout=300)
    assert first and second and not any(one.is_running() for one in first)
    assert_complete(output)


@pytest.mark.parametrize(
    "more, says",
    [
        (["--compress.model", "/no/such/model"], "compress.model: there is no folder /no/such/model"),
        (["--compress.max_model_len", 100], "compress.max_model_len: a context of 100 tokens is too small"),
        (["--compress.engine", '{"no_such_argument": 1}'], "no_such_argument"),
    ],
)
def test_what_cannot_work_is_one_line(clips, tmp_path, more, says):
    process = expand_job.start(clips, tmp_path / "out", *VLLM, *more)
    output, _ = process.communicate(timeout=200)
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert process.returncode == 2 and len(errors) == 1 and says in errors[0], output
    assert "Traceback" not in output
