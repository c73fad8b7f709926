"""What the IAM costs: its time beside the image tower's, and multiply-adds a frame.

    python -m ops.bench.model [--frames 12] [--batch 8] [--small]

The ratio is 1 + t(IAM) / t(tower) at #iter 3, as the paper compares GEXIA with CLIP4Clip's mean pooling (3.3 % at
#iter 3, appendix C). Weights are random: neither time nor count depends on them.
"""

import argparse
import statistics
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ops.bench.common import emit
from trainer.models.gexia import GexiaModel, ModelConfig

ITERATIONS = (0, 1, 3)


def multiply_adds_a_frame(model: GexiaModel, frames: torch.Tensor, mask: torch.Tensor, iterations: int) -> float:
    """Multiply-adds of `encode_video` over its frames, attention's products counted too.

    torch's FlopCounterMode counts two operations a multiply-add; it sees attention's projections and products only
    where attention runs as plain matrix products.
    """
    torch.backends.mha.set_fastpath_enabled(False)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model.encode_video(frames, mask, iterations)
    torch.backends.mha.set_fastpath_enabled(True)
    return counter.get_total_flops() / 2 / mask.sum().item()


def seconds_of_parts(model: GexiaModel, frames, mask, rounds: int) -> tuple[float, dict[int, float]]:
    """Median seconds of the image tower, and of the video IAM at each #iter; parts in turn, so drift hits all."""
    tower, iam = [], {n: [] for n in ITERATIONS}
    with torch.no_grad():
        for _ in range(rounds + 1):  # the first warms up
            start = time.perf_counter()
            tokens = model.image_tower(frames.flatten(0, 1), with_grid=True).unflatten(0, frames.shape[:2])
            tower.append(time.perf_counter() - start)
            dense_mask = mask[:, :, None].expand(tokens.shape[:3])
            for n in ITERATIONS:
                start = time.perf_counter()
                model.video_iam(tokens[:, :, 0], mask, tokens, dense_mask, n)
                iam[n].append(time.perf_counter() - start)
    return statistics.median(tower[1:]), {n: statistics.median(times[1:]) for n, times in iam.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32-quickgelu")
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--small", action="store_true", help="two videos, one round: shows that it runs")
    args = parser.parse_args()
    if args.small:
        args.batch, args.rounds = 2, 1

    model = GexiaModel.create(ModelConfig(name=args.model)).eval()
    size = model.image_tower.size
    frames = torch.randint(0, 256, (args.batch, args.frames, 3, size, size), dtype=torch.uint8)
    mask = torch.ones(frames.shape[:2], dtype=torch.bool)
    tower, iam = seconds_of_parts(model, frames, mask, args.rounds)
    macs = {n: multiply_adds_a_frame(model, frames, mask, n) / 1e9 for n in ITERATIONS}
    rows = [("tower", tower, "s")]
    rows += [(f"IAM, #iter {n}", iam[n], "s") for n in ITERATIONS]
    rows += [(f"multiply-adds a frame, #iter {n}", macs[n], "G (FlopCounterMode / 2)") for n in ITERATIONS]
    target = "1 + t(IAM)/t(tower) at #iter 3 <= 1.033; multiply-adds <= 4.7 G a frame"
    emit("model", rows, 1 + iam[3] / tower, target, model=args.model, frames=args.frames, batch=args.batch)


if __name__ == "__main__":
    main()
