"""What the driver does when something breaks under it: rows stay pending, one line, the right exit code."""

import errno

import pytest
import ray

from gex_pipeline import expand, summary
from gex_pipeline.config import ExpandConfig, StageResources
from gex_pipeline.errors import Transient
from gex_pipeline.options import check, parse
from gex_pipeline.progress import Progress
from shards.errors import UserError

ARGUMENTS = ["--input.path", "clips.jsonl", "--output.path", "out"]


def test_a_full_disk_under_the_driver_is_one_line(monkeypatch, capsys):
    def full(config):
        raise OSError(errno.ENOSPC, "No space left on device", "/data/out/plan/plan.json")

    monkeypatch.setattr(expand.catalog, "load", full)
    assert expand.main(ARGUMENTS) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "No space left" in line and "/data/out/plan/plan.json" in line


@pytest.mark.parametrize("error", [ray.exceptions.NodeDiedError("gone"), ray.data.exceptions.SystemException("broken")])
def test_rows_that_a_broken_cluster_did_not_reach_stay_pending(monkeypatch, capsys, error):
    def pipeline(rows, config):
        yield {"row": 0, "clips": 5, "refused": False, "pending": "", "extract": 1.5}
        yield {"row": 1, "clips": 5, "refused": False, "pending": "extract: stalled", "extract": 0.5}
        raise error

    monkeypatch.setattr(expand, "pipeline", pipeline)
    work = summary.Work()
    with Progress(20, 0) as progress:
        expand.process(dict.fromkeys(range(4), 5), ExpandConfig(), work, progress)
    assert work.pending == {1: "extract: stalled", 2: expand._LOST, 3: expand._LOST} and work.rows == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Ray: ")


def test_summaries_of_a_row_that_only_the_second_pass_commits_count_as_generated(monkeypatch):
    def pipeline(rows, config):
        generated, pending = passes.pop(0)
        yield {"row": 0, "clips": 5, "refused": False, "pending": pending,
               "summaries": {"texts": 4, "generated": generated, "bytes": 9}}  # fmt: skip

    passes = [(4, "compose: stalled"), (0, "")]
    monkeypatch.setattr(expand, "pipeline", pipeline)
    work = summary.Work()
    with Progress(5, 0) as progress:
        expand.process({0: 5}, ExpandConfig(), work, progress)
        assert not work.summaries
        expand.process({0: 5}, ExpandConfig(), work, progress)
    assert work.summaries == {"texts": 4, "generated": 4, "bytes": 9}


@pytest.mark.parametrize(
    "work, says",
    [
        (summary.Work(), "all rows were done already: 4 summaries, 1.50 MB in the store"),
        (summary.Work(rows=1, summaries={"texts": 4, "generated": 3, "bytes": 20_000}),
         "3 summaries generated, 1 taken from the store or equal ones; 0.02 MB"),
        (summary.Work(pending={1: "compress: no answer"}), ""),
    ],
)  # fmt: skip
def test_the_closing_lines_say_where_the_summaries_come_from(tmp_path, monkeypatch, work, says):
    texts = {"ok": 3, "fallback": 1, "in_pieces": 0, "screened": 0, "rejected": {}}
    record = {"status_dict": {}, "successes": 5, "policy_fallbacks": 0, "summaries": texts}
    monkeypatch.setattr(summary.publish, "read_commits", lambda root: [record])
    (tmp_path / "summaries").mkdir()
    (tmp_path / "summaries/00000.parquet").write_bytes(bytes(1_500_000))
    counts = {"rows_in": 5, "filtered": 0, "duplicates": 0}
    run = summary.conclude(str(tmp_path), {"counts": {}, "digest": "d"}, counts, {}, work)
    told = [line.removeprefix("   texts  ") for line in summary.lines(run, str(tmp_path)) if line.startswith("   texts  ")]
    assert told == [says] * bool(says)


@pytest.mark.parametrize(
    "error, why, traceback",
    [
        (Transient("video.mp4: no byte came for 60 s"), "extract: video.mp4: no byte came for 60 s", False),
        (OSError(errno.ENOSPC, "No space left on device"), "extract: [Errno 28] No space left on device", False),
        (UserError("compress.max_model_len is not set"), "extract: compress.max_model_len is not set", False),
        (KeyError("a fault of ours"), "extract: KeyError: 'a fault of ours'", True),
    ],
)
def test_a_stage_that_fails_leaves_its_row_pending_and_the_next_stages_pass_it_by(tmp_path, capfd, error, why, traceback):
    def work(root, row, config):
        raise error

    config = ExpandConfig()
    config.output.path = str(tmp_path)
    item = expand.stage("extract", work, config)({"row": 3, "pending": ""})
    assert item["pending"] == why and ("Traceback" in capfd.readouterr().err) == traceback
    assert expand.stage("compose", work, config)(item)["pending"] == why


def test_resources_are_keys_of_the_config_and_must_be_positive():
    config = parse([*ARGUMENTS, "--resources.extract.cpus", "2", "--resources.compress.memory_gb", "1.5"])
    assert (config.resources.extract.cpus, config.resources.compress.memory_gb, config.resources.compose.cpus) == (2, 1.5, 0.01)
    config.resources.compose = StageResources(cpus=0)
    with pytest.raises(UserError, match="resources.compose.cpus is 0; it must be positive"):
        check(config)
