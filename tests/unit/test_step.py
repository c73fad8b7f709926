"""A training step: the same gradients in one piece, in chunks and over ranks, dropout on."""

import ctypes
import math
import os
import re
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing as multiprocessing
from accelerate.state import AcceleratorState
from torch import nn

from trainer.config import PretrainConfig
from trainer.data_config import StreamConfig
from trainer.flops import StepFlops, peak_flops
from trainer.loop import create_accelerator
from trainer.losses import LossConfig
from trainer.models.gexia import GexiaModel
from trainer.step import Inputs, backward_chunks, backward_whole, training_step

ARCH = {
    "embed_dim": 16,
    "init_logit_bias": -10,
    "vision_cfg": {"image_size": 16, "patch_size": 4, "width": 16, "head_width": 8, "layers": 1},
    "text_cfg": {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1},
}
STREAM = StreamConfig(folder="long", texts=["long", "summary"], iter={"video": 2, "long": 1, "summary": 0}, frames=3, batch=8)


def create_model(patch_dropout: float = 0.0) -> GexiaModel:
    torch.manual_seed(0)
    arch = ARCH | {"vision_cfg": ARCH["vision_cfg"] | {"patch_dropout": patch_dropout}}
    model = GexiaModel(arch, (0.5,) * 3, (0.5,) * 3, heads=2, dropout=0.3).double().train()
    for name, parameter in model.named_parameters():
        if "iam" in name:
            nn.init.normal_(parameter, std=0.2)
    return model


def create_batch(rows: slice = slice(None), count: int = 8, size: int = 16, frames: int = 3):
    """Rows of one global batch: masked frames and sentences, equal texts, a row without any frame."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, frames, 3, size, size), dtype=torch.uint8, generator=generator)
    frame_mask = torch.rand(count, frames, generator=generator) < 0.7
    frame_mask[0], frame_mask[1:, 0] = False, True
    texts = {}
    for view in STREAM.texts:
        tokens = torch.randint(1, 31, (count, 2, 8), generator=generator)
        mask = torch.tensor([[True, i % 2 == 0] for i in range(count)])
        text_id = torch.arange(count) % (count - 1)
        texts[view] = SimpleNamespace(tokens=tokens[rows], mask=mask[rows], text_id=text_id[rows])
    names = [f"sample {i}" for i in range(count)][rows]
    return SimpleNamespace(step=7, stream="lv", frames=pixels[rows], frame_mask=frame_mask[rows], texts=texts, sample_ids=names)


def gradients(chunk: int | None, kind: str = "infonce", patch_dropout: float = 0.0, rows=slice(None), backward=None):
    """(loss by view of these rows, gradient by parameter, all-reduced buckets) of one step."""
    config = PretrainConfig(grad_cache_chunk=chunk, trackers=[], loss=LossConfig(kind=kind))
    accelerator, reduced = create_accelerator(config), []
    plain = create_model(patch_dropout)
    model = accelerator.prepare(plain)
    if accelerator.num_processes > 1:

        def count(_, bucket):
            reduced.append(bucket.index())
            work = torch.distributed.all_reduce(bucket.buffer(), async_op=True).get_future()
            return work.then(lambda done: done.value()[0] / accelerator.num_processes)

        model.register_comm_hook(None, count)
    inputs = Inputs(accelerator, model, create_batch(rows), STREAM, config)
    backward = backward or (backward_chunks if len(inputs.chunks) > 1 else backward_whole)
    losses = {view: loss.detach() for view, loss in backward(inputs).items()}
    return losses, {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}, len(reduced)


def assert_same(found, expected, tolerance=1e-9):
    for got, want in zip(found[:2], expected[:2], strict=True):
        assert got.keys() == want.keys()
        for name, value in want.items():
            torch.testing.assert_close(got[name], value, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
def test_gradients_do_not_depend_on_the_chunks(kind):
    whole = gradients(None, kind)
    assert all(grad.abs().max() > 0 for name, grad in whole[1].items() if "iam" in name and "position" not in name)
    for chunk in (1, 2, 3, 8):
        assert_same(gradients(chunk, kind), whole)


@pytest.mark.parametrize("start", [100.0, 117.0])
def test_a_step_brings_the_temperature_back_to_its_bound_and_lets_it_learn(start):
    config = PretrainConfig(trackers=[])
    accelerator, model = create_accelerator(config), create_model()
    nn.init.constant_(model.logit_scale, math.log(start))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model, optimizer = accelerator.prepare(model, optimizer)
    scales = [training_step(accelerator, model, optimizer, create_batch(), STREAM, config).scale for _ in range(4)]
    assert scales[0] == pytest.approx(start) and max(scales[1:]) <= 100.001 and len(set(scales[1:])) > 1


def test_dropout_is_on_and_differs_between_steps_and_samples():
    model, batch = create_model(), create_batch()
    mask = torch.ones_like(batch.frame_mask)
    same = batch.frames[:1].expand_as(batch.frames)
    drawn = [model.encode_video(same, mask, 2, torch.arange(8) + start) for start in (0, 8)]
    rows = torch.cat(drawn)
    assert torch.pdist(rows).min() > 1e-6
    assert torch.equal(drawn[0], model.encode_video(same, mask, 2, torch.arange(8)))


def test_a_chunk_draws_the_same_patches_in_both_passes():
    """open_clip's patch dropout draws from the generator, so its gradients are those of the same chunks without a cache."""

    def uncached(inputs: Inputs):
        parts = [inputs.forward(number) for number in range(len(inputs.chunks))]
        out = parts[0] | {"video": torch.cat([part["video"] for part in parts])}
        out["texts"] = {view: torch.cat([part["texts"][view] for part in parts]) for view in STREAM.texts}
        losses = inputs.losses(out)
        sum(losses.values()).backward()
        return losses

    cached, plain = gradients(2, patch_dropout=0.5), gradients(2, patch_dropout=0.5, backward=uncached)
    assert_same(cached, plain)
    assert not torch.allclose(cached[0]["long"], gradients(2)[0]["long"])


def run_rank(rank: int, world_size: int, port: int, path: str):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    torch.set_num_threads(1)
    rows = slice(rank * 8 // world_size, (rank + 1) * 8 // world_size)
    torch.save([gradients(chunk, rows=rows) for chunk in (None, 1, 2)], f"{path}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_ranks_and_chunks_have_the_gradients_of_one_process_and_exchange_them_once(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.set_forkserver_preload(["trainer.step", "trainer.models.gexia"])
    multiprocessing.start_processes(run_rank, (2, port, str(tmp_path)), nprocs=2, start_method="forkserver")
    expected = gradients(None)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for number in range(3):
        assert_same(({}, ranks[0][number][1]), ({}, expected[1]))
        mean = {view: (ranks[0][number][0][view] + ranks[1][number][0][view]) / 2 for view in STREAM.texts}
        assert_same((mean, {}), (expected[0], {}))
    assert ranks[0][0][2] == ranks[0][1][2] == ranks[0][2][2] > 0


def test_flops_are_counted_once_a_stream_and_scale_with_the_batch():
    config = PretrainConfig(trackers=[])
    accelerator, model = create_accelerator(config), create_model()
    count = StepFlops(accelerator, model)
    assert count.peak is None and count(Inputs(accelerator, model, create_batch(), STREAM, config)) is None
    count.peak = peak_flops("NVIDIA H100 80GB HBM3")
    of_eight = count(Inputs(accelerator, model, create_batch(), STREAM, config))
    # The image tower's two matrix products a patch embedding and MLP alone: patches x (in x out) x 2 x 3 passes.
    assert of_eight > 6 * 8 * 3 * 16 * (3 * 4 * 4 * 16 + 2 * 16 * 64)
    assert count(Inputs(accelerator, model, create_batch(slice(0, 4)), STREAM, config)) == of_eight / 2
    assert (count.peak, peak_flops("NVIDIA H100 PCIe"), peak_flops("GeForce")) == (989e12, 756e12, None)


def peak_of_step(chunk: int | None, rows: int) -> float:
    """Bytes by which a step raises the process's resident memory at most."""
    config = PretrainConfig(grad_cache_chunk=chunk, trackers=[])
    accelerator, model = create_accelerator(config), create_model().float()
    optimizer = torch.optim.SGD(model.parameters())
    batch = create_batch(count=rows, size=16, frames=48)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    training_step(accelerator, model, optimizer, batch, STREAM, config)
    return memory("VmHWM") - before


def memory(name: str) -> float:
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def measure_peaks(path: str):
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(-3, 65536)  # M_MMAP_THRESHOLD: freed tensors go back at once, as on a GPU
    peak_of_step(8, 8)  # what a first step allocates once
    torch.save((peak_of_step(None, 32), peak_of_step(32, 256), peak_of_step(None, 256)), path)


def test_eight_chunks_need_the_memory_of_one(tmp_path):
    process = multiprocessing.get_context("forkserver").Process(target=measure_peaks, args=(str(tmp_path / "peaks"),))
    process.start()
    process.join()
    one, eight, whole = torch.load(tmp_path / "peaks")
    assert one > 25e6 and whole > 4 * one, (one, eight, whole)
    assert eight <= 1.3 * one, (one, eight, whole)


def test_bfloat16_gives_nearly_the_loss_of_float32():
    found = []
    AcceleratorState._reset_state(reset_partial_state=True)  # a process has one precision
    for precision in ("fp32", "bf16"):
        config = PretrainConfig(precision=precision, trackers=[])
        accelerator, model = create_accelerator(config), create_model().float()
        inputs = Inputs(accelerator, model, create_batch(), STREAM, config)
        found.append(torch.stack(list(backward_whole(inputs).values())))
        assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)
        AcceleratorState._reset_state(reset_partial_state=True)  # a process has one precision
    torch.testing.assert_close(found[1].float(), found[0], rtol=0.02, atol=0.02)
