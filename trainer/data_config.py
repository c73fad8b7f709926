"""What the stream can be told. `StreamConfig` is one stream, `DataConfig` what all streams share."""

from dataclasses import dataclass
from typing import Literal


@dataclass
class StreamConfig:
    """What a training step draws from: one granularity, one shape."""

    folder: Literal["short", "long", "image"]
    texts: list[str]  # text views; the loss has a term for each
    iter: dict[str, int]  # #iter of `video` and of each text view
    frames: int  # of a sample; one with fewer is padded and masked
    batch: int  # samples of a step over all ranks
    frame_sampling: Literal["random", "centred"] | None = None  # null: as loader.frame_sampling says
    weight: float = 1.0  # share of the steps, relative to the other streams
    lanes: int | None = None  # must divide batch, ranks must divide it; null: batch


@dataclass
class DataConfig:
    """Order, reading and decoding."""

    split: str = "train"  # whose samples are drawn
    weights: list[float] | None = None  # share of each batch a dataset gets, one for each --data; null: by size
    block: int = 8  # samples of a shard that are read, and shuffled, as one
    window_mb: int = 512  # sample bytes that a stream's windows hold, over all ranks
    size: int = 224  # height and width of a frame
    frame_sampling: Literal["random", "centred"] = "random"  # where in its segment of the sample a frame is taken
    crop: Literal["random", "centre"] = "random"  # of a frame, square
    workers: int = 2  # processes that read and decode, no matter to the order; 0: none, and no watch for reads that hang
    prefetch: int = 4  # batches decoded ahead
    read_seconds: float = 60.0  # a read that takes longer is tried again, then given up
    stall_seconds: float = 300.0  # without any progress, then the run ends
    cache_dir: str | None = None  # local folder for what is read from URLs, shared by all ranks and runs; null: none
    cache_gb: float = 50.0  # that the folder may hold
    max_failures: int = 1000  # samples a rank may replace, then the run ends
