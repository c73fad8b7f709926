"""Durations of clips that run to the end of their file, by ffprobe."""

import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import fsspec
import polars as pl

from gex_pipeline.fetch import range_of

WORKERS = 8  # a probe mostly waits: for the disk, the network, its process


def with_durations(
    clips: pl.DataFrame, planned: pl.DataFrame, located: Callable[[str], str], timeout_seconds: float
) -> pl.DataFrame:
    """`clips` with duration_ms filled in where it and end_ms are null; still null where ffprobe finds none.

    Clips of an earlier run's plan (`planned`: clip_id, duration_ms) keep what it has, null too: with a file that came
    back since, it would be another plan. `located` gives the path or URL of a clip's video.
    """
    planned = planned.rename({"duration_ms": "planned_ms"}).with_columns(is_planned=True)
    clips = clips.join(planned, on="clip_id", how="left").with_columns(pl.coalesce("duration_ms", "planned_ms"))
    is_unknown = pl.col("duration_ms").is_null() & pl.col("is_planned").is_null()
    unknown = clips.filter(is_unknown)["video"].unique().to_list()
    clips = clips.drop("planned_ms")
    with ThreadPoolExecutor(WORKERS) as pool:
        durations = list(pool.map(lambda video: file_duration_ms(located(video), timeout_seconds), unknown))
    files = pl.DataFrame({"video": unknown, "file_ms": durations}, schema={"video": pl.String, "file_ms": pl.Int64})
    rest = pl.col("file_ms") - pl.col("start_ms").fill_null(0)
    return (
        clips.join(files, on="video", how="left")
        .with_columns(duration_ms=pl.when(is_unknown & (rest > 0)).then(rest).otherwise("duration_ms"))
        .drop("file_ms", "is_planned")
    )


def file_duration_ms(video: str, timeout_seconds: float) -> int | None:
    """A video file's duration; None where ffprobe cannot tell, for extraction to look into."""
    command = ["ffprobe", "-v", "error", "-show_entries", "format=duration", "-of", "csv=p=0", _readable(video)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_seconds)
        return round(float(done.stdout) * 1000)
    except (subprocess.TimeoutExpired, ValueError):
        return None


def _readable(video: str) -> str:
    """What ffprobe can open: a path, an http URL, or a signed one where the store gives them; byte ranges of these."""
    if (span := range_of(video)) is not None:
        file, offset, size = span
        return f"subfile,,start,{offset},end,{offset + size},,:{_readable(file)}"
    if "://" not in video or video.startswith(("http://", "https://")):
        return video
    fs, path = fsspec.core.url_to_fs(video)
    try:
        return fs.sign(path)
    except NotImplementedError:
        return video
