"""The local encoders and the model around them, for open_clip's CLIP and SigLIP families."""

import json

import open_clip
import pytest
import torch
import torch.nn.functional as F

from shards.errors import UserError
from trainer.models.gexia import GexiaModel, ModelConfig
from trainer.models.towers import architecture, create_towers

VISION = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2}
TEXT = {"context_length": 12, "vocab_size": 64, "width": 32, "heads": 2, "layers": 2}
CLIP = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
SIGLIP = {
    "embed_dim": 64,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 160,
        "timm_model_name": "test_vit",
        "timm_pool": "avg",
        "timm_proj": "none",
    },
    "text_cfg": TEXT | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
}
SOT, EOT = 62, 63


def build(arch, tmp_path, **options) -> GexiaModel:
    torch.manual_seed(0)
    path = tmp_path / "arch.json"
    path.write_text(json.dumps(arch))
    return GexiaModel.create(ModelConfig(name=str(path), heads=4, **options)).eval()


def moved(model: GexiaModel) -> GexiaModel:
    """The zero-initialised layers of both IAMs moved away from zero, so that #iter shows."""
    for iam in (model.video_iam, model.text_iam):
        for layer in (iam.attention_out, iam.mlp_out):
            torch.nn.init.normal_(layer.weight, std=0.2)
    return model


def clip_tokens(*lengths: int, width: int = 12) -> torch.Tensor:
    rows = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in zip(rows, lengths, strict=True):
        row[:length] = torch.tensor([SOT, *range(5, 3 + length), EOT])
    return rows


def frames(batch=2, count=3, size=32):
    return torch.randint(256, (batch, count, 3, size, size), dtype=torch.uint8)


def test_one_frame_and_one_sentence_at_no_iterations_are_open_clips_own_embeddings(tmp_path):
    model = build(CLIP, tmp_path)
    torch.manual_seed(0)
    peer = open_clip.model.CLIP(**CLIP).eval()
    peer_state = open_clip.model.convert_to_custom_text_state_dict(peer.state_dict())
    custom = create_towers(CLIP)
    custom.load_state_dict(peer_state)
    model.image_tower.visual.load_state_dict(custom.visual.state_dict())
    model.text_tower.text.load_state_dict(custom.text.state_dict())
    images, tokens = frames(2, 1), clip_tokens(5, 9)
    pixels = images[:, 0] / 255 - torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
    pixels = pixels / torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)
    with torch.no_grad():
        video = model.encode_video(images, torch.ones(2, 1, dtype=torch.bool), 0)
        text = model.encode_text(tokens[:, None], torch.ones(2, 1, dtype=torch.bool), 0)
        torch.testing.assert_close(video, peer.encode_image(pixels, normalize=True), rtol=0, atol=1e-6)
        torch.testing.assert_close(text, peer.encode_text(tokens, normalize=True), rtol=0, atol=1e-6)


@pytest.mark.parametrize("iterations", [0, 2])
@pytest.mark.parametrize("arch, grid", [(CLIP, 0), (CLIP, 2), (SIGLIP, 2)])
def test_padded_frames_and_sentences_never_change_a_result(tmp_path, arch, grid, iterations):
    model = moved(build(arch, tmp_path, frame_grid=grid))
    size = model.image_tower.size
    images, tokens = frames(2, 3, size), clip_tokens(5, 9, 12, 4).view(2, 2, 12)
    frame_mask = torch.tensor([[True, True, True], [True, False, False]])
    text_mask = torch.tensor([[True, True], [True, False]])
    with torch.no_grad():
        wide = model.encode_video(F.pad(images, (0, 0) * 3 + (0, 2), value=9), F.pad(frame_mask, (0, 2)), iterations)
        torch.testing.assert_close(wide, model.encode_video(images, frame_mask, iterations), rtol=0, atol=1e-5)
        wide = model.encode_text(F.pad(tokens, (0, 0, 0, 3), value=1), F.pad(text_mask, (0, 3)), iterations)
        torch.testing.assert_close(wide, model.encode_text(tokens, text_mask, iterations), rtol=0, atol=1e-5)
        alone = model.encode_video(images[1:, :1], frame_mask[1:, :1], iterations)
        torch.testing.assert_close(wide[1:] @ alone.T, wide[1:] @ model.encode_video(images, frame_mask, iterations)[1:].T)


@pytest.mark.parametrize("iterations", [0, 2])
def test_context_length_does_not_change_a_clip_text(tmp_path, iterations):
    model = moved(build(CLIP, tmp_path))
    one = torch.ones(2, 1, dtype=torch.bool)
    short, long = clip_tokens(5, 7, width=7), clip_tokens(5, 7, width=12)
    with torch.no_grad():
        torch.testing.assert_close(
            model.encode_text(long[:, None], one, iterations), model.encode_text(short[:, None], one, iterations)
        )


def test_end_of_text_is_found_in_both_families(tmp_path):
    clip, siglip = build(CLIP, tmp_path).text_tower, build(SIGLIP, tmp_path).text_tower
    assert clip.token_mask(clip_tokens(3, 12)).sum(1).tolist() == [3, 12]
    rows = torch.tensor([[7, 8, 9, 1, 1, 1], [7, 8, 9, 10, 11, 1], [1, 1, 1, 1, 1, 1]])  # 1 ends and pads
    assert siglip.token_mask(rows).sum(1).tolist() == [4, 6, 1]


def test_a_batch_without_any_sentence_is_finite(tmp_path):
    model = build(CLIP, tmp_path)
    result = model.encode_text(clip_tokens(5, 9)[:, None], torch.zeros(2, 1, dtype=torch.bool), 2)
    assert result.isfinite().all()


def test_a_saved_model_loads_back_in_one_line_and_gives_the_same(tmp_path):
    model = moved(build(SIGLIP, tmp_path, frame_grid=2, latents=2, positions=9))
    model.save_pretrained(tmp_path / "saved")
    assert {p.name for p in (tmp_path / "saved").iterdir()} >= {"config.json", "model.safetensors"}
    again = GexiaModel.from_pretrained(tmp_path / "saved", strict=True)
    images, mask = frames(2, 3, model.image_tower.size), torch.ones(2, 3, dtype=torch.bool)
    with torch.no_grad():
        assert torch.equal(again.encode_video(images, mask, 2), model.encode_video(images, mask, 2))
    assert again.logit_bias.item() == model.logit_bias.item() == -10


def test_weights_come_from_a_local_file(tmp_path):
    torch.manual_seed(1)
    peer = open_clip.model.CLIP(**CLIP)
    torch.save(peer.state_dict(), tmp_path / "weights.pt")
    model = build(CLIP, tmp_path, pretrained=str(tmp_path / "weights.pt"))
    assert torch.equal(model.image_tower.visual.proj, peer.visual.proj)
    assert torch.equal(model.text_tower.text.text_projection, peer.text_projection)
    assert model.logit_scale.item() == peer.logit_scale.item()


def test_gradient_checkpointing_changes_no_gradient(tmp_path):
    images, mask = frames(), torch.ones(2, 3, dtype=torch.bool)
    found = []
    for checkpointing in (False, True):
        model = build(CLIP, tmp_path).train()
        if checkpointing:
            model.set_grad_checkpointing()
        texts = {"caption": (clip_tokens(5, 9)[:, None], torch.ones(2, 1, dtype=torch.bool))}
        out = model(images, mask, texts, {"video": 1, "caption": 1})
        model.similarity(out["video"], out["texts"]["caption"]).trace().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "name, pretrained, words",
    [
        ("ViT-Z-99", None, "no open_clip model"),
        ("nowhere.json", None, "nowhere.json"),
        ("ViT-B-32", "nowhere.pt", "neither a file nor a tag"),
        ("RN50", None, "not supported"),
        ("coca_ViT-B-32", None, "not supported"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(name, pretrained, words, monkeypatch):
    monkeypatch.setattr(torch.nn.init, "normal_", lambda tensor, **_: tensor)  # big models: skip what costs seconds
    with pytest.raises(UserError, match=words) as error:
        GexiaModel.create(ModelConfig(name=name, pretrained=pretrained))
    assert "\n" not in str(error.value)


def test_a_local_file_that_may_be_openais_in_a_gelu_model_is_warned_of(tmp_path, capsys):
    torch.save(open_clip.model.CLIP(**CLIP).state_dict(), tmp_path / "openai.pt")
    build(CLIP, tmp_path, pretrained=str(tmp_path / "openai.pt"))
    assert "quickgelu" in capsys.readouterr().err
    build(CLIP | {"quick_gelu": True}, tmp_path, pretrained=str(tmp_path / "openai.pt"))
    assert not capsys.readouterr().err


def test_openais_tag_in_a_gelu_model_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(torch.nn.init, "normal_", lambda tensor, **_: tensor)
    with pytest.raises(UserError, match="ViT-B-32-quickgelu"):
        GexiaModel.create(ModelConfig(name="ViT-B-32", pretrained="openai"))


def test_each_tower_starts_as_its_init_says(tmp_path):
    source = open_clip.model.CustomTextCLIP(**CLIP)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    options = {"pretrained": str(tmp_path / "weights.pt"), "image_init": "frozen", "text_init": "scratch"}
    model = build(CLIP, tmp_path, **options).train()
    assert torch.equal(model.image_tower.visual.proj, source.visual.proj)
    assert not torch.equal(model.text_tower.text.text_projection, source.text.text_projection)
    assert not any(p.requires_grad for p in model.image_tower.parameters()) and not model.image_tower.training
    assert all(p.requires_grad for p in model.text_tower.parameters()) and model.text_tower.training
    for init in ("frozen", "finetune"):
        with pytest.raises(UserError, match="model.text_init"):
            build(CLIP, tmp_path, text_init=init)


@pytest.mark.parametrize("arch, size", [(CLIP, 32), (SIGLIP, 160)])
@pytest.mark.parametrize("grid", [0, 2])
def test_towers_and_iams_compile_to_one_graph_each(arch, size, grid, tmp_path):
    """`fullgraph` raises at a graph break; the eager backend runs what was captured."""
    model = moved(build(arch, tmp_path, frame_grid=grid))
    tokens, mask = clip_tokens(5, 9), torch.ones(2, 3, dtype=torch.bool)
    images = frames(size=size).flatten(0, 1)
    torch._dynamo.reset()

    def check(part, *arguments):
        expected = part(*arguments)
        torch.testing.assert_close(torch.compile(part, fullgraph=True, backend="eager")(*arguments), expected)
        return expected

    dense = check(model.image_tower, images, True).unflatten(0, (2, 3))
    check(model.text_tower, tokens)
    dense_mask, keys = mask[:, :, None].expand(dense.shape[:3]), torch.arange(2)
    for iterations in (0, 1, 3):
        check(model.video_iam, dense[:, :, 0], mask, dense, dense_mask, iterations, keys)


def test_architecture_is_open_clips_own():
    assert architecture("ViT-B-32-quickgelu")["quick_gelu"]


def test_more_frames_than_positions_are_refused(tmp_path):
    model = build(CLIP, tmp_path, positions=3)
    frames, mask = torch.zeros(1, 4, 3, 32, 32, dtype=torch.uint8), torch.ones(1, 4, dtype=torch.bool)
    assert model.encode_video(frames, mask, 0).shape == (1, 24)
    with pytest.raises(UserError, match="4 frames, but the model has model.positions 3"):
        model.encode_video(frames, mask, 1)


def test_a_saved_model_drops_no_patches(tmp_path):
    """What a pretraining left out of its steps is not left out of a fine-tuning of its model."""
    model = build(CLIP, tmp_path, patch_dropout=0.5)
    frames = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    drops = lambda m: any(not torch.equal(m.train().image_tower(frames, False), m.image_tower(frames, False)) for _ in range(4))
    model.save_pretrained(tmp_path / "saved")
    assert drops(model) and not drops(GexiaModel.from_pretrained(tmp_path / "saved"))
