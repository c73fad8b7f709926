"""A model of the smallest size, for tests of what is done with one."""

import torch

from trainer.models.gexia import GexiaModel


def tiny_model() -> GexiaModel:
    """Frames of 32 pixels, embeddings of 16 numbers, untrained, always the same."""
    tower = {"width": 16, "layers": 1}
    vision = {"image_size": 32, "patch_size": 16, "head_width": 8, **tower}
    text = {"context_length": 77, "vocab_size": 49408, "heads": 2, **tower}
    torch.manual_seed(0)
    arch = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    return GexiaModel(arch, (0.5,) * 3, (0.5,) * 3, heads=2).eval()
