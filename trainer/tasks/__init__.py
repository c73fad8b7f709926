"""What a model is asked to do, and trained for: tasks by name. `base.Task` is their contract."""

from importlib import import_module

# name -> where its Task is; imported when it is asked for
TASKS = {
    "retrieval": "trainer.tasks.video_text:VideoText",
}


def task_class(name: str) -> type:
    """The `base.Task` of a name."""
    module, _, attribute = TASKS[name].partition(":")
    return getattr(import_module(module), attribute)
