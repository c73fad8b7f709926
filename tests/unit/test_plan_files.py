"""The plan's bytes: the same whatever the order of input, the number of cores and the engine; whole or not there."""

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from gex_pipeline import catalog, plan, plan_files
from gex_pipeline.config import ExpandConfig
from shards.errors import DatasetError, UserError


def tables(folder, order=0, files=3):
    """900 clips of 130 sources, with ties, unknown ends, several videos a source, repeated rows, over several files."""
    rng = random.Random(7)
    rows = []
    for i in range(900):
        source = f"s{rng.randrange(130)}" if i > 60 else "big"
        row = {
            "source_id": source,
            "video": f"{source}_{rng.randrange(2)}.mp4",
            "start": rng.randrange(60),
            "caption": f"c{i}",
            "i": i,
        }
        rows.append(row | {"end": row["start"] + rng.choice([1, 2.5, 30])} if i % 9 else row)
    rows += rows[:5]
    random.Random(order).shuffle(rows)
    folder.mkdir(parents=True)
    for number in range(files):
        text = "".join(json.dumps(row) + "\n" for row in rows[number::files])
        (folder / f"{number}.jsonl").write_text(text)
    return folder


def digests(root):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(root, "plan").iterdir()}


def make_plan(folder, root, engine="polars", by="source"):
    config = ExpandConfig()
    config.input.path, config.input.video_root = str(folder / "*.jsonl"), "/videos"
    config.integrate.engine, config.integrate.by, config.split.val_fraction = engine, by, 0.1
    record = plan.write(plan.build(catalog.load(config)[0], config), str(root))
    return record, digests(root)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(plan_files, "PART_CLIPS", 200)
    monkeypatch.setattr(plan_files, "GROUP_CLIPS", 60)


@pytest.mark.parametrize("by", ["source", "random", "none"])
def test_the_same_bytes_for_any_order_of_rows_and_files(tmp_path, by):
    record, calm = make_plan(tables(tmp_path / "a"), tmp_path / "out", by=by)
    assert 880 < record["clips"] < 900, "some clips come twice with different captions: which one stays is no chance"
    assert len(record["parts"]) > 3
    for order, files in [(1, 1), (2, 7)]:
        assert make_plan(tables(tmp_path / f"b{order}", order, files), tmp_path / f"out{order}", by=by)[1] == calm


def test_the_same_bytes_with_one_and_with_two_cores(tmp_path):
    folder = tables(tmp_path / "a")
    code = (
        "import sys; from pathlib import Path; from unittest import mock; from gex_pipeline import plan_files\n"
        "plan_files.PART_CLIPS, plan_files.GROUP_CLIPS = 200, 60\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_plan_files import make_plan\n"
        "make_plan(Path(sys.argv[1]), sys.argv[2])"
    )
    for cores in "12":
        environment = os.environ | {"POLARS_MAX_THREADS": cores, "OMP_NUM_THREADS": cores}
        subprocess.run([sys.executable, "-c", code, folder, tmp_path / cores], env=environment, check=True)
    assert digests(tmp_path / "1") == digests(tmp_path / "2") == make_plan(folder, tmp_path / "out")[1]


def test_the_same_bytes_over_rays_hash_shuffle(tmp_path, monkeypatch):
    import ray

    from gex_pipeline import plan_shuffle

    monkeypatch.setattr(plan_shuffle, "PARTITION_CLIPS", 250)
    calm = make_plan(tables(tmp_path / "a"), tmp_path / "out")[1]
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", object_store_memory=100 << 20)
    try:
        assert make_plan(tables(tmp_path / "b", order=3), tmp_path / "over_ray", engine="ray")[1] == calm
    finally:
        ray.shutdown()


@pytest.mark.parametrize("remote", [False, True])
def test_every_row_is_read_back_as_it_was_planned(tmp_path, remote):
    root = "memory://plans/out" if remote else str(tmp_path / "out")
    config = ExpandConfig()
    config.input.path = str(tables(tmp_path / "in") / "*.jsonl")
    built = plan.build(catalog.load(config)[0], config)
    record = plan.write(built, root)
    assert plan.read(root)[0] == record
    rows = plan.read(root)[1]
    read = [plan.read_row(root, row) for row in range(record["rows"])]
    assert [r.num_rows for r in read] == rows["clips"].to_pylist()
    whole = pl.from_arrow(pa.concat_tables(read))
    assert whole.schema == pl.Schema(plan_files.PLAN_SCHEMA)
    assert whole["clip_id"].to_list() == built.clips[pl.Series(built.index)]["clip_id"].to_list()
    assert whole.select("row", "group", "position").rows() == sorted(whole.select("row", "group", "position").rows())
    assert whole.group_by("row").agg(pl.col("split").n_unique())["split"].max() == 1
    assert [len({(g, x) for g, x in zip(*r.select(["group", "long"]).to_pydict().values()) if x}) for r in read] == rows[
        "long"
    ].to_pylist()
    with pytest.raises(DatasetError, match="the plan has rows 0 to"):
        plan.read_row(root, record["rows"])


def test_the_same_plan_is_written_again_and_another_is_refused_untouched(tmp_path):
    folder = tables(tmp_path / "in")
    record, calm = make_plan(folder, tmp_path / "out")
    (tmp_path / "out/plan/part-00001.parquet").unlink()
    assert make_plan(folder, tmp_path / "out") == (record, calm), "a part that was lost comes back"
    with pytest.raises(UserError, match="output.path: .* holds the plan of another catalog"):
        make_plan(folder, tmp_path / "out", by="none")
    with open(folder / "0.jsonl", "a") as file:
        file.write(json.dumps({"video": "new.mp4", "caption": "x"}))
    with pytest.raises(UserError, match="output.path"):
        make_plan(folder, tmp_path / "out")
    assert digests(tmp_path / "out") == calm


def test_a_folder_without_a_whole_plan_is_said_so(tmp_path):
    _, files = make_plan(tables(tmp_path / "in"), tmp_path / "out")
    path = tmp_path / "out/plan/plan.json"
    record = json.loads(path.read_text())
    for text, message in [("{", "not a plan"), (json.dumps(record | {"version": 99}), "plan version 99")]:
        path.write_text(text)
        with pytest.raises(DatasetError, match=message):
            plan.read(str(tmp_path / "out"))
    path.unlink()
    with pytest.raises(DatasetError, match="no plan here"):
        plan.read_row(str(tmp_path / "out"), 0)
