"""Tar shards as video2dataset and img2dataset write them: KEY.mp4 KEY.txt KEY.json, clips of one video KEY_00000, KEY_00001.

Only headers, texts and jsons are read; a clip's video is named by its byte range in the tar, which is all that is
read of it later. What a file is, its bytes decide: a JPEG under the name mp4 is a video of one frame.
"""

import json
import re
from collections.abc import Iterator
from itertools import groupby

import polars as pl

from gex_pipeline.benchmarks.videos import EXTENSIONS
from gex_pipeline.fetch import ranged
from gex_pipeline.formats.table import LINE, Table
from gex_pipeline.times import milliseconds
from shards import storage, tar
from shards.errors import UserError
from shards.format import RESERVED_FIELDS

_CLIP_KEY = re.compile(r"(.+)_(\d+)")
_BLOCK = 1 << 16  # what is fetched of a remote tar at a time: a sample's json, text and headers are some 5 KB
# Fields of the json that would mean something else here (times in the video that the clip was cut from, …).
_RENAMED = RESERVED_FIELDS | {"start", "end", "duration", "order"}
_DROPPED = ("key", "status", "error_message", "caption")


def read(url: str) -> Table:
    """One row a sample that has a video: its key as clip_id, the key without the clip's number as source_id.

    The json's fields pass through, values that are lists or objects as JSON text, names of our own with "v2d_" before
    them. LINE is the sample's number in the tar. A sample without a video, and the end of a cut tar, are bad lines.
    """
    rows, bad, damage, number = [], [], [], 0
    with storage.open_read(url, block_size=_BLOCK) as file:
        for number, (key, members) in enumerate(_samples(file, damage), 1):
            try:
                rows.append(_row(key, members, url.rsplit("/", 1)[-1]) | {LINE: number})
            except (ValueError, RecursionError) as error:  # the latter: json too deep
                bad.append((number, f"sample {key}: {error}"))
    if damage and not number:
        raise UserError(f"{url}: cannot read as tar: {damage[0]}")
    bad += [(number + 1, f"the tar is damaged here: {error}") for error in damage]
    names = {name: None for row in rows for name in row}
    frame = pl.DataFrame([_column(name, [row.get(name) for row in rows]) for name in names])
    if not rows:
        return Table(pl.DataFrame(schema={LINE: pl.Int64}), bad)
    length = milliseconds(frame.schema, "cut_end") - milliseconds(frame.schema, "cut_start")
    return Table(frame.with_columns(duration=length / 1000).drop("cut_start", "cut_end"), bad)


def _samples(file, damage: list[tar.TarError]) -> Iterator[tuple[str, dict[str, tar.Member]]]:
    """Adjacent members of one key, as (key, {extension: member}), up to where the tar may be damaged."""
    named = ((tar.split_name(member.name), member) for member in _members(file, damage))
    keyed = ((name, member) for name, member in named if name is not None)
    for key, group in groupby(keyed, key=lambda pair: pair[0][0]):
        yield key, {name[1]: member for name, member in group}


def _members(file, damage: list[tar.TarError]) -> Iterator[tar.Member]:
    """Members of a tar; videos are passed over, not read."""
    try:
        yield from tar.scan(file, read=_is_text)
    except tar.TarError as error:
        damage.append(error)


def _is_text(name: str) -> bool:
    return name.lower().endswith((".json", ".txt"))


def _row(key: str, members: dict[str, tar.Member], name: str) -> dict:
    """A sample's row; ValueError for one that is no clip."""
    meta = _json(members["json"].data) if "json" in members else {}
    if not isinstance(meta, dict):
        raise ValueError("its json is no object")
    video = next((members[extension] for extension in EXTENSIONS if extension in members), None)
    if video is None:
        reason = ": ".join(str(meta[field]) for field in ("status", "error_message") if meta.get(field))
        raise ValueError(f"no video{reason and f' ({reason})'}")
    text = members["txt"].data.decode().strip() if "txt" in members else ""
    clip = _CLIP_KEY.fullmatch(key)
    cut_start, cut_end = _cut(meta.get("clips"))
    return {
        "clip_id": key,
        "source_id": clip[1] if clip else key,
        "order": int(clip[2]) if clip else None,
        "video": ranged(name, video.start, video.size),
        "caption": text or meta.get("caption"),
        "cut_start": cut_start,
        "cut_end": cut_end,
    } | {f"v2d_{field}" if field in _RENAMED else field: value for field, value in meta.items() if field not in _DROPPED}


def _json(data: bytes):
    """The value of a json file. Half of a surrogate pair, which it can escape and UTF-8 cannot write, is a question mark."""
    return json.loads(json.dumps(json.loads(data), ensure_ascii=False).encode(errors="replace"))


def _cut(clips) -> tuple[str | None, str | None]:
    """Where the clip was in the video that it was cut from, as written: seconds or HH:MM:SS.mmm."""
    match clips:
        case [[start, end]]:
            return str(start), str(end)
    return None, None


def _column(name: str, values: list) -> pl.Series:
    """Values of one kind as they are, everything else as text: what one sample has as a number another may not."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) == 1 and kinds <= {str, bool, float} or kinds == {int} and all(abs(v or 0) < 2**63 for v in values):
        return pl.Series(name, values)
    if kinds == {int, float}:
        return pl.Series(name, values, pl.Float64)
    texts = [v if v is None or isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values]
    return pl.Series(name, texts, pl.String)
