"""The dataset card names what there is, whose it is, and how to read it."""

import re

import pytest

from shards import card, format

CELL = {"samples": 1200, "shards": 2, "bytes": 3_000_000, "duration_ms": 7_200_000}


def manifest(**more) -> dict:
    digests = {"digest": "d" * 64, "plan_digest": "p" * 64, "config_digest": "c" * 64}
    return {"counts": {"train": {"short": CELL}}, "frames": {"format": "jpg"}, "versions": {"av": "14"}, **digests} | more


def test_counts_and_whole_digests_are_named():
    text = card.render(manifest(), ["train/short/00000.tar"])
    assert "| train | short | 1,200 | 2 | 2.00 | 3.0 |" in text
    assert "d" * 64 in text and "p" * 64 in text and "c" * 64 in text and "| av | 14 |" in text


@pytest.mark.parametrize(
    "tars, frames_format, read",
    [
        (["train/long/00001.tar", "train/short/00000.tar"], "jpg", ("train/short/00000.tar", '["000.jpg"]')),
        (["train/short/00000.tar"], "mp4", ("train/short/00000.tar", '["mp4"]')),
        (["val/image/00003.tar"], "mp4", ("val/image/00003.tar", '["jpg"]')),
    ],
)
def test_the_snippet_opens_a_tar_that_exists_by_a_member_that_it_has(tars, frames_format, read):
    text = card.render(manifest(frames={"format": frames_format}), tars)
    [snippet] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert all(part in snippet for part in read)


def test_licences_are_counted_and_a_long_list_is_cut_with_its_count():
    assert "the catalog states none" in card.render(manifest(), [])
    licenses = {"CC-BY": 5, "": 2} | {f"own {i:03d}": 1 for i in range(100)}
    text = card.render(manifest(licenses=licenses), [])
    lines = [line for line in text.splitlines() if line.startswith("|") and line.endswith("|")]
    assert lines[lines.index("| licence, as the catalog states it | clips |") + 2 :][:2] == [
        "| CC-BY | 5 |",
        "| not stated | 2 |",
    ]
    assert "| 62 others | 62 |" in lines
    assert all(name in text for name in format.LICENSE_FIELDS)
