"""The stream against a bound without a loader: `python -m ops.bench.stream --footage A.mp4 B.mp4 --gb 1`.

Work: the shared work set, expanded here, its samples repeated to --gb of tars: short ones of 8 JPEG frames (short side
256) or, with --granularity long, long ones of 32. Bound: as many processes read and decode their half of the tars and
keep nothing (`stream_peers.py run bare`). Peers: plain webdataset on the same tars and, where --peers_python has
litdata, that on the same JPEG files in its own chunks; same decoder. Ours: `trainer.stream.Streams`, shuffled, batches
counted in the main process. All give uint8 batches of 256 frames of 224 x 224, cut from the stored frames without a
resize; rounds alternate.
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

DECODER = "sjcrop"
FRAMES = {format.SHORT: 8, format.LONG: 32}  # of a sample
BATCH = {format.SHORT: 32, format.LONG: 8}
VIEW = {format.SHORT: "caption", format.LONG: "long"}


def prepare(args: argparse.Namespace, work: Path) -> tuple[Path, Path]:
    """Render, expand and repeat; what is there already is kept. Returns the folder of the tars and the peers' script."""
    if not (work / "clips.jsonl").exists():
        _run(args.shared / "make_work.py", work, "--footage", *args.footage, "--sources", args.sources)
    if not (work / "expanded/manifest.json").exists():
        options = ["--output.granularities", "[short, long]", "--frames.per_long", FRAMES[format.LONG]]
        options += ["--compress.backend", "extractive", "--output.path", work / "expanded"]
        _run("-m", "gex_pipeline.expand", "--input.path", work / "clips.jsonl", *options)
    # The shared script's number of frames is a constant, which its own processes have to find changed too.
    peers = work / f"peers-{args.granularity}.py"
    script, constant = (args.shared / "stream_peers.py").read_text(), "SIZE, FRAMES = 224, 8\n"
    assert constant in script
    peers.write_text(script.replace(constant, f"SIZE, FRAMES = 224, {FRAMES[args.granularity]}\n"))
    data = work / f"{args.granularity}-{args.gb:g}"
    if not (data / "info.json").exists():
        stored = work / "expanded/train" / args.granularity
        _run(peers, "build", "--short", stored, "--data", data, "--gb", args.gb)
        for tar in sorted((data / "tar").glob("*.tar")):
            _write_sidecar(tar)
    if _has_litdata(args.peers_python) and not (data / "litdata").exists():
        _run(peers, "chunks", "--data", data, "--kind", "litdata", python=args.peers_python)
    return data, peers


def _has_litdata(python: str) -> bool:
    return not subprocess.run([python, "-c", "import litdata"], capture_output=True).returncode


def _run(*command, python: str = sys.executable) -> None:
    subprocess.run([python, *map(str, command)], check=True, stdout=sys.stderr)


def _write_sidecar(tar: Path) -> None:
    index = index_tar(str(tar))
    rows = [{"status": "ok", "sample_id": row["key"], **row} for row in index.to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, schema=format.SIDECAR_SCHEMA), format.sidecar_path(str(tar)))


def ours(data: Path, granularity: str, workers: int, limit: int) -> None:
    """Print {clips_s, first_batch_s} of one pass, from the first batch to the last, as the peers count `steady`."""
    from trainer.data_config import DataConfig, StreamConfig
    from trainer.stream import Streams

    shards = []
    for row, tar in enumerate(sorted((data / "tar").glob("*.tar"))):
        samples = pq.read_metadata(format.sidecar_path(str(tar))).num_rows
        shards.append(Shard("train", granularity, row, f"tar/{tar.name}", samples, tar.stat().st_size, 0, "", ""))
    dataset = Dataset(str(data), {"digest": "bench"}, shards)
    frames, batch_size = FRAMES[granularity], BATCH[granularity]
    config = {"stream": StreamConfig(granularity, [VIEW[granularity]], {}, frames, batch_size)}
    settings = DataConfig(workers=workers)

    def tokenize(texts: list[str]) -> torch.Tensor:
        return torch.zeros(len(texts), 77, dtype=torch.int64)

    started, times = time.monotonic(), []
    with Streams([dataset], config, settings, 0, 0, 1, tokenize) as streams:
        for batch in streams.batches(0, min(limit, sum(shard.samples for shard in shards)) // batch_size):
            assert batch.frames.shape == (batch_size, frames, 3, 224, 224)
            times.append(time.monotonic())
    rate = batch_size * (len(times) - 1) / (times[-1] - times[0])
    print(json.dumps({"clips_s": rate, "first_batch_s": times[0] - started}))


def measure(args: argparse.Namespace, data: Path, peers: Path) -> tuple[dict, dict]:
    """Samples a second of each side, and processor seconds with start-up, one entry a round."""
    common = ["--workers", args.workers, "--limit", args.limit]
    options = ["--data", data, "--decoder", DECODER, "--batch", BATCH[args.granularity], "--rounds", 1, *common]
    sides = {
        "bound": [sys.executable, peers, "run", "bare", *options],
        "webdataset": [sys.executable, peers, "run", "wds", *options],
        "litdata": [args.peers_python, peers, "run", "litdata", *options],
        "ours": [sys.executable, "-m", "ops.bench.stream", "--ours", data, "--granularity", args.granularity, *common],
    }
    if not (data / "litdata").exists():
        del sides["litdata"]
    rates, cpu = {name: [] for name in sides}, {name: [] for name in sides}
    for _ in range(args.rounds):
        for name, command in sides.items():
            before = _children_seconds()
            done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
            cpu[name].append(_children_seconds() - before)
            line = json.loads(done.stdout.strip().splitlines()[-1])
            rates[name].append(round(line["clips_s"] if name == "ours" else line["steady_clips_s"], 1))
            print(f"{name}: {rates[name][-1]:.0f} samples/s", file=sys.stderr)
    return rates, cpu


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--footage", nargs="+", default=[], help="videos that the work set is cut from")
    parser.add_argument("--shared", type=Path, default=Path("../shared/bench"), help="folder of the shared bounds")
    parser.add_argument("--work", type=Path, help="folder to keep the work in (default: a temporary one)")
    parser.add_argument("--peers_python", default=sys.executable, help="an interpreter that may have litdata")
    parser.add_argument("--granularity", choices=list(FRAMES), default=format.SHORT)
    parser.add_argument("--sources", type=int, default=10)
    parser.add_argument("--gb", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=int, default=1 << 40, help="samples a round")
    parser.add_argument("--ours", type=Path, help=argparse.SUPPRESS)  # one measurement in a process of its own
    args = parser.parse_args()
    if args.ours:
        return ours(args.ours, args.granularity, args.workers, args.limit)
    with tempfile.TemporaryDirectory(prefix="gexia-stream-") as temporary:
        data, peers = prepare(args, (args.work or Path(temporary)).resolve())
        info = json.loads((data / "info.json").read_text())
        rates, cpu = measure(args, data, peers)
    rows = [(name, statistics.median(values), "samples/s") for name, values in rates.items()]
    rows += [(f"processor time of {name}", statistics.median(values), "s") for name, values in cpu.items()]
    ratios = {
        name: round(statistics.median(a / b for a, b in zip(values, rates["bound"])), 3)
        for name, values in rates.items()
        if name != "bound"
    }
    emit("stream", rows, ratios.pop("ours"), ">= 0.9 of the bound", peers=ratios, work=info, rates=rates)


if __name__ == "__main__":
    main()
