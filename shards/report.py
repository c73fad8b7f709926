"""`report.html`: one self-contained page that shows what a dataset holds."""

import base64
import io
from html import escape
from importlib import resources
from string import Template

import av
import numpy as np
from PIL import Image

from shards import charts, format, stats, storage, video
from shards.checks import parse_fields
from shards.reader import Dataset, Shard

REPORT = "report.html"

_SHORT_CARDS, _LONG_CARDS = 12, 6
_CLIP_FRAMES = 4  # thumbnails of each clip of a long sample
_SHORT_FRAMES = 6
_THUMB_WIDTH = 220  # twice what the page shows, for dense screens


def write(dataset: Dataset) -> str:
    """Write the report into the dataset and return its path or URL."""
    url = storage.join(dataset.url, REPORT)
    storage.write_bytes_atomic(url, render(dataset).encode())
    return url


def render(dataset: Dataset) -> str:
    """The page as HTML."""
    groups = stats.collect(dataset)
    body = [
        _header(dataset, groups),
        _counts(groups),
        _failures(stats.failures(dataset)),
        _licenses(dataset.manifest.get("licenses", {})),
        _charts(groups),
        _samples(dataset, format.LONG, _LONG_CARDS, "Clips of one source, their captions in order, and the summary."),
        _samples(dataset, format.SHORT, _SHORT_CARDS, "A clip and its caption."),
    ]
    page = Template(resources.files("shards").joinpath("report_page.html").read_text())
    return page.substitute(title=f"{escape(_name(dataset))}: dataset report", body="\n".join(body))


def _header(dataset: Dataset, groups: list[stats.Group]) -> str:
    seconds = sum(group.seconds.sum() for group in groups if group.granularity == format.SHORT)
    length = (f"{seconds / 3600:,.1f}", "hours of clips") if seconds >= 3600 else (f"{seconds / 60:.1f}", "minutes of clips")
    tiles = [
        (f"{sum(g.samples for g in groups if g.granularity == granularity):,}", f"{granularity} samples")
        for granularity in format.GRANULARITIES
    ]
    tiles += [length, (f"{sum(group.bytes for group in groups) / 1e6:,.1f}", "MB in tars")]
    shown = "".join(f"<div class=tile><b>{value}</b><span>{label}</span></div>" for value, label in tiles)
    manifest = dataset.manifest
    return (
        f"<h1>{escape(_name(dataset))}</h1>"
        f"<p class=soft>{format.FORMAT} version {format.VERSION} · content <code>{escape(manifest['digest'][:16])}</code>"
        f" · plan <code>{escape(manifest['plan_digest'][:16])}</code></p><div class=tiles>{shown}</div>"
    )


def _counts(groups: list[stats.Group]) -> str:
    header = ["split", "granularity", "#samples", "#failed", "#shards", "#MB", "#median seconds", "#median words"]
    rows = [
        [
            *group.cells(),
            f"{np.median(group.seconds):,.1f}",
            f"{np.median(group.words):,.0f}",
        ]
        for group in groups
    ]
    return "<h2>Splits</h2>" + _table(header, rows)


def _failures(failures: list[stats.Failure]) -> str:
    if not failures:
        return "<h2>Failures</h2><p class=soft>The error ledger is empty.</p>"
    rows = [[f.stage, f.kind, f"{f.count:,}", f.clip_id, f.message] for f in failures]
    return "<h2>Failures</h2>" + _table(["stage", "kind", "#clips", "first clip", "its message"], rows)


def _licenses(licenses: dict[str, int]) -> str:
    if not licenses:
        return ""
    rows = [[name or "not stated", f"{count:,}"] for name, count in sorted(licenses.items(), key=lambda item: -item[1])]
    return "<h2>Licences</h2>" + _table(["as the catalog states it", "#clips"], rows)


def _charts(groups: list[stats.Group]) -> str:
    figures = []
    for granularity in (format.SHORT, format.LONG):
        chosen = [group for group in groups if group.granularity == granularity]
        if not chosen:
            continue
        seconds, words = (np.concatenate([getattr(g, name) for g in chosen]) for name in ("seconds", "words"))
        title = granularity.capitalize()
        figures.append(f"<figure><h3>{title}: duration</h3>{charts.histogram(seconds, 'seconds')}</figure>")
        figures.append(f"<figure><h3>{title}: text</h3>{charts.histogram(words, 'words', whole=True)}</figure>")
    return f"<h2>Lengths</h2><div class=charts>{''.join(figures)}</div>" if figures else ""


def _samples(dataset: Dataset, granularity: str, count: int, about: str) -> str:
    chosen = _spread(dataset.select(granularity=granularity), count)
    if not chosen:
        return ""
    lines = [(shard, _ok_line(dataset, shard, index)) for shard, index in chosen]
    cards = "".join(_card(dataset, shard, line) for shard, line in lines)
    return f"<h2>{granularity.capitalize()} samples</h2><p class=soft>{about}</p><div class='cards {granularity}'>{cards}</div>"


def _card(dataset: Dataset, shard: Shard, line: dict) -> str:
    card = _long_card if shard.granularity == format.LONG else _short_card
    with dataset.using(shard, line) as members:
        return card(members, parse_fields(bytes(members["json"])), shard, line)


def _short_card(members: dict, fields: dict, shard: Shard, line: dict) -> str:
    text = bytes(members.get("txt", b"")).decode()
    return (
        f"<article class=card>{_sheet(members, range(len(fields['frame_ms'])), _SHORT_FRAMES)}"
        f"<p class=caption>{escape(text)}</p>"
        f"<p class=meta>{_place(shard, line)} · {escape(str(fields['clip_id']))}</p></article>"
    )


def _long_card(members: dict, fields: dict, shard: Shard, line: dict) -> str:
    clips = "".join(
        f"<div>{_sheet(members, range(*clip['frames']), _CLIP_FRAMES)}<p>{escape(clip['caption'] or '')}</p></div>"
        for clip in fields["clips"]
    )
    return (
        f"<article class=card>{_summary(fields['summary'], members)}<div class=clips>{clips}</div>"
        f"<details><summary class=label>long text, {line['words']:,} words</summary>"
        f"<p>{escape(bytes(members['txt']).decode())}</p></details>"
        f"<p class=meta>{_place(shard, line)} · {len(fields['frame_ms'])} frames · source {escape(fields['source_id'])}</p>"
        "</article>"
    )


def _summary(how: dict | None, members: dict) -> str:
    if "summary.txt" not in members:
        return ""
    how = how or {}
    maker = " · ".join(escape(str(how[name])) for name in ("backend", "model") if how.get(name))
    fallback = " · <span class=fallback>fallback</span>" if how.get("status") == "fallback" else ""
    text = escape(bytes(members["summary.txt"]).decode())
    return f"<p class=label>summary · {maker}{fallback}</p><p class=summary>{text}</p>"


def _place(shard: Shard, line: dict) -> str:
    return f"{escape(shard.split)} · {line['key']} · {(line['duration_ms'] or 0) / 1000:,.1f} s"


def _spread(shards: list[Shard], count: int) -> list[tuple[Shard, int]]:
    """`count` samples evenly over all samples of some shards, as (shard, index in it)."""
    ends = np.cumsum([shard.samples for shard in shards], dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    chosen = []
    for place in np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64)):
        at = int(np.searchsorted(ends, place, side="right"))
        chosen.append((shards[at], int(place - ends[at] + shards[at].samples)))
    return chosen


def _ok_line(dataset: Dataset, shard: Shard, index: int) -> dict:
    lines = [line for line in dataset.sidecar(shard).to_pylist() if line["status"] == "ok"]
    return lines[index]


def _sheet(members: dict, frames: range, count: int) -> str:
    """At most `count` of the frames, evenly."""
    count = min(count, len(frames))
    chosen = [frames[len(frames) * (2 * i + 1) // (2 * count)] for i in range(count)]
    return f"<div class=sheet>{''.join(map(_thumbnail, _pictures(members, chosen)))}</div>"


def _pictures(members: dict, chosen: list[int]) -> list[Image.Image]:
    if format.VIDEO_MEMBER in members:
        try:
            frames = video.read_frames(bytes(members[format.VIDEO_MEMBER]), chosen)
        except (video.VideoError, av.error.FFmpegError) as error:
            raise ValueError(f"{format.VIDEO_MEMBER}: {error}") from None
        return [Image.fromarray(frame) for frame in frames]
    jpegs = [data for extension, data in members.items() if extension.endswith("jpg")]
    return [Image.open(io.BytesIO(jpegs[index])) for index in chosen]


def _thumbnail(image: Image.Image) -> str:
    height = max(1, round(image.height * _THUMB_WIDTH / image.width))
    image.draft("RGB", (_THUMB_WIDTH, height))
    small = image.convert("RGB").resize((_THUMB_WIDTH, height), Image.Resampling.BICUBIC, reducing_gap=2)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=72)
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}" alt="" loading=lazy>'


def _table(header: list[str], rows: list[list[str]]) -> str:
    """A table; columns whose name starts with # hold numbers."""
    style = [" class=number" if name.startswith("#") else "" for name in header]
    head = "".join(f"<th{s}>{escape(name.lstrip('#'))}</th>" for name, s in zip(header, style))
    body = "".join(f"<tr>{''.join(f'<td{s}>{escape(str(cell))}</td>' for cell, s in zip(row, style))}</tr>" for row in rows)
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _name(dataset: Dataset) -> str:
    return dataset.url.rstrip("/").rsplit("/", 1)[-1]
