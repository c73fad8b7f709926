"""A dataset is what its commit records say, and its manifest is a function of them alone."""

import json
import shutil
import uuid

import pyarrow.parquet as pq
import pytest
from make_dataset import make_dataset

from shards import format, publish, reader, storage
from shards.errors import DatasetError
from shards.validate import validate


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    root = tmp_path_factory.mktemp("good")
    make_dataset(root, shorts={"train": 5, "val": 2}, longs={"train": 2, "val": 1}, size=(48, 32))
    return root


def test_the_first_commit_record_of_a_row_wins(tmp_path):
    assert publish.write_commit(str(tmp_path), 3, {"row": 3, "shards": {}, "by": "first"})
    assert not publish.write_commit(str(tmp_path), 3, {"row": 3, "shards": {}, "by": "second"})
    assert [record["by"] for record in publish.read_commits(str(tmp_path))] == ["first"]


def test_commit_records_are_read_in_row_order_and_receipts_are_none(tmp_path):
    for row in (100_000, 7, 12):
        publish.write_commit(str(tmp_path), row, {"row": row, "shards": {}})
    storage.write_bytes_atomic(str(tmp_path / "commits" / "00008.extract.json"), b"{}")
    assert publish.committed_rows(str(tmp_path)) == [7, 12, 100_000]
    assert [record["row"] for record in publish.read_commits(str(tmp_path))] == [7, 12, 100_000]


def test_the_manifest_counts_committed_rows_only(good, tmp_path):
    root = shutil.copytree(good, tmp_path / "dataset")
    (root / format.commit_path(0)).unlink()
    publish.build_manifest(str(root), "c", "p", {}, {})
    dataset = reader.open_dataset(str(root))
    assert {shard.row for shard in dataset.select("train")} == {1}
    assert dataset.manifest["counts"]["train"]["short"]["samples"] == 2
    assert dataset.manifest["counts"]["val"] == reader.open_dataset(str(good)).manifest["counts"]["val"]
    assert validate(str(root)) == []


def test_building_the_manifest_again_gives_the_same_bytes(good, tmp_path):
    root = shutil.copytree(good, tmp_path / "dataset")
    names = ("manifest.json", "manifest.parquet", "README.md")
    before = [(root / name).read_bytes() for name in names]
    manifest = json.loads(before[0])
    built = publish.build_manifest(str(root), "test", "test", manifest["frames"], manifest["versions"])
    assert built == manifest
    assert [(root / name).read_bytes() for name in names] == before


def test_a_row_without_long_samples_has_no_long_tar(good):
    dataset = reader.open_dataset(str(good))
    assert [shard.row for shard in dataset.select("val", "long")] == [2]
    assert [shard.row for shard in dataset.select("val", "short")] == [2, 3]
    assert not (good / "val" / "long" / "00003.tar").exists()


def test_a_remote_dataset_is_the_same_dataset(good):
    root = f"memory://{uuid.uuid4().hex}"
    make_dataset(root, shorts={"train": 5, "val": 2}, longs={"train": 2, "val": 1}, size=(48, 32))
    remote, local = reader.open_dataset(root), reader.open_dataset(str(good))
    assert (remote.manifest, remote.shards) == (local.manifest, local.shards)
    assert all(remote.sidecar(shard).equals(local.sidecar(shard)) for shard in local.shards)
    assert validate(root) == []


def test_an_empty_dataset_is_a_dataset(tmp_path):
    publish.build_manifest(str(tmp_path), "c", "p", {}, {})
    assert reader.open_dataset(str(tmp_path)).shards == []
    assert validate(str(tmp_path)) == []


def test_a_damaged_manifest_is_named_in_one_line(good, tmp_path):
    root = shutil.copytree(good, tmp_path / "dataset")
    (root / "manifest.parquet").write_bytes(b"nonsense")
    with pytest.raises(DatasetError, match="manifest.parquet: cannot read it"):
        reader.open_dataset(str(root))
    (root / "manifest.parquet").unlink()
    with pytest.raises(DatasetError, match="manifest.parquet: missing"):
        reader.open_dataset(str(root))


def test_the_sidecar_and_the_manifest_have_the_formats_schemas(good):
    assert pq.read_schema(good / "manifest.parquet").equals(format.MANIFEST_SCHEMA)
    assert pq.read_schema(good / "train/short/00000.parquet").equals(format.SIDECAR_SCHEMA)
