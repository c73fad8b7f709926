"""Long samples of a row, cut from its short tar: the frames of its clips, their joined captions, the summary.

Which clips: those of a group that survived extraction, if they are still at least `integrate.min_clips` and one of
them has a caption. The long text is their captions in order, each ended by a full stop where it has no stop of its
own. `frames.per_long` frames are dealt to the clips as evenly as whole numbers allow, and spread evenly inside each
clip; a clip never shows one of its stored frames twice, so few clips give fewer frames. With `frames.format: mp4` the
clips' videos are joined whole.
"""

import itertools
import json
import time

import pyarrow as pa

from gex_pipeline import commit, extract, identity, plan, summaries
from gex_pipeline.config import ExpandConfig
from gex_pipeline.errors import Transient
from gex_pipeline.sentences import ended
from gex_pipeline.summaries import LongText
from shards import format, mp4, storage, tar
from shards.reader import read_parquet
from shards.writer import ShardWriter, parquet_bytes

# Of groups whose clips are of several sources (integrate.by random).
MIXED_SOURCES = "mixed"


def long_texts(root: str, row: int, config: ExpandConfig) -> list[LongText]:
    """The texts of a row's long samples, in order; empty where it has none."""
    if format.LONG not in config.output.granularities:
        return []
    clips = plan.read_row(root, row).to_pylist()
    offsets = _short_samples(root, _receipt(root, row))
    return [_long_text(group, config) for group in _surviving_groups(clips, offsets, config)]


def compose_row(root: str, row: int, config: ExpandConfig) -> dict:
    """Write a row's long tar and ledger, then its commit record, and return the record that counts.

    Raises Transient where the row must stay pending.
    """
    started = time.time()
    receipt = _receipt(root, row)
    shards, generated = dict(receipt["shards"]), None
    try:
        if format.LONG in config.output.granularities:
            shards[format.LONG], generated = _write_long(root, receipt, config)
        _write_ledger(root, row, receipt["errors"])
        record = _record(receipt, shards, generated, started)
        return commit.write(root, row, record)
    except (OSError, mp4.EncoderError) as error:
        raise Transient(f"row {row}: {error}") from error


def _write_long(root: str, receipt: dict, config: ExpandConfig) -> tuple[dict | None, dict]:
    """What the writer says of the long tar, and what its summaries came to (`summaries.account`)."""
    row, split = receipt["row"], receipt["split"]
    clips = plan.read_row(root, row).to_pylist()
    offsets = _short_samples(root, receipt)
    groups = _surviving_groups(clips, offsets, config)
    generated = {line["sample_id"]: line for line in summaries.read(root, row).to_pylist()} if groups else {}
    short_tar = storage.join(root, format.shard_path(split, format.SHORT, row))
    with ShardWriter(root, split, format.LONG, row) as writer:
        for group in groups:
            text = _long_text(group, config)
            samples = [_read_sample(short_tar, *offsets[clip["clip_id"]]) for clip in group]
            _add_long(writer, group, samples, text, generated[text.sample_id], config)
        shard = writer.close()
    return shard, summaries.account(generated.values())


def _add_long(writer: ShardWriter, group, samples, text: LongText, summary: dict, config: ExpandConfig) -> None:
    metas = [meta for meta, _ in samples]
    frames, chosen = _long_frames(samples, config)
    frame_ms, clips = [], []
    for meta, positions in zip(metas, chosen):
        first = len(frame_ms)
        frame_ms += [meta["frame_ms"][i] for i in positions]
        shown = {name: meta[name] for name in ("clip_id", "video", "start_ms", "end_ms", "caption")}
        shown |= {name: value for name, value in meta.items() if name.lower() in format.LICENSE_FIELDS}
        clips.append({**shown, "frames": [first, len(frame_ms)]})
    writer.add(
        sample_id=text.sample_id,
        source_id=_source_id(group),
        clip_ids=[clip["clip_id"] for clip in group],
        meta={
            "clips": clips,
            "sentences": {"long": text.sentences, "summary": summary["sentences"]},
            "summary": {name: summary[name] for name in ("status", "reason", "backend", "model", "prompt", "key")},
            "frame_ms": frame_ms,
            "width": metas[0]["width"],
            "height": metas[0]["height"],
        },
        texts={"long": text.text, "summary": summary["summary"]},
        frames=frames,
        duration_ms=sum(meta["duration_ms"] for meta in metas),
        decoder="+".join(sorted({meta["decoder"] for meta in metas})),
    )


def _long_frames(samples: list[tuple[dict, object]], config: ExpandConfig) -> tuple[list[bytes] | bytes, list]:
    """The long sample's frames, and which of its own each clip gave."""
    metas = [meta for meta, _ in samples]
    if config.frames.format == "mp4":
        durations = [meta["duration_ms"] for meta in metas]
        offsets = [0, *itertools.accumulate(durations[:-1])]
        deadline = config.frames.timeout_seconds * len(samples)
        joined = mp4.join([video for _, video in samples], offsets, config.frames.crf, deadline)
        return joined, [range(len(meta["frame_ms"])) for meta in metas]
    per_clip = shares(config.frames.per_long, len(samples))
    chosen = [evenly(len(jpegs), share) for (_, jpegs), share in zip(samples, per_clip)]
    return [jpegs[i] for (_, jpegs), positions in zip(samples, chosen) for i in positions], chosen


def shares(total: int, clips: int) -> list[int]:
    """`total` frames dealt to clips so that any two differ by at most one: shares(32, 5) = [6, 6, 7, 6, 7]."""
    return [(i + 1) * total // clips - i * total // clips for i in range(clips)]


def evenly(available: int, wanted: int) -> list[int]:
    """Positions of `wanted` of `available` frames at even midpoints; all of them where there are no more."""
    if wanted >= available:
        return list(range(available))
    return [(2 * i + 1) * available // (2 * wanted) for i in range(wanted)]


def _surviving_groups(clips: list[dict], offsets: dict, config: ExpandConfig) -> list[list[dict]]:
    """Groups that make a long sample, without their failed clips."""
    planned = [list(group) for _, group in itertools.groupby(clips, key=lambda clip: clip["group"])]
    alive = [[clip for clip in group if clip["clip_id"] in offsets] for group in planned if group[0]["long"]]
    enough = [group for group in alive if len(group) >= config.integrate.min_clips]
    return [group for group in enough if any(clip["caption"] for clip in group)]


def _long_text(group: list[dict], config: ExpandConfig) -> LongText:
    ids = [clip["clip_id"] for clip in group]
    name = format.sample_id(format.LONG, _source_id(group), ids, identity.sample_parameters(config))
    captions = [ended(clip["caption"].strip()) for clip in group if clip["caption"]]
    parts = [ended(sentence) for clip in group for sentence in extract.caption_sentences(clip)]
    return LongText(name, " ".join(captions), parts)


def _source_id(group: list[dict]) -> str:
    sources = {clip["source_id"] for clip in group}
    return sources.pop() if len(sources) == 1 else MIXED_SOURCES


def _receipt(root: str, row: int) -> dict:
    """What extraction made of a row (`extract.extract_row`)."""
    return json.loads(storage.read_bytes(commit.receipt_url(root, row)))


def _short_samples(root: str, receipt: dict) -> dict[str, tuple[int, int]]:
    """clip_id -> (offset, size) in the row's short tar, of the clips that were extracted."""
    shard = receipt["shards"][format.SHORT]
    if shard is None:  # a sidecar that lies there all the same is of an earlier extraction
        return {}
    lines = read_parquet(storage.join(root, format.sidecar_path(shard["path"])), format.SIDECAR_SCHEMA).to_pylist()
    return {line["clip_ids"][0]: (line["offset"], line["size"]) for line in lines if line["status"] == "ok"}


def _read_sample(url: str, offset: int, size: int) -> tuple[dict, list[bytes] | bytes]:
    """A short sample's json and its JPEGs, or its MP4."""
    members = tar.parse_members(storage.read_range(url, offset, size))
    videos = [bytes(data) for name, data in members if name.endswith(f".{format.VIDEO_MEMBER}")]
    pictures = [bytes(data) for name, data in members if name.endswith(".jpg")]
    return json.loads(bytes(members[0][1])), videos[0] if videos else pictures


def _write_ledger(root: str, row: int, errors: list[dict]) -> None:
    url = storage.join(root, "errors", f"{row:05d}.parquet")
    if errors or storage.exists(url):  # a row that was redone may have healed
        table = pa.Table.from_pylist(errors, schema=format.LEDGER_SCHEMA)
        storage.write_bytes_atomic(url, parquet_bytes(table))


def _record(receipt: dict, shards: dict, generated: dict | None, started: float) -> dict:
    """The commit record; its statistics have the names that video2dataset's `_stats.json` has."""
    kinds = {}
    for error in receipt["errors"]:
        kinds[error["kind"]] = kinds.get(error["kind"], 0) + 1
    successes = max((shard["samples"] for name, shard in shards.items() if shard and name != format.LONG), default=0)
    ended_at = time.time()
    return {
        **{name: receipt[name] for name in ("row", "split", "plan_digest", "config_digest", "licenses", "versions")},
        "shards": shards,
        "summaries": generated,
        "count": successes + len(receipt["errors"]),
        "successes": successes,
        "failed_to_subsample": len(receipt["errors"]),
        "policy_fallbacks": receipt["policy_fallbacks"],
        "status_dict": {"success": successes, **kinds},
        "start_time": round(started - receipt["seconds"], 3),
        "end_time": round(ended_at, 3),
        "duration": round(ended_at - started + receipt["seconds"], 3),
    }
