"""A task from a model: a new one, or the one that the model was fine-tuned for, which lies beside its weights."""

import json
from pathlib import Path

from safetensors.torch import load_file, save
from torch import nn

from trainer.tasks import task_class
from trainer.tasks.base import Reader, Task, TaskConfig

TASK_FILE, HEAD_FILE = "task.json", "head.safetensors"


def create(config: TaskConfig, model: nn.Module, iterations: dict[str, int], read: Reader) -> Task:
    """A task with an untrained head, on the model's device. UserError where the data has nothing for it."""
    kind = task_class(config.name)
    task = kind(model, iterations, kind.specify(config, read)).to(next(model.parameters()).device)
    was_training = task.training
    task.eval()
    task.start()
    return task.train(was_training)


def pack(task: Task) -> dict[str, bytes]:
    """File name -> bytes: what `unpack` needs beside the model."""
    described = {"name": task.name, "iter": task.iterations, "spec": task.spec}
    head = {name: value.detach().cpu().contiguous() for name, value in task.head_weights().items()}
    return {TASK_FILE: json.dumps(described).encode(), HEAD_FILE: save(head)}


def unpack(folder: str | Path, model: nn.Module) -> Task | None:
    """The task that the model in a folder was fine-tuned for; None where it was not."""
    path = Path(folder) / TASK_FILE
    if not path.is_file():
        return None
    described = json.loads(path.read_text())
    task = task_class(described["name"])(model, described["iter"], described["spec"])
    head = load_file(Path(folder) / HEAD_FILE)
    assert head.keys() == task.head_weights().keys(), path
    task.load_state_dict(head, strict=False)
    task.trained = True
    return task.to(next(model.parameters()).device)
