"""Evaluate fine-tuned models on their own tests: `accelerate launch tests/evaluate_tasks.py OUT RUN ...` writes
OUT/RUN/TASK.json."""

import json
import sys
from pathlib import Path

from trainer.config import EvaluateConfig, parse
from trainer.evaluate import evaluate


def evaluate_again(output: str, runs: list[str]) -> None:
    for run in map(Path, runs):
        found = json.loads((run / "results.json").read_text())
        (dataset,) = found["datasets"]
        asked = {"checkpoint": run / "model", "data": dataset["data"], "split": dataset["split"], "task": found["task"]}
        more = {"granularities": "[short]", "workers": 1, "output": Path(output) / run.name}
        evaluate(parse(EvaluateConfig, [part for key, value in (asked | more).items() for part in (f"--{key}", str(value))]))


if __name__ == "__main__":
    evaluate_again(sys.argv[1], sys.argv[2:])
