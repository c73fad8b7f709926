"""Frames of a row: every clip decoded once -> the row's short and image tars.

Clips that cut one video are read in one forward pass. Samples are written in plan order, whatever order they finish
in. A clip that fails is a line of the sidecars and of the ledger.
"""

import contextlib
import hashlib
import json
import time
from collections import Counter, deque
from collections.abc import Iterator

from gex_pipeline import catalog, commit, decoder, fetch, identity, plan, sentences
from gex_pipeline.config import ExpandConfig
from gex_pipeline.decoder import DecodedClip, FailedClip
from gex_pipeline.errors import Transient
from shards import format, storage
from shards.writer import ShardWriter


def extract_row(root: str, row: int, config: ExpandConfig) -> dict:
    """Write a row's short and image tars and return its receipt, which is also stored beside the commit records.

    The receipt: {row, split, plan_digest, config_digest, shards: {granularity: what the writer says, or None},
    errors: [ledger rows], policy_fallbacks (clips that the policy could not serve), licenses: {licence or "": clips},
    seconds, fetch_seconds (of these, waiting for videos), versions}. A row that has a valid one is not decoded again.
    Raises Transient where the row must stay pending.
    """
    started = time.monotonic()
    basis = {"plan_digest": plan.read(root)[0]["digest"], "config_digest": identity.config_digest(config)}
    if receipt := valid_receipt(root, row, basis):
        return {**receipt, "fetch_seconds": 0.0}
    clips = plan.read_row(root, row).to_pylist()
    granularities = [g for g in (format.SHORT, format.IMAGE) if g in config.output.granularities]
    split, errors, fallbacks, licenses = clips[0]["split"], [], 0, Counter()
    try:
        with contextlib.ExitStack() as stack:
            writers = {g: stack.enter_context(ShardWriter(root, split, g, row)) for g in granularities}
            videos = stack.enter_context(fetch.Fetch(list(_by_video(clips, config)), config.fetch))
            for clip, result in _in_plan_order(clips, videos, config):
                if isinstance(result, FailedClip):
                    errors.append(_ledger_row(clip, result))
                else:
                    fallbacks += result.policy != config.frames.policy
                    licenses[_license(clip)] += 1
                for granularity, writer in writers.items():
                    _write_sample(writer, granularity, clip, result, config)
            shards = {granularity: writer.close() for granularity, writer in writers.items()}
        receipt = {
            "row": row,
            "split": split,
            **basis,
            "shards": shards,
            "errors": errors,
            "policy_fallbacks": fallbacks,
            "licenses": licenses,
            "seconds": round(time.monotonic() - started, 3),
            "fetch_seconds": round(videos.waited, 3),
            "versions": identity.versions(),
        }
        storage.write_bytes_atomic(commit.receipt_url(root, row), format.canonical_json(receipt))
    except OSError as error:
        raise Transient(f"row {row}: {error}") from error
    return receipt


def valid_receipt(root: str, row: int, basis: dict) -> dict | None:
    """The row's receipt, if it was made on the same basis and its tars are still what it says."""
    try:
        receipt = json.loads(storage.read_bytes(commit.receipt_url(root, row)))
        tars = [shard for shard in receipt["shards"].values() if shard]
        if any(receipt[name] != value for name, value in basis.items()):
            return None
        return receipt if all(_sha256(storage.join(root, t["path"])) == t["sha256"] for t in tars) else None
    except (FileNotFoundError, ValueError, KeyError):
        return None


def _sha256(url: str) -> str:
    with storage.open_read(url) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _in_plan_order(clips: list[dict], videos: fetch.Fetch, config: ExpandConfig) -> Iterator[tuple]:
    """(clip, DecodedClip or FailedClip) of each clip; holds back only what is finished before its turn."""
    finished, waiting = {}, deque(clips)
    for result in _decoded(clips, videos, config):
        finished[result.clip_id] = result
        while waiting and waiting[0]["clip_id"] in finished:
            clip = waiting.popleft()
            yield clip, finished.pop(clip["clip_id"])


def _decoded(clips: list[dict], videos: fetch.Fetch, config: ExpandConfig) -> Iterator[DecodedClip | FailedClip]:
    """Results of all clips, video by video."""
    for location, cuts in _by_video(clips, config).items():
        requests = [(clip["clip_id"], clip["start_ms"], clip["end_ms"]) for clip in cuts]
        try:
            with videos.take(location) as path:
                yield from decoder.read_clips(path, requests, config.frames)
        except fetch.Unavailable as error:
            yield from (FailedClip(clip["clip_id"], error.kind, str(error)) for clip in cuts)


def _by_video(clips: list[dict], config: ExpandConfig) -> dict[str, list[dict]]:
    """Location of each video -> the clips that cut it."""
    by_video: dict[str, list[dict]] = {}
    for clip in clips:
        by_video.setdefault(catalog.located(clip["video"], config.input.video_root), []).append(clip)
    return by_video


def _write_sample(writer: ShardWriter, granularity: str, clip: dict, result, config: ExpandConfig) -> None:
    source_id, clip_ids = clip["source_id"], [clip["clip_id"]]
    name = format.sample_id(granularity, source_id, clip_ids, identity.sample_parameters(config))
    sample = {"sample_id": name, "source_id": source_id, "clip_ids": clip_ids}
    if isinstance(result, FailedClip):
        writer.fail(**sample, kind=result.kind, error=result.message)
        return
    image = granularity == format.IMAGE
    start = clip["start_ms"] or 0
    captioned = clip["caption"] is not None  # a clip that has a label or a question instead has no text members
    meta = {
        **json.loads(clip["extra"] or "{}"),
        "clip_id": clip["clip_id"],
        "video": clip["video"],
        "start_ms": start,
        "end_ms": start + result.duration_ms,
        "caption": clip["caption"],
        "sentences": {"caption": caption_sentences(clip)} if captioned else {},
        "frame_ms": [result.middle_ms] if image else result.frame_ms,
        "width": result.width,
        "height": result.height,
    }
    if clip["captions"]:
        meta["captions"] = clip["captions"]
    writer.add(
        **sample,
        meta=meta,
        texts={"caption": clip["caption"]} if captioned else {},
        frames=[result.middle] if image else result.frames,
        duration_ms=result.duration_ms,
        decoder=result.decoder,
    )


def _license(clip: dict) -> str:
    """What the catalog states, "" for nothing."""
    extra = json.loads(clip["extra"] or "{}")
    return next((str(value) for name, value in extra.items() if name.lower() in format.LICENSE_FIELDS[:2]), "")


def caption_sentences(clip: dict) -> list[str]:
    """The catalog's own sentences of a clip, or those of its caption."""
    return clip["sentences"] or sentences.split(clip["caption"] or "")


def _ledger_row(clip: dict, failure: FailedClip) -> dict:
    who = {name: clip[name] for name in ("clip_id", "source_id", "video")}
    line = " ".join(failure.message.split())
    return {**who, "stage": "extract", "kind": failure.kind, "message": line, "decoder": failure.decoder}
