"""What one sample promises, checked against its members: the json's fields, texts, timestamps and frames."""

import json
from collections.abc import Iterator

import simplejpeg

from shards import format, mp4

_STRING_FIELDS = ("sample_id", "source_id")


def parse_fields(data: bytes) -> dict:
    """A sample's json; ValueError with the reason where it is not a JSON object."""
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"json is not valid: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"json is not an object but {type(fields).__name__}")
    return fields


def expected_members(granularity: str, fields: dict, frames: int, frames_format: str) -> list[str]:
    """Extensions that a sample with this json, number and format of frames has, in tar order.

    A text view that `sentences` does not name has no member: a dataset without summaries, a label without a caption.
    """
    sentences = fields.get("sentences")
    views = sentences if isinstance(sentences, dict) else format.TEXT_VIEWS[granularity]
    absent = {member for view, member in format.TEXT_VIEWS[granularity].items() if view not in views}
    return [m for m in format.expected_members(granularity, frames, frames_format) if m not in absent]


def check_fields(fields: dict, granularity: str, split: str, key: str) -> Iterator[str]:
    """Problems of a sample's json."""
    missing = sorted(format.json_fields(granularity) - fields.keys())
    if missing:
        yield f"json lacks {', '.join(missing)}"
    for field, here in (("key", key), ("granularity", granularity), ("split", split)):
        if field in fields and fields[field] != here:
            yield f"json says {field} {fields[field]!r}, this is {here!r}"
    for field in _STRING_FIELDS:
        if field in fields and not (isinstance(fields[field], str) and fields[field]):
            yield f"json field {field} is no text: {fields[field]!r}"
    if "sentences" in fields:
        yield from _check_sentences(fields["sentences"], granularity, fields.get("caption", ""))
    if "frame_ms" not in fields:
        return
    if not _integers(fields["frame_ms"]):
        yield "frame_ms is not a list of integers"
    elif granularity != format.LONG:
        yield from _check_times(fields["frame_ms"], fields, "")
    elif "clips" in fields:
        yield from _check_clips(fields["clips"], fields["frame_ms"])


def check_texts(members: dict[str, bytes], granularity: str) -> Iterator[str]:
    """Problems of a sample's text members."""
    for extension in format.TEXT_VIEWS[granularity].values():
        if extension not in members:
            continue
        try:
            if not members[extension].decode().strip():
                yield f"{extension} is empty"
        except UnicodeDecodeError:
            yield f"{extension} is not UTF-8"


def check_frames(members: dict[str, bytes], fields: dict) -> Iterator[str]:
    """Problems of a sample's JPEG or MP4 members, by their headers. Frames of one clip have the json's width and height."""
    if format.VIDEO_MEMBER in members:
        yield from _check_video(members[format.VIDEO_MEMBER], fields)
    size = None if "clips" in fields else (fields.get("width"), fields.get("height"))
    for extension, data in members.items():
        if not extension.endswith("jpg"):
            continue
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            yield f"{extension} is not a JPEG"
            continue
        if size and None not in size and (width, height) != size:
            yield f"{extension} is {width}x{height}, json says {size[0]}x{size[1]}"
            size = None  # once a sample


def _check_video(data: bytes, fields: dict) -> Iterator[str]:
    try:
        width, height, times = mp4.describe(data)
    except ValueError as error:
        yield f"{format.VIDEO_MEMBER} is {error}"
        return
    if (width, height) != (fields.get("width"), fields.get("height")):
        yield f"{format.VIDEO_MEMBER} is {width}x{height}, json says {fields.get('width')}x{fields.get('height')}"
    if isinstance(fields.get("frame_ms"), list) and len(times) != len(fields["frame_ms"]):
        yield f"{format.VIDEO_MEMBER} has {len(times)} frames, json has {len(fields['frame_ms'])} timestamps"


def _check_sentences(sentences, granularity: str, caption) -> Iterator[str]:
    views = format.TEXT_VIEWS[granularity]
    if not isinstance(sentences, dict):
        yield "sentences is not an object of text views"
        return
    for view, texts in sentences.items():
        if view not in views:
            yield f"sentences names the view {view!r}, a {granularity} sample has {', '.join(views)}"
        elif not (isinstance(texts, list) and texts and all(isinstance(t, str) and t.strip() for t in texts)):
            yield f"sentences of {view} is not a list of texts"
    first = next(iter(views))
    if first not in sentences and caption is not None:
        yield f"sentences lacks {first}"


def _check_clips(clips, frame_ms: list[int]) -> Iterator[str]:
    if not (isinstance(clips, list) and clips and all(isinstance(clip, dict) for clip in clips)):
        yield "clips is not a list of clips"
        return
    covered = 0
    for number, clip in enumerate(clips):
        frames = clip.get("frames")
        if not (_integers(frames) and len(frames) == 2 and frames[0] == covered and frames[1] >= covered):
            yield f"clip {number} has frames {frames}, they should start at {covered}"
            return
        yield from _check_times(frame_ms[frames[0] : frames[1]], clip, f" of clip {number}")
        covered = frames[1]
    if covered != len(frame_ms):
        yield f"clips cover {covered} of {len(frame_ms)} frames"


def _check_times(frame_ms: list[int], clip: dict, where: str) -> Iterator[str]:
    start, end = clip.get("start_ms"), clip.get("end_ms")
    if not all(bound is None or _integers([bound]) for bound in (start, end)):
        yield f"start_ms or end_ms{where} is no integer: {start!r}, {end!r}"
        return
    if any(later < earlier for earlier, later in zip(frame_ms, frame_ms[1:])):
        yield f"frame_ms{where} goes back in time: {frame_ms}"
    outside = [t for t in frame_ms if t < (start or 0) or (end is not None and t >= end)]
    if outside:
        yield f"frame_ms{where} {outside[0]} lies outside [{start or 0}, {'end of the file' if end is None else end})"


def _integers(value) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)
