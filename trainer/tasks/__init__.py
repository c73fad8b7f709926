"""What a model is asked to do, and trained for: tasks by name. `base.Task` is their contract."""

from importlib import import_module

# name -> where its Task is; imported when it is asked for
TASKS = {
    "retrieval": "trainer.tasks.video_text:VideoText",
    "classification": "trainer.tasks.labels:Classification",
    "multilabel": "trainer.tasks.labels:Multilabel",
    "regression": "trainer.tasks.regression:Regression",
    "multiple_choice": "trainer.tasks.questions:MultipleChoice",
    "open_qa": "trainer.tasks.questions:OpenQA",
}


def task_class(name: str) -> type:
    """The `base.Task` of a name."""
    module, _, attribute = TASKS[name].partition(":")
    return getattr(import_module(module), attribute)
