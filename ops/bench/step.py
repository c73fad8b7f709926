"""A training step as a run has it: samples and frames a second, the share of the time spent waiting for data, and on a
known GPU MFU.

    python -m ops.bench.step                                                                  # the CPU config
    python -m ops.bench.step --data DIR --model ViT-B-32 --precision bf16 --frames 8          # a GPU; or 32

trainer/pretrain.py runs under `accelerate launch` on published shards (--data, or a rendered world expanded here), and
its own metrics.jsonl is read from the first step after the warm-up on. With --model one stream takes the place of the
config's: short samples of 8 frames, or long ones of 32. What this script does not know goes on to the training
(`--compile true`, `--loader.workers 8`).
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
import yaml

from ops.bench.common import emit
from ops.runs import ROOT, expanded_world, launcher, run_once
from shards.errors import UserError
from trainer.loop import Meter
from trainer.models.towers import architecture

CONFIG = "configs/pretrain/tiny.yaml"
# Frames of a sample -> the stream that has so many (as configs/pretrain/vit_b32.yaml).
STREAMS = {
    8: {"folder": "short", "texts": ["caption"], "iter": {"video": 1, "caption": 1}},
    32: {"folder": "long", "texts": ["long", "summary"], "iter": {"video": 3, "long": 3, "summary": 3}},
}
UNITS = {"samples_per_second": "samples/s", "frames_per_second": "frames/s", "memory_gib": "GiB at most", "mfu": "MFU"}


def write_config(args: argparse.Namespace, path: Path) -> None:
    """The training's config: that of the command line, with one stream if a model is given."""
    config = yaml.safe_load((ROOT / args.config).read_text())
    if args.model:
        size = architecture(args.model)["vision_cfg"]["image_size"]
        config["model"] = {"name": args.model}
        config["streams"] = {"stream": STREAMS[args.frames] | {"frames": args.frames, "batch": args.batch}}
        config["loader"] |= {"size": size, "workers": args.workers}
    config |= {"precision": args.precision, "trackers": [], "steps": args.warmup + args.steps}
    config |= {"checkpoint": {"every_steps": config["steps"]}, "log_every": 10}
    path.write_text(yaml.safe_dump(config))


def measure(args: argparse.Namespace, rest: list[str], work: Path) -> dict[str, float]:
    """Train; returns what the run noted of its steps after the warm-up, as `Meter.summary` has it."""
    data = args.data or [expanded_world(work, args.sources, val_sources=0)]
    write_config(args, work / "config.yaml")
    training = ["trainer/pretrain.py", "--config", work / "config.yaml", "--output", work / "run"]
    training += [part for url in data for part in ("--data", url)] + rest
    run_once(work / "run/model/config.json", [*launcher(ranks=1), *training])
    meter = Meter()
    for line in (work / "run/metrics.jsonl").read_text().splitlines()[args.warmup :]:
        meter.add(json.loads(line))
    return meter.summary()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", help="published shards, or tars (default: a world rendered here)")
    parser.add_argument("--sources", type=int, default=160, help="of the world, four clips each")
    parser.add_argument("--config", default=CONFIG)
    parser.add_argument("--model", help="an architecture of open_clip's, in the place of the config's model and streams")
    parser.add_argument("--frames", type=int, choices=list(STREAMS), default=8, help="of a sample, with --model")
    parser.add_argument("--batch", type=int, default=64, help="samples of a step, with --model")
    parser.add_argument("--workers", type=int, default=8, help="processes that read and decode, with --model")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--steps", type=int, default=100, help="that are measured")
    parser.add_argument("--warmup", type=int, default=20, help="steps before them")
    args, rest = parser.parse_known_args()
    work = Path(tempfile.mkdtemp(prefix="gexia-step-")).resolve()
    try:
        found = measure(args, rest, work)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    shutil.rmtree(work)  # a run that failed leaves its log
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    rows = [(name.replace("_per_second", ""), found[name], unit) for name, unit in UNITS.items() if name in found]
    target = "data-wait share at most 0.02, MFU at least 0.45" if device != "CPU" else "data-wait share at most 0.05"
    about = {"model": args.model or args.config, "device": device, "precision": args.precision, "steps": args.steps}
    about |= {"frames a sample": args.frames, "batch": args.batch} if args.model else {}
    emit("step", rows, found["data_wait_share"], target, **about, more=rest)


if __name__ == "__main__":
    main()
