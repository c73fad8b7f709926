"""The fine-tuning configs: they parse, and have the paper's #iter."""

from pathlib import Path

import pytest

from trainer.config import parse
from trainer.finetune_config import FinetuneConfig, check_finetune

CONFIGS = Path(__file__).parents[2] / "configs/finetune"
# ../shared/reference/gexia.md: V-T; None where the paper says nothing of texts.
PAPER = {
    "activitynet": (3, 3),
    "msrvtt": (1, 1),
    "lsmdc": (1, 1),
    "lvu": (3, None),
    "coin": (3, None),
    "charades_ego": (3, 1),
    "how2qa": (1, 1),
}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_config_is_whole_and_has_the_papers_iterations(path):
    config = parse(FinetuneConfig, ["--config", str(path), "--data", "d", "--checkpoint", "m", "--output", "o"])
    check_finetune(config)
    video, text = PAPER.get(path.stem, (None, None))
    assert config.iter["video"] == video or video is None
    assert config.iter["caption"] == text or text is None


def test_every_benchmark_of_the_paper_has_a_config():
    assert PAPER.keys() <= {path.stem for path in CONFIGS.glob("*.yaml")}
