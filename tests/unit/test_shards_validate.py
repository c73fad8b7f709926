"""Each damage to a good dataset is found as exactly one problem, with its shard and key."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from edit_dataset import (
    edit_json,
    edit_manifest,
    edit_manifest_json,
    edit_sidecar,
    insert_after,
    read_tar,
    rebuild,
    replace,
    seal_manifest,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_dataset import make_dataset

import gexia
from shards import format, tar
from shards.validate import validate
from shards.writer import parquet_bytes

SHORT, LONG, IMAGE = "train/short/00000.tar", "train/long/00000.tar", "train/image/00000.tar"
OTHER_SHORT = "train/short/00001.tar"


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("good")
    make_dataset(root, shorts={"train": 6, "val": 2}, longs={"train": 4, "val": 1}, size=(48, 32))
    return root


@pytest.fixture
def root(good, tmp_path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "dataset"))


def test_a_good_dataset_has_no_problems(root):
    assert validate(str(root)) == []


# --- damages: each takes the dataset and returns (path, key, part of the message) of the one problem ---


def truncated_tar(root):
    data = (root / SHORT).read_bytes()
    (root / SHORT).write_bytes(data[: len(data) // 2])
    return SHORT, "", "truncated at byte"


def tar_without_end(root):
    data = (root / SHORT).read_bytes()
    (root / SHORT).write_bytes(data[: -len(tar.END)])
    return SHORT, "", "truncated at byte"


def damaged_header(root):
    data = bytearray((root / SHORT).read_bytes())
    data[100] ^= 1  # a digit of the first member's mode
    (root / SHORT).write_bytes(data)
    return SHORT, "", "damaged header at byte 0"


def missing_tar(root):
    (root / SHORT).unlink()
    return SHORT, "", "listed in the manifest but missing"


def missing_sidecar(root):
    (root / format.sidecar_path(SHORT)).unlink()
    return SHORT, "", "sidecar train/short/00000.parquet is missing"


def not_a_sidecar(root):
    (root / format.sidecar_path(SHORT)).write_bytes(b"PAR1 or something")
    return SHORT, "", "sidecar cannot be read"


def changed_sidecar(root):
    path = root / format.sidecar_path(SHORT)
    table = pq.read_table(path)
    path.write_bytes(parquet_bytes(table.set_column(13, "decoder", pa.array(["other"] * len(table)))))
    return SHORT, "", "sha256 of the sidecar"


def changed_byte(root):
    data = bytearray((root / SHORT).read_bytes())
    data[-len(tar.END) - 600] ^= 1  # inside the last JPEG, or its padding
    (root / SHORT).write_bytes(data)
    return SHORT, "", "sha256 mismatch"


def bytes_after_the_end(root):
    with open(root / SHORT, "ab") as file:
        file.write(b"more")
    return SHORT, "", "bytes, the manifest says"


def missing_member(root):
    rebuild(root, SHORT, lambda members: [m for m in members if m[0] != "000000001.002.jpg"])
    return SHORT, "000000001", "missing member 002.jpg"


def missing_last_member(root):
    rebuild(root, SHORT, lambda members: [m for m in members if m[0] != "000000001.003.jpg"])
    return SHORT, "000000001", "missing member 003.jpg"


def missing_json(root):
    rebuild(root, IMAGE, lambda members: [m for m in members if m[0] != "000000001.json"])
    return IMAGE, "000000001", "missing member json"


def missing_summary(root):
    rebuild(root, LONG, lambda members: [m for m in members if m[0] != "000000000.summary.txt"])
    return LONG, "000000000", "missing member summary.txt"


def extra_member(root):
    rebuild(root, SHORT, lambda members: insert_after(members, "000000001.003.jpg", ("000000001.wav", b"RIFF")))
    return SHORT, "000000001", "extra member wav"


def extra_frame(root):
    frame = ("000000001.004.jpg", dict(read_tar(root / SHORT))["000000001.003.jpg"])
    rebuild(root, SHORT, lambda members: insert_after(members, "000000001.003.jpg", frame))
    return SHORT, "000000001", "extra member 004.jpg"


def members_in_another_order(root):
    rebuild(root, IMAGE, lambda members: [members[0], members[2], members[1], *members[3:]])
    return IMAGE, "000000000", "another order: json, jpg, txt"


def member_without_key(root):
    rebuild(root, SHORT, lambda members: [*members, ("README", b"hello")])
    return SHORT, "", "member without a key: README"


def duplicate_key_adjacent(root):
    rebuild(root, IMAGE, lambda members: [m for m in members[:3] for _ in range(2)] + members[3:])
    return IMAGE, "000000000", "duplicate key"


def duplicate_key_later(root):
    rebuild(root, IMAGE, lambda members: members + members[:3])
    return IMAGE, "000000000", "duplicate key"


def duplicate_key_in_another_shard(root):
    sample = read_tar(root / SHORT)[:6]
    rebuild(root, OTHER_SHORT, lambda members: members + sample)
    return OTHER_SHORT, "000000000", f"duplicate key: also in {SHORT}"


def key_of_no_row(root):
    def rename(members):
        renamed = [(name.replace("000000002.", "777770002."), data) for name, data in members]
        return edit_json(renamed, "777770002.json", key="777770002")

    rebuild(root, IMAGE, rename)
    return IMAGE, "777770002", "does not belong to row 0"


def members_not_adjacent(root):
    rebuild(root, SHORT, lambda members: members[:3] + members[6:] + members[3:6])
    return SHORT, "000000000", "not adjacent"


def sidecar_lacks_sample(root):
    edit_sidecar(root, SHORT, lambda lines: lines[1:], samples=2, duration_ms=8000)
    return SHORT, "000000000", "in the tar but not in the sidecar"


def sidecar_lists_absent_sample(root):
    edit_sidecar(root, SHORT, lambda lines: [*lines, {**lines[0], "key": "000000099"}], samples=4, duration_ms=16000)
    return SHORT, "000000099", "in the sidecar but not in the tar"


def sidecar_lists_sample_twice(root):
    edit_sidecar(root, SHORT, lambda lines: [*lines, lines[0]], samples=4, duration_ms=16000)
    return SHORT, "000000000", "the sidecar lists it 2 times"


def sidecar_offset(root):
    edit_sidecar(root, SHORT, lambda lines: [{**lines[0], "offset": 512}, *lines[1:]])
    return SHORT, "000000000", "the sidecar says offset 512"


def sidecar_frames(root):
    edit_sidecar(root, SHORT, lambda lines: [{**lines[0], "frames": 5}, *lines[1:]])
    return SHORT, "000000000", "4 frames, the sidecar says 5"


def sidecar_members(root):
    edit_sidecar(root, SHORT, lambda lines: [{**lines[0], "members": 9}, *lines[1:]])
    return SHORT, "000000000", "6 members, the sidecar says 9"


def sidecar_sample_id(root):
    edit_sidecar(root, SHORT, lambda lines: [{**lines[0], "sample_id": "0" * 16}, *lines[1:]])
    return SHORT, "000000000", "the sidecar 0000000000000000"


def manifest_samples(root):
    edit_manifest(root, SHORT, samples=7)
    return SHORT, "", "the sidecar lists 3 samples, the manifest 7"


def manifest_duration(root):
    edit_manifest(root, SHORT, duration_ms=1)
    return SHORT, "", "last 12000 ms, the manifest says 1"


def manifest_path(root):
    edit_manifest(root, SHORT, row=9)
    return SHORT, "", "should be train/short/00009.tar"


def manifest_digest(root):
    edit_manifest_json(root, digest="0" * 64)
    return "manifest.json", "", "digest is not that of manifest.parquet"


def manifest_counts(root):
    edit_manifest_json(root, counts={})
    return "manifest.json", "", "counts are not those of manifest.parquet"


def unlisted_tar_of_a_committed_row(root):
    lines = pq.read_table(root / "manifest.parquet").to_pylist()
    seal_manifest(root, [line for line in lines if line["path"] != SHORT])
    return SHORT, "", "on disk but not in the manifest"


def invalid_json(root):
    rebuild(root, IMAGE, lambda members: replace(members, "000000001.json", b"{'key': nonsense}"))
    return IMAGE, "000000001", "json is not valid"


def json_that_is_a_list(root):
    rebuild(root, IMAGE, lambda members: replace(members, "000000001.json", b"[]"))
    return IMAGE, "000000001", "json is not an object"


def json_lacks_fields(root):
    rebuild(root, IMAGE, lambda members: edit_json(members, "000000001.json", width=None, _drop=["width", "decoder"]))
    return IMAGE, "000000001", "json lacks decoder, width"


def json_of_another_sample(root):
    rebuild(root, IMAGE, lambda members: edit_json(members, "000000001.json", key="000000007"))
    return IMAGE, "000000001", "json says key '000000007'"


def json_of_another_split(root):
    rebuild(root, IMAGE, lambda members: edit_json(members, "000000001.json", split="val"))
    return IMAGE, "000000001", "json says split 'val', this is 'train'"


def empty_text(root):
    rebuild(root, SHORT, lambda members: replace(members, "000000001.txt", b" \n"))
    return SHORT, "000000001", "txt is empty"


def empty_summary(root):
    rebuild(root, LONG, lambda members: replace(members, "000000001.summary.txt", b""))
    return LONG, "000000001", "summary.txt is empty"


def text_that_is_not_utf8(root):
    rebuild(root, SHORT, lambda members: replace(members, "000000001.txt", "café".encode("latin-1")))
    return SHORT, "000000001", "txt is not UTF-8"


def empty_sentence(root):
    rebuild(root, LONG, lambda members: edit_json(members, "000000001.json", sentences={"long": ["a", ""], "summary": ["b"]}))
    return LONG, "000000001", "sentences of long"


def no_caption_sentences(root):
    rebuild(root, IMAGE, lambda m: [x for x in edit_json(m, "000000001.json", sentences={}) if x[0] != "000000001.txt"])
    return IMAGE, "000000001", "sentences lacks caption"


def time_goes_back(root):
    rebuild(root, SHORT, lambda members: edit_json(members, "000000000.json", frame_ms=[100, 300, 200, 400]))
    return SHORT, "000000000", "goes back in time"


def time_outside_the_clip(root):
    rebuild(root, SHORT, lambda members: edit_json(members, "000000000.json", frame_ms=[100, 200, 300, 4000]))
    return SHORT, "000000000", "4000 lies outside [0, 4000)"


def time_outside_a_clip_of_a_long_sample(root):
    def edit(members):
        fields = json.loads(dict(members)["000000000.json"])
        fields["frame_ms"][fields["clips"][1]["frames"][0]] = fields["clips"][1]["start_ms"] - 1
        return edit_json(members, "000000000.json", frame_ms=fields["frame_ms"])

    rebuild(root, LONG, edit)
    return LONG, "000000000", "of clip 1"


def times_that_are_no_integers(root):
    rebuild(root, SHORT, lambda members: edit_json(members, "000000000.json", frame_ms=[0.1, 0.2, 0.3, 0.4]))
    return SHORT, "000000000", "frame_ms is not a list of integers"


def _edit_clips(root, change):
    def edit(members):
        clips = json.loads(dict(members)["000000000.json"])["clips"]
        change(clips)
        return edit_json(members, "000000000.json", clips=clips)

    rebuild(root, LONG, edit)


def clips_with_a_gap(root):
    def change(clips):
        clips[1]["frames"][0] += 1

    _edit_clips(root, change)
    return LONG, "000000000", "clip 1 has frames"


def clips_that_end_early(root):
    def change(clips):
        clips[-1]["frames"][1] -= 1

    _edit_clips(root, change)
    return LONG, "000000000", "clips cover 7 of 8 frames"


def frame_that_is_no_jpeg(root):
    rebuild(root, SHORT, lambda members: replace(members, "000000001.001.jpg", b"GIF89a"))
    return SHORT, "000000001", "001.jpg is not a JPEG"


def frame_of_another_size(root):
    rebuild(root, SHORT, lambda members: edit_json(members, "000000001.json", width=47))
    return SHORT, "000000001", "000.jpg is 48x32, json says 47x32"


DAMAGES = [
    truncated_tar, tar_without_end, damaged_header, missing_tar, missing_sidecar, not_a_sidecar, changed_sidecar,
    changed_byte, bytes_after_the_end, missing_member, missing_last_member, missing_json, missing_summary,
    extra_member, extra_frame, members_in_another_order, member_without_key, duplicate_key_adjacent,
    duplicate_key_later, duplicate_key_in_another_shard, key_of_no_row, members_not_adjacent, sidecar_lacks_sample,
    sidecar_lists_absent_sample, sidecar_lists_sample_twice, sidecar_offset, sidecar_frames, sidecar_members,
    sidecar_sample_id, manifest_samples, manifest_duration, manifest_path, manifest_digest, manifest_counts,
    unlisted_tar_of_a_committed_row, invalid_json, json_that_is_a_list, json_lacks_fields, json_of_another_sample,
    json_of_another_split, empty_text, empty_summary, text_that_is_not_utf8, empty_sentence, no_caption_sentences,
    time_goes_back, time_outside_the_clip, time_outside_a_clip_of_a_long_sample, times_that_are_no_integers,
    clips_with_a_gap, clips_that_end_early, frame_that_is_no_jpeg, frame_of_another_size,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_each_damage_is_found_as_exactly_that_problem(root, damage):
    path, key, message = damage(root)
    problems = validate(str(root))
    assert [(p.path, p.key) for p in problems] == [(path, key)], problems
    assert message in problems[0].message
    assert "\n" not in problems[0].message


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_byte_of_a_tar_is_found_and_never_crashes(root, data):
    path = root / data.draw(st.sampled_from([SHORT, LONG, IMAGE]))
    good = path.read_bytes()
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        bad[data.draw(st.integers(0, len(bad) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bad)
    problems = validate(str(root))
    path.write_bytes(good)
    assert problems or bad == good
    assert not any("\n" in problem.message for problem in problems)


def test_an_uncommitted_rows_tar_is_work_in_progress_and_no_problem(root):
    shutil.copy(root / SHORT, root / "train/short/00099.tar")
    (root / "train/short/.00098.tar.abc.tmp").write_bytes(b"half")
    assert validate(str(root)) == []


def test_in_a_copy_without_commit_records_every_tar_must_be_listed(root):
    shutil.rmtree(root / "commits")
    assert validate(str(root)) == []
    shutil.copy(root / SHORT, root / "train/short/00099.tar")
    assert [(p.path, p.message) for p in validate(str(root))] == [("train/short/00099.tar", "on disk but not in the manifest")]


def test_a_sample_whose_caption_is_null_needs_no_text(root):
    def drop_caption(members):
        members = edit_json(members, "000000001.json", caption=None, sentences={})
        return [m for m in members if m[0] != "000000001.txt"]

    rebuild(root, IMAGE, drop_caption)
    assert validate(str(root)) == []


def test_the_command_prints_one_line_a_problem_and_exits_with_1(root, capsys):
    missing_member(root)
    assert gexia.main(["shards", "validate", str(root)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"PROBLEM {SHORT} 000000001 missing member 002.jpg"
    assert lines[1].startswith("1 problems: ") and len(lines) == 2


def test_the_command_sums_up_a_clean_dataset_and_exits_with_0(root, capsys):
    assert gexia.main(["shards", "validate", str(root)]) == 0
    assert capsys.readouterr().out.startswith(f"OK: {root}: 11 shards, 21 samples, ")


@pytest.mark.parametrize("content", [None, "", "[]", '{"format": "other"}', '{"format": "gexia-shards", "version": 99}'])
def test_what_is_no_dataset_is_one_line_and_exit_2(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    assert gexia.main(["shards", "validate", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith(f"error: {tmp_path}") and captured.err.count("\n") == 1
