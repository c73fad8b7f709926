"""The stream against a bound without a loader: `python -m ops.bench.stream --footage A.mp4 B.mp4 --gb 1`.

Work: the shared work set, expanded here, its short samples (8 JPEG frames, short side 256) repeated to --gb of tars.
Bound: as many processes read and decode their half of the tars and keep nothing (`stream_peers.py run bare`). Peer:
plain webdataset, same decoder. Ours: `trainer.stream.Streams`, shuffled, batches counted in the main process. All
give uint8 batches of 32 x 8 x 3 x 224 x 224 cut from the stored frames without a resize; rounds alternate.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ops.bench.common import emit
from shards import format
from shards.reader import Dataset, Shard, index_tar

BATCH, FRAMES, DECODER = 32, 8, "sjcrop"


def prepare(work: Path, shared: Path, footage: list[str], sources: int, gigabytes: float) -> Path:
    """Render, expand and repeat; what is there already is kept. Returns the folder of the tars."""
    if not (work / "clips.jsonl").exists():
        _run(shared / "make_work.py", work, "--footage", *footage, "--sources", sources)
    short = work / "expanded/train/short"
    if not short.exists():
        output = ["--output.path", work / "expanded", "--output.granularities", "[short]"]
        _run("-m", "gex_pipeline.expand", "--input.path", work / "clips.jsonl", *output)
    data = work / f"tars-{gigabytes:g}"
    if not (data / "info.json").exists():
        _run(shared / "stream_peers.py", "build", "--short", short, "--data", data, "--gb", gigabytes)
        for tar in sorted((data / "tar").glob("*.tar")):
            _write_sidecar(tar)
    return data


def _run(*command) -> None:
    subprocess.run([sys.executable, *map(str, command)], check=True, stdout=sys.stderr)


def _write_sidecar(tar: Path) -> None:
    index = index_tar(str(tar))
    rows = [{"status": "ok", "sample_id": row["key"], **row} for row in index.to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, schema=format.SIDECAR_SCHEMA), format.sidecar_path(str(tar)))


def ours(data: Path, workers: int, limit: int) -> None:
    """Print {clips_s, first_batch_s} of one pass, from the first batch to the last, as the peers count `steady`."""
    from trainer.data_config import DataConfig, StreamConfig
    from trainer.stream import Streams

    shards = []
    for row, tar in enumerate(sorted((data / "tar").glob("*.tar"))):
        samples = pq.read_metadata(format.sidecar_path(str(tar))).num_rows
        shards.append(Shard("train", "short", row, f"tar/{tar.name}", samples, tar.stat().st_size, 0, "", ""))
    dataset = Dataset(str(data), {"digest": "bench"}, shards)
    config = {"svst": StreamConfig("short", ["caption"], {}, FRAMES, BATCH)}
    settings = DataConfig(workers=workers)

    def tokenize(texts: list[str]) -> torch.Tensor:
        return torch.zeros(len(texts), 77, dtype=torch.int64)

    started, times = time.monotonic(), []
    with Streams([dataset], config, settings, 0, 0, 1, tokenize) as streams:
        for batch in streams.batches(0, min(limit, sum(shard.samples for shard in shards)) // BATCH):
            assert batch.frames.shape == (BATCH, FRAMES, 3, 224, 224)
            times.append(time.monotonic())
    rate = BATCH * (len(times) - 1) / (times[-1] - times[0])
    print(json.dumps({"clips_s": rate, "first_batch_s": times[0] - started}))


def measure(data: Path, shared: Path, rounds: int, workers: int, limit: int) -> tuple[dict, dict]:
    """Clips a second of each side, and processor seconds with start-up, one entry a round."""
    peers = [shared / "stream_peers.py", "run"]
    options = ["--data", data, "--decoder", DECODER, "--workers", workers, "--limit", limit, "--rounds", 1]
    sides = {
        "bound": [*peers, "bare", *options],
        "webdataset": [*peers, "wds", *options],
        "ours": ["-m", "ops.bench.stream", "--ours", data, "--workers", workers, "--limit", limit],
    }
    rates, cpu = {name: [] for name in sides}, {name: [] for name in sides}
    for _ in range(rounds):
        for name, command in sides.items():
            before = _children_seconds()
            done = subprocess.run([sys.executable, *map(str, command)], check=True, capture_output=True, text=True)
            cpu[name].append(_children_seconds() - before)
            line = json.loads(done.stdout.strip().splitlines()[-1])
            rates[name].append(line["clips_s"] if name == "ours" else line["steady_clips_s"])
            print(f"{name}: {rates[name][-1]:.0f} clips/s", file=sys.stderr)
    return rates, cpu


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--footage", nargs="+", default=[], help="videos that the work set is cut from")
    parser.add_argument("--shared", type=Path, default=Path("../shared/bench"), help="folder of the shared bounds")
    parser.add_argument("--work", type=Path, help="folder to keep the work in (default: a temporary one)")
    parser.add_argument("--sources", type=int, default=10)
    parser.add_argument("--gb", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=int, default=1 << 40, help="clips a round")
    parser.add_argument("--ours", type=Path, help=argparse.SUPPRESS)  # one measurement in a process of its own
    args = parser.parse_args()
    if args.ours:
        return ours(args.ours, args.workers, args.limit)
    with tempfile.TemporaryDirectory(prefix="gexia-stream-") as temporary:
        data = prepare(args.work or Path(temporary), args.shared, args.footage, args.sources, args.gb)
        rates, cpu = measure(data, args.shared, args.rounds, args.workers, args.limit)
    rows = [(name, statistics.median(values), "clips/s") for name, values in rates.items()]
    rows += [(f"processor time of {name}", statistics.median(values), "s") for name, values in cpu.items()]
    ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates["bound"]))
    peer = statistics.median(a / b for a, b in zip(rates["webdataset"], rates["bound"]))
    emit("stream", rows, ratio, ">= 0.9 of the bound", webdataset_ratio=round(peer, 3), rates=rates)


if __name__ == "__main__":
    main()
