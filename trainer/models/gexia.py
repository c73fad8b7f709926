"""The GEXIA model: local encoders, one IAM a branch, and a temperature."""

from dataclasses import dataclass, fields

from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from .iam import IAM
from .towers import ImageTower, TextTower, architecture, create_tokenizer, create_towers, default_pixels, load_weights


@dataclass
class ModelConfig:
    """What a run's model is made of. Width, latents and dense features of the IAM are ours, not the paper's."""

    name: str = "ViT-B-32-quickgelu"  # an open_clip model, or a .json file in open_clip's form
    pretrained: str | None = None  # open_clip tag or weights file; null: from scratch
    patch_dropout: float = 0.0  # fraction of a frame's patches that a training step leaves out
    frame_grid: int = 0  # each frame also gives grid × grid pooled patch tokens; 0: its global token alone
    latents: int = 1
    heads: int = 8  # of the IAM
    mlp_ratio: float = 4.0  # of the IAM
    dropout: float = 0.0  # of the IAM
    positions: int = 64  # most frames or sentences that one sample may have


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
        arch = architecture(config.name)
        pixels = default_pixels(arch)
        source = None
        if config.pretrained:
            source = create_towers(arch)
            pixels |= load_weights(source, config.name, config.pretrained)
        if config.patch_dropout:
            arch["vision_cfg"]["patch_dropout"] = config.patch_dropout
        towers_only = {"name", "pretrained", "patch_dropout"}
        options = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in towers_only}
        model = cls(arch, tuple(pixels["mean"]), tuple(pixels["std"]), **options)
        if source:
            model.image_tower.visual.load_state_dict(source.visual.state_dict())
            model.text_tower.text.load_state_dict(source.text.state_dict())
            model.logit_scale, model.logit_bias = source.logit_scale, source.logit_bias
        return model

    def tokenizer(self):
        """Callable on a list of texts, int64 [N, context_length]."""
        return create_tokenizer(self.architecture)

    def encode_video(self, frames: Tensor, frame_mask: Tensor, iterations: int) -> Tensor:
        """uint8 [B, T, 3, H, W], bool [B, T] -> [B, D], normalised."""
        tokens = self.image_tower(frames.flatten(0, 1), with_grid=iterations > 0).unflatten(0, frames.shape[:2])
        dense_mask = frame_mask[:, :, None].expand(tokens.shape[:3])
        return self.video_iam(tokens[:, :, 0], frame_mask, tokens, dense_mask, iterations)

    def encode_text(self, tokens: Tensor, mask: Tensor, iterations: int) -> Tensor:
        """int64 [B, S, L] (each sentence on its own), bool [B, S] -> [B, D], normalised."""
        rows = self.text_tower.trim(tokens[mask])
        pooled, features = self.text_tower(rows)
        units = _scatter(pooled, mask)
        if iterations == 0:
            return self.text_iam(units, mask, units[:, :, None], mask[:, :, None], 0)
        dense_mask = _scatter(self.text_tower.token_mask(rows), mask)
        return self.text_iam(units, mask, _scatter(features, mask), dense_mask, iterations)

    def similarity(self, video: Tensor, text: Tensor) -> Tensor:
        """[Nv, D], [Nt, D] -> [Nv, Nt], cosines."""
        return video @ text.T

    def forward(
        self,
        frames: Tensor,
        frame_mask: Tensor,
        texts: dict[str, tuple[Tensor, Tensor]],
        iterations: dict[str, int],
    ) -> dict:
        """One training step's embeddings; everything trainable is used here and nowhere else.

        Args:
            frames: uint8 [B, T, 3, H, W], with `frame_mask` bool [B, T].
            texts: view -> (tokens [B, S, L], mask [B, S]). The video is encoded once for all views.
            iterations: `#iter` of "video" and of every view.

        Returns {"video": [B, D], "texts": {view: [B, D]}, "scale": scalar, "bias": scalar or None}.
        """
        return {
            "video": self.encode_video(frames, frame_mask, iterations["video"]),
            "texts": {view: self.encode_text(*text, iterations[view]) for view, text in texts.items()},
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
