"""The published dataset format: the one description that writers, readers and checkers share.

A dataset is a folder (local or any fsspec URL):

    manifest.json  manifest.parquet          what is committed; readers start here
    {split}/{granularity}/{row:05d}.tar      WebDataset tar, one per row and granularity
    {split}/{granularity}/{row:05d}.parquet  its sidecar: one line an attempted sample, with byte offsets
    commits/{row:05d}.json                   the commit record of a row; a row without one is not published
    errors/  plan/  summaries/               ledger, plan and generated texts

All times are integer milliseconds; time 0 is the timestamp of a file's first video frame.
"""

import hashlib
import json

import pyarrow as pa

FORMAT = "gexia-shards"
VERSION = 1

SHORT, LONG, IMAGE = "short", "long", "image"
GRANULARITIES = (SHORT, LONG, IMAGE)
# Text views of each granularity: view name -> the tar member that holds the text.
TEXT_VIEWS = {
    SHORT: {"caption": "txt"},
    LONG: {"long": "txt", "summary": "summary.txt"},
    IMAGE: {"caption": "txt"},
}

# All frames of a short or long sample as one video, where frames.format is mp4; otherwise they are `frame_member`s.
VIDEO_MEMBER = "mp4"

# What `gexia import` knows of a benchmark beyond the samples: how many videos each split has, which are missing.
IMPORT_RECORD = "import/import.json"

# What anybody's WebDataset tars call pictures and videos: the last part of the extension.
PICTURES = frozenset({"jpg", "jpeg", "png", "webp"})
VIDEOS = frozenset({"mp4", "webm", "mkv", "avi", "mov"})
TEXTS = frozenset({"json", "txt"})  # all else that is read of their samples

INDEX_DIGITS = 4
MAX_SAMPLES_PER_SHARD = 10**INDEX_DIGITS

TAR_BLOCK = 512

# Fields of a sample's json that this format defines; a catalog's passthrough column may not use these names.
RESERVED_FIELDS = frozenset(
    "key sample_id granularity split source_id clip_id video start_ms end_ms duration_ms caption sentences "
    "frame_ms width height decoder clips summary format version".split()
)

_COMMON_FIELDS = frozenset("key sample_id granularity split source_id duration_ms sentences frame_ms width height".split())
_CLIP_FIELDS = frozenset("clip_id video start_ms end_ms caption decoder".split())

# Columns of a catalog (in any case) that always travel along, into each sample's json.
LICENSE_FIELDS = ("license", "licence", "attribution")

SIDECAR_SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # null for a failed sample: it has no place in the tar
        ("sample_id", pa.string()),
        ("status", pa.string()),  # "ok" or "failed"
        ("kind", pa.string()),  # failure kind, null when ok
        ("error", pa.string()),  # one line, null when ok
        ("source_id", pa.string()),
        ("clip_ids", pa.list_(pa.string())),
        ("offset", pa.int64()),  # of the first member's header, bytes from the start of the tar
        ("size", pa.int64()),  # to the end of the last member's padding, bytes
        ("members", pa.int32()),
        ("frames", pa.int32()),
        ("duration_ms", pa.int64()),
        ("words", pa.int32()),  # of the txt member
        ("decoder", pa.string()),
    ]
)

MANIFEST_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("granularity", pa.string()),
        ("row", pa.int32()),
        ("path", pa.string()),  # of the tar, relative to the dataset; the sidecar is its .parquet sibling
        ("samples", pa.int64()),
        ("bytes", pa.int64()),
        ("duration_ms", pa.int64()),  # of video, summed over the samples
        ("sha256", pa.string()),  # of the tar
        ("sidecar_sha256", pa.string()),
    ]
)

LEDGER_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("source_id", pa.string()),
        ("video", pa.string()),
        ("stage", pa.string()),  # catalog, extract, compress, compose
        ("kind", pa.string()),
        ("message", pa.string()),
        ("decoder", pa.string()),
    ]
)


def shard_path(split: str, granularity: str, row: int) -> str:
    """Path of a row's tar, relative to the dataset."""
    return f"{split}/{granularity}/{row:05d}.tar"


def sidecar_path(tar_path: str) -> str:
    """Path of the sidecar that belongs to a tar."""
    return tar_path.removesuffix(".tar") + ".parquet"


def commit_path(row: int) -> str:
    """Path of a row's commit record, relative to the dataset."""
    return f"commits/{row:05d}.json"


def sample_key(row: int, index: int) -> str:
    """WebDataset key of sample `index` of a row: digits only, so no reader splits it at a dot."""
    if not 0 <= index < MAX_SAMPLES_PER_SHARD:
        raise ValueError(f"sample index {index} outside 0..{MAX_SAMPLES_PER_SHARD - 1}")
    return f"{row:05d}{index:0{INDEX_DIGITS}d}"


def frame_member(index: int) -> str:
    """Extension of frame `index`: a plain WebDataset reader sees the field `000.jpg`."""
    return f"{index:03d}.jpg"


def sample_id(granularity: str, source_id: str, clip_ids: list[str], parameters: str) -> str:
    """Stable identity of a sample: 16 hex digits over what it shows, not over where it is stored.

    `parameters` is the digest of every setting that changes the sample's bytes.
    """
    return hashlib.sha256(canonical_json([granularity, source_id, clip_ids, parameters])).hexdigest()[:16]


def canonical_json(value) -> bytes:
    """The one JSON spelling of a value: sorted keys, no spaces, UTF-8, NaN refused."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def digest(value) -> str:
    """sha256 of a JSON value's canonical spelling."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def json_fields(granularity: str) -> frozenset[str]:
    """Fields that every sample's json has (a value may be null)."""
    return _COMMON_FIELDS | ({"clips", "summary"} if granularity == LONG else _CLIP_FIELDS)


def text_fields(granularity: str, texts: dict[str, str]) -> dict[str, bytes]:
    """Text views -> tar members, in the format's order."""
    return {TEXT_VIEWS[granularity][view]: texts[view].encode() for view in TEXT_VIEWS[granularity] if view in texts}


def frame_fields(granularity: str, frames: list[bytes] | bytes) -> dict[str, bytes]:
    """JPEG files, or one MP4 file -> tar members, in the format's order."""
    if isinstance(frames, bytes):
        return {VIDEO_MEMBER: frames}
    names = ["jpg"] if granularity == IMAGE else map(frame_member, range(len(frames)))
    return dict(zip(names, frames, strict=True))


def expected_members(granularity: str, frame_count: int, frames_format: str = "jpg") -> list[str]:
    """Extensions of a whole sample's members, in tar order."""
    texts = list(TEXT_VIEWS[granularity].values())
    if granularity == IMAGE:
        return ["json", *texts, "jpg"]
    frames = [VIDEO_MEMBER] if frames_format == "mp4" else [frame_member(i) for i in range(frame_count)]
    return ["json", *texts, *frames]
