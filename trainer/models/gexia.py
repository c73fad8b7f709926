"""The GEXIA model: local encoders, one IAM a branch, and a temperature."""

from dataclasses import dataclass, fields
from typing import Literal

from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from shards.errors import UserError

from .iam import IAM
from .towers import ImageTower, TextTower, architecture, create_tokenizer, create_towers, default_pixels, load_weights

# scratch: random weights, the new modules' rate; frozen: pretrained and never changed; finetune: the towers' rate.
TowerInit = Literal["scratch", "frozen", "finetune"]


@dataclass
class ModelConfig:
    """What a run's model is made of. Width, latents and dense features of the IAM are ours, not the paper's."""

    name: str = "ViT-B-32-quickgelu"  # an open_clip model, or a .json file in open_clip's form
    pretrained: str | None = None  # open_clip tag or weights file, for the towers that are not `scratch`
    image_init: TowerInit | None = None  # null: finetune with `pretrained`, scratch without
    text_init: TowerInit | None = None  # the same of the text tower
    patch_dropout: float = 0.0  # fraction of a frame's patches that a training step leaves out
    frame_grid: int = 0  # each frame also gives grid × grid pooled patch tokens; 0: its global token alone
    latents: int = 1  # of the IAM: embeddings that it iterates on, whose mean is the result
    heads: int = 8  # of the IAM
    mlp_ratio: float = 4.0  # of the IAM
    dropout: float = 0.0  # of the IAM
    positions: int = 64  # frames or sentences told apart by their place; most frames that a sample may have

    def tower_inits(self) -> dict[str, TowerInit]:
        """Name of each tower in the model -> its init. UserError for one that needs weights where none are named."""
        default = "finetune" if self.pretrained else "scratch"
        found = {"image_tower": self.image_init or default, "text_tower": self.text_init or default}
        if self.pretrained and set(found.values()) == {"scratch"}:
            raise UserError("model.pretrained: no tower would have these weights; leave image_init or text_init out")
        for name, init in found.items():
            if init != "scratch" and not self.pretrained:
                raise UserError(f"model.{name.split('_')[0]}_init: {init} needs model.pretrained")
        return found


class GexiaModel(nn.Module, PyTorchModelHubMixin):
    """Videos and texts to one space; `#iter` of each branch is a call argument.

    `save_pretrained` and `from_pretrained` (huggingface_hub) store every argument below in config.json.
    """

    def __init__(
        self,
        architecture: dict,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        frame_grid: int = 0,
        latents: int = 1,
        heads: int = 8,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        positions: int = 64,
    ):
        """`architecture` is open_clip's dictionary; `mean` and `std` normalise pixels in 0..1; the rest: ModelConfig."""
        super().__init__()
        towers = create_towers(architecture)
        dim = architecture["embed_dim"]
        self.architecture = architecture
        self.image_tower = ImageTower(towers.visual, frame_grid, mean, std)
        self.text_tower = TextTower(towers.text)
        self.video_iam = IAM(dim, heads, latents, mlp_ratio, dropout, positions)
        self.text_iam = IAM(dim, heads, latents, mlp_ratio, dropout, positions)
        self.logit_scale = towers.logit_scale
        self.logit_bias = towers.logit_bias

    @classmethod
    def create(cls, config: ModelConfig) -> "GexiaModel":
        """A new model, its towers from scratch or with open_clip's weights."""
        inits = config.tower_inits()
        if config.patch_dropout and config.frame_grid:
            raise UserError("model.patch_dropout: leaves no grid of patches for model.frame_grid; set one of them to 0")
        arch = architecture(config.name)
        pixels = default_pixels(arch)
        source = None
        if set(inits.values()) != {"scratch"}:
            source = create_towers(arch)
            pixels |= load_weights(source, config.name, config.pretrained)
        if config.patch_dropout:
            arch["vision_cfg"]["patch_dropout"] = config.patch_dropout
        towers_only = {"name", "pretrained", "image_init", "text_init", "patch_dropout"}
        options = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in towers_only}
        model = cls(arch, tuple(pixels["mean"]), tuple(pixels["std"]), **options)
        arch["vision_cfg"].pop("patch_dropout", None)  # this training's own: a saved model has none
        if source:
            if inits["image_tower"] != "scratch":
                model.image_tower.visual.load_state_dict(source.visual.state_dict())
            if inits["text_tower"] != "scratch":
                model.text_tower.text.load_state_dict(source.text.state_dict())
            model.logit_scale, model.logit_bias = source.logit_scale, source.logit_bias
        for name, init in inits.items():
            model.get_submodule(name).requires_grad_(init != "frozen")
        return model

    def train(self, mode: bool = True) -> "GexiaModel":
        """As every module's, but a frozen tower stays as it is in evaluation: nothing dropped, no statistics."""
        super().train(mode)
        for tower in (self.image_tower, self.text_tower):
            if not any(parameter.requires_grad for parameter in tower.parameters()):
                tower.eval()
        return self

    def compile_parts(self) -> None:
        """Compile towers and IAMs in place; each is one graph."""
        for part in (self.image_tower, self.text_tower, self.video_iam, self.text_iam):
            part.compile()

    def tokenizer(self):
        """Callable on a list of texts, int64 [N, context_length]."""
        return create_tokenizer(self.architecture)

    def encode_video(self, frames: Tensor, frame_mask: Tensor, iterations: int, keys: Tensor | None = None) -> Tensor:
        """uint8 [B, T, 3, H, W], bool [B, T] -> [B, D], normalised. `keys`: see `forward`. UserError for more frames than
        the IAM has positions."""
        if iterations and frames.shape[1] > self.video_iam.positions:
            raise UserError(f"{frames.shape[1]} frames, but the model has model.positions {self.video_iam.positions}")
        tokens = self.image_tower(frames.flatten(0, 1), with_grid=iterations > 0).unflatten(0, frames.shape[:2])
        dense_mask = frame_mask[:, :, None].expand(tokens.shape[:3])
        return self.video_iam(tokens[:, :, 0], frame_mask, tokens, dense_mask, iterations, keys)

    def encode_text(self, tokens: Tensor, mask: Tensor, iterations: int, keys: Tensor | None = None) -> Tensor:
        """int64 [B, S, L] (each sentence on its own), bool [B, S] -> [B, D], normalised. `keys`: see `forward`."""
        rows = self.text_tower.trim(tokens[mask])
        pooled, features = self.text_tower(rows)
        units = _scatter(pooled, mask)
        if iterations == 0:
            return self.text_iam(units, mask, units[:, :, None], mask[:, :, None], 0)
        dense_mask = _scatter(self.text_tower.token_mask(rows), mask)
        return self.text_iam(units, mask, _scatter(features, mask), dense_mask, iterations, keys)

    def similarity(self, video: Tensor, text: Tensor) -> Tensor:
        """[Nv, D], [Nt, D] -> [Nv, Nt], cosines."""
        return video @ text.T

    def forward(
        self,
        frames: Tensor,
        frame_mask: Tensor,
        texts: dict[str, tuple[Tensor, Tensor]],
        iterations: dict[str, int],
        keys: Tensor | None = None,
    ) -> dict:
        """One training step's embeddings; everything trainable is used here and nowhere else.

        Args:
            frames: uint8 [B, T, 3, H, W], with `frame_mask` bool [B, T].
            texts: view -> (tokens [B, S, L], mask [B, S]). The video is encoded once for all views.
            iterations: `#iter` of "video" and of every view.
            keys: of the IAMs' dropout, int64 [B]; None: no dropout.

        Returns {"video": [B, D], "texts": {view: [B, D]}, "scale": scalar, "bias": scalar or None}.
        """
        own_keys = [None if keys is None else keys + i for i in range(1 + len(texts))]
        views = zip(texts.items(), own_keys[1:], strict=True)
        return {
            "video": self.encode_video(frames, frame_mask, iterations["video"], own_keys[0]),
            "texts": {view: self.encode_text(*text, iterations[view], own) for (view, text), own in views},
            # Results, not the parameters themselves: DDP takes a bare parameter among the outputs for an unused one.
            "scale": self.logit_scale.exp(),
            "bias": None if self.logit_bias is None else self.logit_bias + 0,
        }

    def set_grad_checkpointing(self) -> None:
        """Recompute the towers' activations in the backward pass instead of keeping them."""
        self.image_tower.visual.set_grad_checkpointing(True)
        self.text_tower.text.set_grad_checkpointing(True)


def _scatter(rows: Tensor, mask: Tensor) -> Tensor:
    """Rows of the masked places, [n, ...] -> [B, S, ...], zeros elsewhere."""
    placed = rows.new_zeros(*mask.shape, *rows.shape[1:])
    placed[mask] = rows
    return placed
