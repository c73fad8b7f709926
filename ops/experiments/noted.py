"""trainer/pretrain.py that also notes which samples each rank was given at each step, in OUTPUT.samples.jsonl."""

import json
from pathlib import Path

from trainer import pretrain
from trainer.config import PretrainConfig, run_script
from trainer.stream import Streams


def noted_pretrain(config: PretrainConfig) -> None:
    class NotedStreams(Streams):
        def batches(self, *steps):
            for batch in super().batches(*steps):
                with open(f"{config.output}.samples.jsonl", "a") as file:
                    line = {"step": batch.step, "rank": self._rank, "of": self._world_size, "ids": batch.sample_ids}
                    file.write(json.dumps(line) + "\n")
                yield batch

    pretrain.Streams = NotedStreams
    pretrain.pretrain(config)


def samples(output: Path) -> dict[int, list[str]]:
    """The global batch of each step (from 0), in the order of the ranks that did it last."""
    found: dict[int, dict[int, list[str]]] = {}
    sizes: dict[int, int] = {}
    for line in map(json.loads, Path(f"{output}.samples.jsonl").read_text().splitlines()):
        if sizes.get(line["step"]) != line["of"]:
            found[line["step"]], sizes[line["step"]] = {}, line["of"]
        found[line["step"]][line["rank"]] = line["ids"]
    whole = (step for step, ranks in found.items() if len(ranks) == sizes[step])
    return {step: sum((found[step][rank] for rank in range(sizes[step])), []) for step in whole}


if __name__ == "__main__":
    run_script(PretrainConfig, noted_pretrain)
