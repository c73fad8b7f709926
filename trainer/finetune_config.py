"""What `finetune.py` can be told."""

from dataclasses import asdict, dataclass, field
from typing import Literal

from shards.errors import UserError
from trainer.checkpoint import CheckpointConfig
from trainer.config import SPEED_KEYS, check_numbers
from trainer.data_config import DataConfig
from trainer.losses import LossConfig
from trainer.optim import OptimConfig
from trainer.tasks.base import TaskConfig


@dataclass
class SplitConfig:
    """Which samples are for what."""

    train: str = "train"  # the model learns from it
    select: str | None = None  # the model is chosen on it; null: on sources held out of train
    held_out: float = 0.1  # share of train's sources, by a stable hash, where select is null
    test: str = "test"  # reported, and used for nothing else


@dataclass
class FinetuneConfig:
    """One fine-tuning of a saved model on a benchmark, and its test."""

    data: list[str] = field(default_factory=list)  # datasets of `gexia import`, mixed; --data can be repeated
    checkpoint: str = ""  # folder that save_pretrained wrote (OUT/model of a pretraining), or a model on the hub
    output: str = ""  # folder of the run
    steps: int = 1000  # of the whole run
    seed: int = 0  # of the head, order and augmentation
    task: TaskConfig = field(default_factory=TaskConfig)
    splits: SplitConfig = field(default_factory=SplitConfig)
    iter: dict[str, int] = field(default_factory=lambda: {"video": 1, "caption": 1})  # #iter of videos and of texts
    frames: int = 12  # of a sample
    batch: int = 64  # samples of a step over all ranks
    lanes: int | None = None  # must divide batch, ranks must divide it; null: batch
    loader: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)  # of retrieval; max_scale of all that learn the temperature
    optim: OptimConfig = field(default_factory=OptimConfig)
    save: CheckpointConfig = field(default_factory=CheckpointConfig)
    select_every: int = 100  # steps between two looks at the select split; the last step is one too
    eval_batch: int = 64  # samples that a rank encodes at once in an evaluation
    precision: Literal["fp32", "bf16"] = "fp32"  # of the arithmetic; weights are fp32
    grad_checkpointing: bool = False  # of the towers: less memory, one more forward pass
    resume: bool = True  # go on from the newest whole checkpoint in `output`
    allow_changed: bool = False  # resume with other data, seed, splits or loader than before; the steps done stay done
    log_every: int = 10  # steps between two lines; metrics.jsonl has every step
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])  # names that accelerate knows


def check_finetune(config: FinetuneConfig) -> None:
    """Raise UserError for what the types alone allow but a run does not."""
    for key in ("data", "checkpoint", "output"):
        if not getattr(config, key):
            raise UserError(f"{key}: not given")
    check_numbers(config)
    if config.optim.ema_decay:
        raise UserError("optim.ema_decay: fine-tuning keeps no average; it chooses a step instead (splits.select)")
    if config.loader.split != DataConfig.split:
        raise UserError(f"loader.split: {config.loader.split}; the splits of a fine-tuning are splits.train, select and test")
    if config.iter.keys() != {"video", "caption"} or min(config.iter.values()) < 0:
        raise UserError("iter: needs exactly the keys caption and video, neither negative")
    splits = config.splits
    if splits.test in (splits.train, splits.select):
        raise UserError(f"splits.test: {splits.test} is what the model learns from or is chosen on")
    if splits.select == splits.train:
        raise UserError(f"splits.select: {splits.select} is what the model learns from; null holds a part of it out")
    if splits.select is None and not 0 < splits.held_out < 1:
        raise UserError(f"splits.held_out: {splits.held_out} is not between 0 and 1")


def finetune_identity(config: FinetuneConfig, weights: str, digests: list[str]) -> dict:
    """What a resumed run must share with the run it resumes. `weights` is the digest of the model at the start."""
    keys = ("seed", "iter", "frames", "batch", "lanes")
    loader = {key: value for key, value in asdict(config.loader).items() if key not in SPEED_KEYS}
    model = {"checkpoint": weights, "task": asdict(config.task)}  # what the weights' shapes depend on
    parts = {"model": model, "data": digests, "splits": asdict(config.splits), "loader": loader}
    return {key: getattr(config, key) for key in keys} | parts
