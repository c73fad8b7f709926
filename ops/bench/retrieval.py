"""Ranks of all videos and texts against the bare matrix product: `python -m ops.bench.retrieval [--rows 100000]`.

Work: --rows unit vectors each way, as many texts as videos, both directions (`trainer.metrics.places`). Bound: the same
product in the same run, 1,024 texts at a time into a buffer that nothing reads; parts of both take turns, so drift hits
both. The bound does every second part, and rates are compared.
"""

import argparse
import time

import torch
import torch.nn.functional as F

from ops.bench.common import PeakMemory, emit
from trainer.metrics import count_candidates

PARTS, BARE_ROWS = 20, 1024


def measure(videos: torch.Tensor, texts: torch.Tensor) -> tuple[float, float]:
    """Scores a second, ours and of the bare product."""
    score = (videos * texts).sum(dim=1)
    buffer = torch.empty(min(BARE_ROWS, len(texts)), len(videos))
    ours = bare = bare_rows = 0
    for number, part in enumerate(torch.arange(len(texts)).chunk(PARTS)):
        rows = slice(int(part[0]), int(part[-1]) + 1)
        start = time.perf_counter()
        count_candidates(videos, texts[rows], score, score[rows])
        ours += time.perf_counter() - start
        if number % 2 == 0:
            start = time.perf_counter()
            for block in texts[rows].split(BARE_ROWS):
                torch.mm(block, videos.T, out=buffer[: len(block)])
            bare += time.perf_counter() - start
            bare_rows += len(part)
    return len(texts) * len(videos) / ours, bare_rows * len(videos) / bare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="videos, and as many texts")
    parser.add_argument("--dim", type=int, default=512, help="of an embedding (ViT-B/32: 512)")
    args = parser.parse_args()
    torch.manual_seed(0)
    with PeakMemory() as memory:
        videos, texts = (F.normalize(torch.randn(args.rows, args.dim), dim=1) for _ in range(2))
        ours, bare = measure(videos, texts)
    rows = [("ours, both directions", ours / 1e6, "M scores/s"), ("bare product", bare / 1e6, "M scores/s")]
    rows.append(("peak of both", memory.peak / 2**30, "GiB"))
    emit("retrieval", rows, ours / bare, ">= 0.5 of the bare product, under 4 GiB", videos=args.rows, dim=args.dim)


if __name__ == "__main__":
    main()
