"""Stored samples as a page shows them: texts, times, pictures."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import simplejpeg

from shards import format
from shards.reader import Dataset, Shard
from trainer.decode import stored_frames

FRAMES = 8  # pictures taken from a sample that has no JPEG files


@dataclass
class Sample:
    fields: dict  # its json
    texts: dict[str, str]  # view -> text
    frames: list[bytes]  # JPEG

    def moments(self) -> list[tuple[str, int, int]]:
        """What it shows, as (video, start, end) in milliseconds; neighbouring clips of one video are one."""
        found: list[tuple[str, int, int]] = []
        for clip in self.fields.get("clips") or [self.fields]:
            name, start, end = clip.get("video", ""), clip.get("start_ms", 0), clip.get("end_ms", 0)
            if found and found[-1][0] == name and found[-1][2] == start:
                start = found.pop()[1]
            found.append((name, start, end))
        return found


def all_samples(dataset: Dataset, split: str, granularity: str) -> Iterator[Sample]:
    """All samples of a split and granularity, in order."""
    for shard in dataset.select(split, granularity):
        for line in dataset.sidecar(shard).to_pylist():
            if line["status"] == "ok":
                yield _sample(dataset, shard, line)


def samples_by_id(dataset: Dataset, split: str, granularity: str, sample_ids: Iterable[str]) -> dict[str, Sample]:
    """Some samples of a split and granularity, by their ids."""
    wanted, found = set(sample_ids), {}
    for shard in dataset.select(split, granularity) if wanted else ():
        for line in dataset.sidecar(shard).to_pylist():
            if line["status"] == "ok" and line["sample_id"] in wanted:
                found[line["sample_id"]] = _sample(dataset, shard, line)
    if len(found) < len(wanted):  # tars of others are indexed by key, and may have ids of their own
        by_id = ((sample.fields.get("sample_id"), sample) for sample in all_samples(dataset, split, granularity))
        found.update((name, sample) for name, sample in by_id if name in wanted)
    return found


def _sample(dataset: Dataset, shard: Shard, line: dict) -> Sample:
    """DatasetError where it is damaged."""
    with dataset.using(shard, line) as members:
        fields = json.loads(bytes(members.get("json", b"{}")))
        views = format.TEXT_VIEWS[shard.granularity].items()
        texts = {view: bytes(members[name]).decode(errors="replace") for view, name in views if name in members}
        frames = [bytes(data) for name, data in sorted(members.items()) if name == "jpg" or name.endswith(".jpg")]
        if not frames:
            pictures = stored_frames(members, lambda count: spread(range(count), FRAMES), shard.granularity)
            frames = [simplejpeg.encode_jpeg(np.ascontiguousarray(picture), quality=85) for picture in pictures]
        return Sample(fields, texts, frames)


def spread(items, count: int) -> list:
    """At most `count` of the items, evenly."""
    count = min(count, len(items))
    return [items[len(items) * (2 * i + 1) // (2 * count)] for i in range(count)]


def clock(ms: int) -> str:
    """Milliseconds as M:SS.s, or H:MM:SS.s."""
    minutes, rest = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}:{minutes:02d}" if hours else f"{minutes}") + f":{rest // 1000:02d}.{rest % 1000 // 100}"
