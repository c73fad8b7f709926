"""Public captioned sets in their own files: InternVid, WebVid, ActivityNet Captions and YouCook2.

Their videos are named by id; the catalog finds the files under `input.video_root`.
"""

from dataclasses import replace

import polars as pl

from gex_pipeline.benchmarks import timed_sentences
from gex_pipeline.formats.table import LINE, Table
from shards.errors import UserError

_INTERNVID = ("YoutubeID", "Start_timestamp", "End_timestamp", "Caption")
_WEBVID = ("videoid", "name", "duration")


def read_timed_sentences(url: str) -> Table:
    """`{"v_ID": {"duration", "timestamps", "sentences"}}`: a clip for each timed sentence."""
    frame = pl.from_arrow(timed_sentences.sentences(url))
    if frame.is_empty():
        raise UserError(f"{url}: no timed sentence in it")
    named = frame.select(column.name for column in frame if column.null_count() < frame.height)
    return Table(named.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias(LINE)))


def internvid(table: Table, url: str) -> Table:
    """Rows of YoutubeID, Start_timestamp and End_timestamp (HH:MM:SS.mmm) and Caption; scores pass through."""
    _require(table, _INTERNVID, url)
    video, start, end, caption = _INTERNVID
    clip_id = pl.concat_str(video, start, end, separator="_")
    frame = table.frame.with_columns(pl.col(video).cast(pl.String)).with_columns(clip_id=clip_id, source_id=pl.col(video))
    return replace(table, frame=frame.rename({video: "video", start: "start", end: "end", caption: "caption"}))


def webvid(table: Table, url: str) -> Table:
    """Rows of videoid, name (the caption) and duration (PT00H00M17S); each is a whole video."""
    _require(table, _WEBVID, url)
    video = pl.col("videoid").cast(pl.String)
    frame = table.frame.with_columns(clip_id=video, source_id=video, videoid=video)
    if frame.schema["duration"] == pl.String:
        clock = pl.col("duration").str.replace(r"^PT(\d+)H(\d+)M([\d.]+)S$", "$1:$2:$3")
        frame = frame.with_columns(duration=clock)
    return replace(table, frame=frame.rename({"videoid": "video", "name": "caption"}))


def _require(table: Table, columns: tuple[str, ...], url: str) -> None:
    if missing := [name for name in columns if name not in table.frame.columns]:
        raise UserError(f"{url}: no column {missing[0]!r}; it has {', '.join(table.frame.columns)}")
    if nested := [name for name in columns if table.frame.schema[name].is_nested()]:
        raise UserError(f"{url}: column {nested[0]!r} holds values of type {table.frame.schema[nested[0]]}")
