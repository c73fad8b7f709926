"""A small training on two gloo processes beside the same on one: what `gexia doctor` starts.

    python -m trainer.selfcheck     one line a check, "ok" or what differs; exit code 0 or 1

Each process trains the same tiny model on the same few samples with plain gradient descent, so that weights tell of
gradients: two processes must end each step with the weights of one, give each sample to one of them, and go on from a
checkpoint as if nothing had been.
"""

import os
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
import torch
import torch.multiprocessing as multiprocessing

from shards import format, publish
from shards.plain import open_data
from shards.writer import ShardWriter
from trainer import checkpoint
from trainer.config import PretrainConfig
from trainer.data_config import DataConfig, StreamConfig
from trainer.loop import create_accelerator
from trainer.models.gexia import GexiaModel
from trainer.step import seed_step, training_step
from trainer.stream import Streams

SAMPLES, BATCH, STEPS, SAVED_AT, SIDE = 16, 4, 6, 3, 16
TOLERANCE = 1e-5  # of losses and weights, float32 summed in another order
STREAM = StreamConfig(format.SHORT, ["caption"], {"video": 1, "caption": 1}, frames=2, batch=BATCH)
_TOWER = {"width": 16, "layers": 1}
ARCHITECTURE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": SIDE, "patch_size": 8, "head_width": 8, **_TOWER},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "heads": 2, **_TOWER},
}


@dataclass
class Step:
    """What a process saw of one step."""

    sample_ids: list[str]  # its own
    loss: float  # of the global batch
    weights: torch.Tensor  # after it, all in a row


def write_dataset(root: str) -> None:
    """A published dataset of a few samples, each with two pictures and a caption of its own."""
    rng = np.random.default_rng(0)
    with ShardWriter(root, "train", format.SHORT, 0) as writer:
        for number in range(SAMPLES):
            name, caption = f"clip-{number}", f"this is number {number}"
            pictures = rng.integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
            meta = {"clip_id": name, "video": f"{name}.mp4", "start_ms": 0, "end_ms": 1000, "caption": caption}
            meta |= {"frame_ms": [250, 750], "width": SIDE, "height": SIDE, "sentences": {"caption": [caption]}}
            identity = format.sample_id(format.SHORT, name, [name], "doctor")
            frames = [simplejpeg.encode_jpeg(picture) for picture in pictures]
            sample = {"source_id": name, "clip_ids": [name], "texts": {"caption": caption}, "frames": frames, "meta": meta}
            writer.add(sample_id=identity, duration_ms=1000, decoder="none", **sample)
        shards = {format.SHORT: writer.close()}
    publish.write_commit(root, 0, {"row": 0, "split": "train", "shards": shards})
    publish.build_manifest(root, config_digest="doctor", plan_digest="doctor", frames={}, versions={})


def train(root: str, folder: Path, first: int, save: bool) -> list[Step]:
    """The steps [first, STEPS) of this process, from the checkpoint in `folder` where `first` is not 0."""
    config = PretrainConfig(output=str(folder), trackers=[], streams={"svst": STREAM})
    accelerator = create_accelerator(config)
    seed_step(0, -1, 0)
    model = GexiaModel(ARCHITECTURE, (0.5,) * 3, (0.5,) * 3, heads=2, dropout=0.1).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    if first:
        checkpoint.load(checkpoint.newest(folder), {"model": model}, optimizer)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    ranks, loader = (accelerator.process_index, accelerator.num_processes), DataConfig(size=SIDE, workers=0)
    found = []
    with Streams([open_data(root)], config.streams, loader, 0, *ranks, model.tokenizer()) as streams:
        for batch in streams.batches(first, STEPS - first):
            result = training_step(accelerator, wrapped, optimizer, batch, STREAM, config)
            weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
            found.append(Step(batch.sample_ids, result.losses["caption"], weights))
            if save and batch.step + 1 == SAVED_AT and accelerator.is_main_process:
                checkpoint.save(folder, SAVED_AT, {"model": model}, optimizer, 1, streams.digests)
    accelerator.wait_for_everyone()
    return found


def run_rank(rank: int, ranks: int, port: int, root: str, folder: str) -> None:
    """One process: all steps, then the last ones again from the checkpoint; both into `folder`."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks}
    os.environ |= {name: str(value) for name, value in where.items()} if ranks > 1 else {}
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    whole = train(root, Path(folder), 0, save=True)
    torch.save((whole, train(root, Path(folder), SAVED_AT, save=False)), f"{folder}/{rank}.pt")
    if ranks > 1:
        torch.distributed.destroy_process_group()


def run(root: str, work: str) -> dict[int, list[tuple[list[Step], list[Step]]]]:
    """Number of processes -> for each of them (all steps, steps after the checkpoint)."""
    running = []
    for ranks in (1, 2):
        Path(work, str(ranks)).mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        arguments = ranks, port, root, f"{work}/{ranks}"
        running.append(multiprocessing.start_processes(run_rank, arguments, ranks, join=False, start_method="spawn"))
    for processes in running:
        while not processes.join():
            pass
    return {ranks: [torch.load(f"{work}/{ranks}/{rank}.pt", weights_only=False) for rank in range(ranks)] for ranks in (1, 2)}


def compare(found: dict[int, list[tuple[list[Step], list[Step]]]]) -> dict[str, str | None]:
    """Check -> None, or what differs."""
    ((one, _),), two = found[1], found[2]
    batches = loss = gradients = resume = None
    for step, (alone, *parts) in enumerate(zip(one, *(whole for whole, _ in two), strict=True)):
        shares = [part.sample_ids for part in parts]
        if len({len(share) for share in shares}) > 1 or sorted(sum(shares, [])) != sorted(alone.sample_ids):
            batches = batches or f"step {step}: {shares} on two processes, {alone.sample_ids} on one"
        for part in parts:
            if abs(part.loss - alone.loss) > TOLERANCE:
                loss = loss or f"step {step}: {part.loss} on two processes, {alone.loss} on one"
            difference = float((part.weights - alone.weights).abs().max())
            if difference > TOLERANCE:
                gradients = gradients or f"step {step}: weights differ by {difference:.1e}"
    for rank, (whole, resumed) in enumerate(two):
        for before, after in zip(whole[SAVED_AT:], resumed, strict=True):
            if before.sample_ids != after.sample_ids or not torch.equal(before.weights, after.weights):
                resume = resume or f"process {rank}: other samples or weights after the checkpoint"
    return {"equal batches": batches, "loss": loss, "gradients": gradients, "resume": resume}


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="gexia-doctor-") as work:
        root = f"{work}/data"
        write_dataset(root)
        found = compare(run(root, work))
    for name, fault in found.items():
        print(f"{name}: {fault or 'ok'}")
    return 1 if any(found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
