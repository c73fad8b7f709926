"""Sentences around a class name, and a class's embedding from them."""

from collections.abc import Callable

import torch.nn.functional as F
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES
from torch import Tensor

TEMPLATES: dict[str, tuple[Callable[[str], str], ...]] = {
    "video": (lambda label: f"A video of a {label}.",),  # the paper's
    "imagenet": OPENAI_IMAGENET_TEMPLATES,
    "simple": SIMPLE_IMAGENET_TEMPLATES,
}


def class_embeddings(embed: Callable[[list[str]], Tensor], labels: list[str], prompts: str) -> Tensor:
    """[C, D], normalised: of each class the mean over its prompts' normalised embeddings (CLIP's prompt ensemble).

    embed: texts -> normalised embeddings [N, D].
    """
    templates = TEMPLATES[prompts]
    rows = embed([template(label) for label in labels for template in templates])
    return F.normalize(rows.float().unflatten(0, (len(labels), len(templates))).mean(dim=1), dim=-1)
