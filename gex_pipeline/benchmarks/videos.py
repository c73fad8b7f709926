"""Video files by name: one listing of the folder, whatever the number of annotations."""

import os
from dataclasses import dataclass

import fsspec
import polars as pl
from fsspec.implementations.local import LocalFileSystem

from shards import storage
from shards.errors import UserError

# In order of preference, where one name is there with two endings.
EXTENSIONS = ("mp4", "mkv", "webm", "mov", "avi", "m4v", "flv", "wmv", "mpg", "mpeg", "3gp", "ts", "ogv")
EXTENSIONS += ("jpg", "jpeg", "png", "webp", "bmp")  # an image is a video of one frame
ENDING = rf"(?i)\.({'|'.join(EXTENSIONS)})$"


@dataclass
class Coverage:
    """Which of a benchmark's videos are there."""

    total: int
    missing: list[str]  # names, sorted

    def __str__(self):
        return f"{self.total - len(self.missing):,} of {self.total:,} videos"


def listing(root: str) -> list[str]:
    """Paths of all video and image files under a folder or URL, sorted, hidden files left out.

    Raises `UserError` if the folder does not exist or cannot be listed.
    """
    try:
        found = _files(root)
    except Exception as error:  # stores have error classes of their own
        raise UserError(f"cannot list the folder of videos {root}: {' '.join(str(error).split())}") from None
    if found is None:
        raise UserError(f"no folder of videos {root}")
    endings = tuple(f".{extension}" for extension in EXTENSIONS)
    return sorted(path for path in found if path.lower().endswith(endings) and "/." not in path[path.rfind("/") :])


def _files(root: str) -> list[str] | None:
    fs, base = fsspec.url_to_fs(root)
    if not fs.exists(base):
        return None
    if isinstance(fs, LocalFileSystem):
        # Benchmarks are often folders of links to where the videos lie, and fsspec follows no links.
        return [os.path.join(f, name) for f, _, names in os.walk(base, followlinks=True) for name in names]
    return [fs.unstrip_protocol(path) for path in fs.find(base)]


def index(paths: list[str]) -> pl.DataFrame:
    """Table (name, path) of sorted paths: every file under its whole name and under its name without the ending.

    Of two files with one name, the ending first in `EXTENSIONS` wins, then the smaller path.
    """
    files = pl.DataFrame({"path": paths}, schema={"path": pl.String}).with_columns(
        name=pl.col("path").str.split("/").list.last(), rank=pl.lit(-1)
    )
    extension = pl.col("name").str.extract(ENDING, 1).str.to_lowercase()
    rank = extension.replace_strict(EXTENSIONS, range(len(EXTENSIONS)), return_dtype=pl.Int32)
    stems = files.with_columns(name=_stem("name"), rank=rank)
    return pl.concat([files, stems]).sort("rank", maintain_order=True).unique("name", keep="first").select("name", "path")


def _stem(column: str) -> pl.Expr:
    """A name without a video ending; any other dot stays, since ids may hold some (`0001_Film_00.00.10-00.00.14`)."""
    return pl.col(column).str.replace(ENDING, "")


def resolve(rows: pl.DataFrame, root: str, files: pl.DataFrame) -> tuple[pl.DataFrame, Coverage]:
    """Put each video's path in place of its name, and say which are missing. `files` is the `index` of `root`.

    Where only a row's `alt_video` is there, that file is taken and `alt_shift` seconds are added to start and end.
    A missing video keeps its rows, with the path where it would lie as an mp4, so the expansion puts them in the
    ledger, and `retry_failed` finds the file there once it is downloaded.
    """
    columns = [name for name in rows.columns if name not in ("alt_video", "alt_shift")]
    rows = rows.with_columns(pl.col("video").str.split("/").list.last())
    rows = rows.with_columns(
        stem=_stem("video"), alt_video="alt_video" if "alt_video" in rows.columns else pl.lit(None, pl.String)
    )
    for key in ("video", "stem", "alt_video"):
        paths = files.rename({"path": f"{key}_path"})
        rows = rows.join(paths, left_on=key, right_on="name", how="left", maintain_order="left")
    own, alt = pl.coalesce("video_path", "stem_path"), pl.col("alt_video_path")
    if "alt_shift" in rows.columns:
        shift = pl.when(own.is_null() & alt.is_not_null()).then("alt_shift").fill_null(0.0)
        rows = rows.with_columns(start=(pl.col("start") + shift).clip(lower_bound=0.0), end=pl.col("end") + shift)
    expected = pl.lit(storage.join(_absolute(root), "")) + pl.col("stem") + ".mp4"
    rows = rows.with_columns(video=pl.coalesce(own, alt, expected), found=pl.coalesce(own, alt).is_not_null())
    names = rows.group_by("stem").agg(pl.col("found").all())
    missing = sorted(names.filter(~pl.col("found"))["stem"])
    return rows.select(columns), Coverage(names.height, missing)


def named_from(rows: pl.DataFrame, root: str) -> pl.DataFrame:
    """`rows` with the paths of `resolve` as names that start from `root`: these stay when the data moves."""
    fs, base = fsspec.url_to_fs(root)
    roots = {storage.join(_absolute(root), ""), storage.join(fs.unstrip_protocol(base), "")}
    video = pl.col("video")
    for prefix in roots:
        video = video.str.strip_prefix(prefix)
    return rows.with_columns(video)


def _absolute(root: str) -> str:
    path = storage.local_path(root)
    return root if path is None else os.path.abspath(path)
