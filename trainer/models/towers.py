"""The local encoders: one frame or one sentence at a time, through open_clip's towers.

An architecture is a dictionary in open_clip's own form (`embed_dim`, `vision_cfg`, `text_cfg`, …), so a saved
model needs no registry to be built again.
"""

import json
import sys
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import CustomTextCLIP
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import Tensor, nn

from shards.errors import UserError


def architecture(name: str) -> dict:
    """open_clip's description of a model: by its name, or from a JSON file in open_clip's form.

    Raises UserError for a name that is neither.
    """
    if name.endswith(".json"):
        try:
            found = json.loads(Path(name).read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"model.name: cannot read {name}: {error}") from None
    else:
        found = open_clip.get_model_config(name)
    if not isinstance(found, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= found.keys():
        raise UserError(
            f"model.name: {name!r} is no open_clip model; `python -c 'import open_clip; print(open_clip.list_models())'` "
            "lists them, or give a .json file with embed_dim, vision_cfg and text_cfg"
        )
    return found


def create_towers(arch: dict) -> CustomTextCLIP:
    """open_clip's model of an architecture, from scratch: its `visual`, `text`, `logit_scale` and `logit_bias`.

    Raises UserError for towers that give no per-token features, and for descriptions that make no towers.
    """
    vision, text = arch["vision_cfg"], arch["text_cfg"]
    if isinstance(vision.get("layers"), list):
        raise UserError("model.name: ResNet towers are not supported; choose a ViT")
    if "multimodal_cfg" in arch or "hf_model_name" in text or text.get("embed_cls"):
        raise UserError("model.name: this text tower is not supported; choose a model of the CLIP or SigLIP family")
    try:
        return CustomTextCLIP(**{key: value for key, value in arch.items() if key != "custom_text"})
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or "sizes that do not fit"
        raise UserError(f"model.name: open_clip cannot make this model: {reason}") from None


def load_weights(model: CustomTextCLIP, name: str, pretrained: str) -> dict:
    """Load an open_clip tag or a weights file into a model; returns the weights' pixel statistics {mean, std}, or {}.

    Raises UserError for weights that are not found or do not fit.
    """
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    has_gelu = any(isinstance(module, nn.GELU) for module in model.modules())
    if tag.get("quick_gelu") and has_gelu:
        raise UserError(
            f"model.pretrained: {pretrained} was trained with QuickGELU, {name} has GELU; set model.name to {name}-quickgelu"
        )
    if not tag and "openai" in Path(pretrained).name.lower() and has_gelu:
        print(
            f"warning: model.pretrained: {pretrained} looks like OpenAI's weights, which were trained with QuickGELU, and "
            f"{name} has GELU; if they are, set model.name to {name}-quickgelu",
            file=sys.stderr,
        )
    if not tag and not Path(pretrained).is_file():
        known = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise UserError(f"model.pretrained: {pretrained!r} is neither a file nor a tag of {name} (its tags: {known})")
    try:
        open_clip.load_checkpoint(model, open_clip.download_pretrained(tag) if tag else pretrained)
    except Exception as error:  # open_clip, torch and the hub each have their own kinds
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"model.pretrained: cannot load {pretrained!r} into {name}: {reason}") from None
    return {key: tag[key] for key in ("mean", "std") if key in tag}


def default_pixels(arch: dict) -> dict:
    """Pixel statistics of weights that name none: SigLIP's family uses 0.5, all others CLIP's."""
    if "init_logit_bias" in arch:
        return {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    return {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}


def create_tokenizer(arch: dict):
    """The tokenizer of an architecture: callable on a list of texts, int64 [N, context_length]."""
    text = arch["text_cfg"]
    length, options = text.get("context_length", 77), text.get("tokenizer_kwargs") or {}
    if "hf_tokenizer_name" in text:
        return open_clip.tokenizer.HFTokenizer(text["hf_tokenizer_name"], context_length=length, **options)
    return open_clip.tokenizer.SimpleTokenizer(context_length=length, **options)


class ImageTower(nn.Module):
    """Frames one by one: the projected global token and, if `grid` > 0, the patch tokens pooled to grid × grid."""

    def __init__(self, visual: VisionTransformer | TimmModel, grid: int, mean, std):
        super().__init__()
        self.visual = visual
        self.grid = grid
        self.register_buffer("mean", 255 * torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(3, 1, 1), persistent=False)

    @property
    def size(self) -> int:
        """Side of the square frames that the tower takes, pixels."""
        return self.visual.image_size[0]

    def forward(self, frames: Tensor, with_grid: bool) -> Tensor:
        """uint8 [N, 3, H, W] -> [N, 1, D], or [N, 1 + grid², D] where the grid is wanted and configured."""
        pixels = (frames.to(self.mean.dtype) - self.mean) / self.std
        if not (with_grid and self.grid):
            return self.visual(pixels)[:, None]
        pooled, patches = self._tokens(pixels)
        side = int(patches.shape[1] ** 0.5)
        patches = patches.transpose(1, 2).unflatten(2, (side, side))
        cells = F.adaptive_avg_pool2d(patches, self.grid).flatten(2).transpose(1, 2)
        return torch.cat([pooled[:, None], cells], dim=1)

    def _tokens(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Global token [N, D] and patch tokens [N, P, D], both in the joint space."""
        visual = self.visual
        if isinstance(visual, TimmModel):
            tokens = visual.trunk.forward_features(pixels)
            pooled = visual.head(visual.trunk.forward_head(tokens))
            return pooled, visual.head(tokens[:, visual.trunk.num_prefix_tokens :])
        x = visual.transformer(visual._embeds(pixels))
        pooled, patches = visual._pool(x)
        return pooled @ visual.proj, patches @ visual.proj


class TextTower(nn.Module):
    """Sentences one by one: the projected global token and every token's projected features."""

    def __init__(self, text: TextTransformer):
        super().__init__()
        self.text = text

    def token_mask(self, tokens: Tensor) -> Tensor:
        """bool [N, L]: which positions are text. Padding is what follows the end of text."""
        if self.text.pool_type == "argmax":  # CLIP: the end of text has the highest id
            last = tokens.argmax(dim=1)
        elif self.text.pool_type == "eos":
            last = (tokens == self.text.eos_id).int().argmax(dim=1)
        else:  # SigLIP: the run of equal tokens at the end starts with the end of text
            different = (tokens != tokens[:, -1:]).int()
            last = tokens.shape[1] - different.flip(1).argmax(dim=1)
            last = torch.where(different.any(dim=1), last, 0)
        return torch.arange(tokens.shape[1], device=tokens.device) <= last[:, None]

    def trim(self, tokens: Tensor) -> Tensor:
        """Drop positions that are padding in every row, where the attention is causal and so nothing sees them."""
        if self.text.attn_mask is None or not len(tokens):
            return tokens
        return tokens[:, : int(self.token_mask(tokens).sum(1).max())]

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """int64 [N, L] -> global [N, D], features [N, L, D]."""
        text, length = self.text, tokens.shape[1]
        x = text.token_embedding(tokens) + text.positional_embedding[:length]
        mask = None if text.attn_mask is None else text.attn_mask[:length, :length].to(x.dtype)
        x = text.ln_final(text.transformer(x, attn_mask=mask))
        pooled = open_clip.transformer.text_global_pool(x, tokens, text.pool_type, text.eos_id)
        return self._project(pooled), self._project(x)

    def _project(self, x: Tensor) -> Tensor:
        projection = self.text.text_projection
        if projection is None:
            return x
        return projection(x) if isinstance(projection, nn.Linear) else x @ projection
