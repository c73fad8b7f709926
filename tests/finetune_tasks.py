"""Fine-tunes for every task in one process, so that a test on several ranks starts them once: OUTPUT ARGUMENTS..."""

import sys

from trainer.config import parse
from trainer.finetune import finetune
from trainer.finetune_config import FinetuneConfig
from trainer.tasks import TASKS


def finetune_all(output: str, arguments: list[str]) -> None:
    """A run in `output`/TASK for each task."""
    for name in TASKS:
        finetune(parse(FinetuneConfig, [*arguments, "--output", f"{output}/{name}", "--task.name", name]))


if __name__ == "__main__":
    finetune_all(sys.argv[1], sys.argv[2:])
