"""What a person is shown of a dataset is what the dataset holds."""

import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pyarrow as pa
import pytest
from edit_dataset import edit_manifest_json
from hypothesis import given
from hypothesis import strategies as st
from make_dataset import make_dataset

import gexia
from shards import charts, format, publish, reader, report, stats
from shards.writer import ShardWriter, parquet_bytes


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    root = tmp_path_factory.mktemp("good")
    make_dataset(root, shorts={"train": 9, "val": 3}, longs={"train": 4, "val": 2}, size=(48, 32))
    ledger = [
        {"clip_id": "c1", "stage": "extract", "kind": "corrupt", "message": "no <frame> decodes"},
        {"clip_id": "c2", "stage": "extract", "kind": "corrupt", "message": "another"},
        {"clip_id": "c3", "stage": "catalog", "kind": "empty_caption", "message": "no caption"},
    ]
    (root / "errors").mkdir()
    (root / "errors/00000.parquet").write_bytes(parquet_bytes(pa.Table.from_pylist(ledger, format.LEDGER_SCHEMA)))
    return root


def test_the_numbers_are_those_of_the_samples(good):
    dataset = reader.open_dataset(str(good))
    groups = {(group.split, group.granularity): group for group in stats.collect(dataset)}
    assert {name: group.samples for name, group in groups.items()} == {
        ("train", "short"): 9, ("train", "long"): 4, ("train", "image"): 9,
        ("val", "short"): 3, ("val", "long"): 2, ("val", "image"): 3,
    }  # fmt: skip
    for group in groups.values():
        texts = [
            (json.loads(fields["json"])["duration_ms"] / 1000, len(fields["txt"].decode().split()))
            for shard in dataset.select(group.split, group.granularity)
            for _, fields in reader.iter_shard(dataset.shard_url(shard))
        ]
        assert list(zip(group.seconds, group.words)) == texts
    assert [(f.stage, f.kind, f.count, f.clip_id) for f in stats.failures(dataset)] == [
        ("extract", "corrupt", 2, "c1"),
        ("catalog", "empty_caption", 1, "c3"),
    ]


def test_inspect_shows_counts_failures_and_the_sample_of_a_key(good, capsys):
    assert gexia.main(["shards", "inspect", str(good), "--split", "val", "--key", "000020001"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^val +short +3 +0 +2 ", out, re.MULTILINE)
    assert "train  " not in out
    assert re.search(r"^extract +corrupt +2 +c1", out, re.MULTILINE)
    assert "val/short/00002.tar 000020001: bytes " in out
    assert "000020001.003.jpg" in out and '"key": "000020001"' in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--split", "test"], "nothing in test/*; there is train/image, train/long"),
        (["--key", "999990000"], "no sample 999990000 in */*"),
    ],
)
def test_inspect_of_what_is_not_there_is_one_line_and_exit_2(good, capsys, arguments, message):
    assert gexia.main(["shards", "inspect", str(good), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_report_is_one_page_that_loads_nothing(good, tmp_path, capsys):
    root = shutil.copytree(good, tmp_path / "dataset")
    assert gexia.main(["shards", "report", str(root)]) == 0
    assert capsys.readouterr().out == f"{root}/report.html\n"
    page = (root / "report.html").read_text()
    assert not re.search(r"https?://|<script|<link|url\(|@import", page)
    sources = re.findall(r'<img src="([^"]{0,40})', page)
    assert sources and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    dataset = reader.open_dataset(str(root))
    for granularity, count in (("short", 12), ("long", 6)):
        shown = [
            fields["txt"].decode() in page
            for shard in dataset.select(granularity=granularity)
            for _, fields in reader.iter_shard(dataset.shard_url(shard))
        ]
        assert sum(shown) == count
    assert "no &lt;frame&gt; decodes" in page and "prefers-color-scheme: dark" in page


@pytest.mark.parametrize(
    "old, new, reason, shown_by",
    [
        (b"{", b"[", "json is not valid", ("inspect", "report")),
        (b'"frame_ms"', b'"frame_mX"', "it has no 'frame_ms'", ("report",)),
        (b'"clips"', b'"clipX"', "it has no 'clips'", ("report",)),
        (b"\xff\xd8\xff", bytes(3), "cannot identify image", ("report",)),
        (b".json", b".jsoX", "it has no 'json'", ("inspect", "report")),
        (b"moov", b"mooX", "mp4: ", ("report",)),
    ],
)
def test_a_damaged_sample_is_one_line_that_names_it(tmp_path, capsys, old, new, reason, shown_by):
    mp4 = old == b"moov"
    make_dataset(tmp_path, shorts={"train": 2}, longs={"train": 1}, rows=1, size=(48, 32), mp4=mp4)
    for path in tmp_path.rglob("*.tar"):
        path.write_bytes(path.read_bytes().replace(old, new))
    for command in shown_by:
        assert gexia.main(["shards", command, str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert re.search(rf"train/\w+/00000.tar: sample 0+ is damaged: {reason}", error) and error.count("\n") == 1
        assert f"gexia shards validate {tmp_path}" in error


@pytest.mark.parametrize("name", ["digest", "plan_digest", "counts"])
@pytest.mark.parametrize("command", ["inspect", "report", "validate"])
def test_a_manifest_that_lacks_something_is_named(tmp_path, capsys, name, command):
    make_dataset(tmp_path, shorts={"train": 1}, longs={}, rows=1, size=(48, 32))
    edit_manifest_json(tmp_path, **{name: None})
    assert gexia.main(["shards", command, str(tmp_path)]) == 2
    assert f"manifest.json: damaged, it has no {name}" in capsys.readouterr().err


def test_texts_cannot_break_out_of_the_page(tmp_path):
    fields = {field: None for field in format.json_fields("short")}
    make_dataset(tmp_path / "frames", shorts={"train": 1}, longs={}, rows=1, size=(48, 32))
    ((_, members),) = reader.iter_shard(str(tmp_path / "frames/train/short/00000.tar"))
    with ShardWriter(str(tmp_path), "train", "short", 0) as writer:
        writer.add(
            sample_id="0", source_id="<s>", clip_ids=["<c>"], texts={"caption": "<script>alert(1)</script> $x"},
            meta={**fields, "frame_ms": [0], "sentences": {}, "clip_id": "<b>"}, frames=[members["000.jpg"]],
            duration_ms=1, decoder="none",
        )  # fmt: skip
        publish.write_commit(str(tmp_path), 0, {"row": 0, "shards": {"short": writer.close()}})
    publish.build_manifest(str(tmp_path), "c", "p", {}, {})
    page = report.render(reader.open_dataset(str(tmp_path)))
    assert (
        "&lt;script&gt;alert(1)&lt;/script&gt; $x" in page and "<script" not in page and "<b>" not in page.split("<h2>Short")[1]
    )


def test_licences_are_listed(tmp_path):
    publish.write_commit(str(tmp_path), 0, {"row": 0, "shards": {}, "licenses": {"CC-BY <4>": 2, "": 1}})
    publish.build_manifest(str(tmp_path), "c", "p", {}, {})
    page = report.render(reader.open_dataset(str(tmp_path)))
    assert re.search(r"CC-BY &lt;4&gt;</td><td class=number>2<.*not stated</td><td class=number>1<", page)


def test_an_empty_dataset_has_a_report(tmp_path):
    publish.build_manifest(str(tmp_path), "c", "p", {}, {})
    assert "The error ledger is empty" in report.render(reader.open_dataset(str(tmp_path)))


@given(values=st.lists(st.floats(0, 1e7), min_size=1, max_size=60), whole=st.booleans())
def test_a_histogram_counts_every_value_once(values, whole):
    values = np.array([round(v) for v in values] if whole else values)
    root = ElementTree.fromstring(charts.histogram(values, "seconds", whole))
    bars = [rect for rect in root if rect.tag == "rect"]
    counts = [int(rect[0].text.rsplit(": ", 1)[1].replace(",", "")) for rect in bars]
    assert sum(counts) == len(values)
    assert all(0 <= float(rect.get("x")) <= charts.WIDTH for rect in bars)


def run_gexia(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "gexia", *arguments], capture_output=True, text=True)


def test_the_command_line_teaches():
    done = run_gexia("--help")
    assert done.returncode == 0 and done.stderr == ""
    assert "gexia shards validate" in done.stdout and "exit codes" in done.stdout
    assert run_gexia().returncode == 2
    unknown = run_gexia("shrads")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr.startswith("error: no command 'shrads'; there are ") and unknown.stderr.count("\n") == 1
    assert run_gexia("shards", "validate").returncode == 2


def test_a_reader_that_stops_reading_is_no_traceback(good):
    done = subprocess.run(
        f"{sys.executable} -m gexia shards inspect {good} | head -c 1", shell=True, capture_output=True, text=True
    )
    assert done.stderr == ""


def test_help_imports_no_side_of_the_project():
    code = "import sys, gexia; gexia.main(['--help']); sys.exit(any(m in sys.modules for m in ('ray', 'torch', 'pyarrow')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
