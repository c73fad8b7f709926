"""Groups of the optimiser and the learning rate's course."""

import pytest
import torch
from torch import nn

from trainer.models.gexia import GexiaModel
from trainer.optim import Average, OptimConfig, create_optimizer, lr_share, set_lr

ARCH = {
    "embed_dim": 16,
    "init_logit_bias": -10,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "head_width": 8, "layers": 1},
    "text_cfg": {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1},
}


def model() -> GexiaModel:
    return GexiaModel(ARCH, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), heads=2)


def groups_by_name(model: nn.Module, config: OptimConfig) -> dict[str, dict]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p]: group for group in create_optimizer(model, config).param_groups for p in group["params"]}


def test_towers_have_their_own_rate_and_every_parameter_is_in_one_group():
    m, config = model(), OptimConfig(lr=1e-3, towers_lr=1e-5)
    groups = groups_by_name(m, config)
    assert groups.keys() == dict(m.named_parameters()).keys()
    for name, group in groups.items():
        assert group["lr"] == (1e-5 if "tower" in name else 1e-3), name


def test_norms_biases_scales_and_embeddings_are_not_decayed():
    groups = groups_by_name(model(), OptimConfig(weight_decay=0.3))
    free = {name for name, group in groups.items() if group["weight_decay"] == 0}
    assert {n for n in groups if n.endswith("bias") or "norm" in n or ".ln_" in n or "embed" in n} <= free
    assert {"logit_scale", "logit_bias", "video_iam.query_embedding"} <= free
    assert {"video_iam.to_key.weight", "image_tower.visual.proj", "text_tower.text.text_projection"} <= groups.keys() - free


def test_a_rate_of_zero_freezes_the_towers():
    m = model()
    names = groups_by_name(m, OptimConfig(towers_lr=0))
    assert not [name for name in names if "tower" in name]
    assert not any(p.requires_grad for p in m.image_tower.parameters())


def test_the_rate_warms_up_and_falls_to_zero_without_a_jump():
    shares = [lr_share(step, 10, 100) for step in range(101)]
    assert shares[0] == pytest.approx(0.1) and shares[9] == shares[10] == 1 and shares[100] == pytest.approx(0)
    assert all(a >= b for a, b in zip(shares[10:], shares[11:], strict=False))
    assert max(abs(a - b) for a, b in zip(shares, shares[1:], strict=False)) <= 0.1 + 1e-9


def test_set_lr_scales_every_group_from_its_peak():
    optimizer = create_optimizer(model(), OptimConfig(lr=1e-3, towers_lr=1e-5))
    for share in (0.5, 0.25):
        set_lr(optimizer, share)
    assert {group["lr"] for group in optimizer.param_groups} == {2.5e-4, 2.5e-6}


@pytest.mark.parametrize("warmup, steps", [(0, 1), (5, 5), (10, 3)])
def test_short_runs_have_a_positive_finite_rate(warmup, steps):
    assert all(0 < lr_share(step, warmup, steps) <= 1 for step in range(steps))


def test_frozen_parameters_stay():
    m = model()
    optimizer = create_optimizer(m, OptimConfig(towers_lr=0, lr=0.1))
    before = m.image_tower.visual.proj.clone()
    (m.logit_scale * 2 + m.image_tower.visual.proj.sum()).backward()
    optimizer.step()
    assert torch.equal(before, m.image_tower.visual.proj) and m.image_tower.visual.proj.grad is None


@pytest.mark.parametrize("timm", [False, True])
def test_a_fine_tuned_towers_rate_falls_with_every_layer(timm):
    vision = ARCH["vision_cfg"] | {"layers": 3}
    if timm:
        vision = {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "linear"}
    m = GexiaModel(ARCH | {"vision_cfg": vision}, (0.5,) * 3, (0.5,) * 3, heads=2)
    config = OptimConfig(lr=1.0, towers_lr=0.1, layer_decay=0.5)
    rates = {name: group["lr"] for name, group in groups_by_name(m, config).items()}
    image = {name: lr for name, lr in rates.items() if name.startswith("image_tower")}
    blocks = sorted({lr for name, lr in image.items() if "blocks." in name})
    count = len(blocks)
    assert blocks == pytest.approx([0.1 * 0.5 ** (count - i) for i in range(count)]) and count > 1
    after = ("ln_post", "visual.proj", "head", "trunk.norm", "fc_norm")
    assert {lr for name, lr in image.items() if any(part in name for part in after)} == {0.1}
    outside = {lr for name, lr in image.items() if "blocks." not in name and not any(part in name for part in after)}
    assert list(outside) == pytest.approx([0.1 * 0.5 ** (count + 1)])
    assert rates["text_tower.text.text_projection"] == 0.1 and rates["video_iam.to_key.weight"] == 1.0


def test_a_tower_from_scratch_has_the_new_modules_rate():
    m, config = model(), OptimConfig(lr=1.0, towers_lr=0.1)
    optimizer = create_optimizer(m, config, {"image_tower": "scratch", "text_tower": "finetune"})
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rates[id(p)] for p in m.image_tower.parameters()} == {1.0}
    assert {rates[id(p)] for p in m.text_tower.parameters()} == {0.1}


def test_the_average_of_weights_follows_the_plain_formula():
    m = nn.Linear(3, 2)
    average, expected = Average(m, 0.5), m.weight.detach().clone()
    for step in range(20):
        with torch.no_grad():
            m.weight.add_(torch.randn_like(m.weight))
        average.update(m, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * m.weight.detach()
    torch.testing.assert_close(average.model.weight, expected)
    assert not average.model.weight.requires_grad
