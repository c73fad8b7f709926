"""Checkpoints: whole or not there, the newest whole one counts, and a folder belongs to one run."""

import json
import shutil

import pytest
import torch
from torch import nn

from shards.errors import UserError
from trainer import checkpoint


def trained(seed: int, steps: int = 3):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    models = {"model": model}
    advance(models, optimizer, steps)
    return models, optimizer


def advance(models, optimizer, steps: int):
    model = models["model"]
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()


def test_a_loaded_run_goes_on_as_the_saved_one(tmp_path):
    model, optimizer = trained(0)
    path = checkpoint.save(tmp_path, 3, model, optimizer, keep=2)
    other_model, other_optimizer = trained(1)
    assert checkpoint.load(path, other_model, other_optimizer) == 3
    for m, o in ((model, optimizer), (other_model, other_optimizer)):
        torch.manual_seed(9)
        advance(m, o, 4)
    for mine, theirs in zip(model["model"].parameters(), other_model["model"].parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_rates_are_the_configs_not_the_checkpoints(tmp_path):
    path = checkpoint.save(tmp_path, 3, *trained(0), keep=2)
    model, optimizer = trained(1)
    optimizer.param_groups[0]["lr"] = 0.5
    checkpoint.load(path, model, optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_other_groups_of_the_same_parameters_go_on_with_their_state(tmp_path):
    """Rates and decays that are changed on resuming may part or join groups."""
    models, optimizer = trained(0)
    path = checkpoint.save(tmp_path, 3, models, optimizer, keep=2)
    other, _ = trained(1)
    first, last = other["model"][0], other["model"][2]
    grouped = torch.optim.AdamW([{"params": last.parameters(), "lr": 0.02}, {"params": first.parameters()}], lr=0.01)
    checkpoint.load(path, other, grouped)
    assert torch.equal(grouped.state[first.weight]["exp_avg"], optimizer.state[models["model"][0].weight]["exp_avg"])
    assert torch.equal(grouped.state[last.bias]["exp_avg_sq"], optimizer.state[models["model"][2].bias]["exp_avg_sq"])
    assert [group["lr"] for group in grouped.param_groups] == [0.02, 0.01]


def test_other_frozen_parameters_than_the_checkpoints_are_refused(tmp_path):
    path = checkpoint.save(tmp_path, 3, *trained(0), keep=2)
    model, _ = trained(1)
    with pytest.raises(UserError, match="optim"):
        checkpoint.load(path, model, torch.optim.AdamW(model["model"][0].parameters()))


def test_the_newest_are_kept_and_nothing_temporary_is_left(tmp_path):
    model, optimizer = trained(0)
    for step in (5, 10, 900, 1000):
        checkpoint.save(tmp_path, step, model, optimizer, keep=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000900", "step-00001000"]


@pytest.mark.parametrize("damage", ["no_marker", "truncated", "missing_file", "bad_marker"])
def test_a_checkpoint_that_is_not_whole_does_not_count(tmp_path, damage):
    model, optimizer = trained(0)
    good = checkpoint.save(tmp_path, 1, model, optimizer, keep=5)
    bad = checkpoint.save(tmp_path, 2, model, optimizer, keep=5)
    if damage == "no_marker":
        (bad / checkpoint.MARKER).unlink()
    elif damage == "truncated":
        (bad / "optimizer.pt").write_bytes((bad / "optimizer.pt").read_bytes()[:-1])
    elif damage == "missing_file":
        (bad / "model.safetensors").unlink()
    else:
        (bad / checkpoint.MARKER).write_text("{")
    assert checkpoint.newest(tmp_path) == good


def test_a_save_that_was_killed_is_ignored_and_done_again(tmp_path):
    model, optimizer = trained(0)
    left = tmp_path / "checkpoints" / ".tmp-step-00000007"
    shutil.copytree(checkpoint.save(tmp_path, 3, model, optimizer, keep=3), left)
    assert checkpoint.newest(tmp_path).name == "step-00000003"
    assert checkpoint.save(tmp_path, 7, model, optimizer, keep=3) == checkpoint.newest(tmp_path)
    assert not left.exists()


IDENTITY = {"seed": 0, "data": ["abc"], "streams": {"lv": {"batch": 4}}}


def test_an_unclaimed_folder_is_free_and_a_claimed_one_goes_on(tmp_path):
    assert checkpoint.claim(tmp_path / "new", IDENTITY, resume=True) is None
    checkpoint.make_folder(tmp_path / "new")
    checkpoint.write_identity(tmp_path / "new", IDENTITY)
    model, optimizer = trained(0)
    path = checkpoint.save(tmp_path / "new", 1, model, optimizer, keep=1)
    assert checkpoint.claim(tmp_path / "new", IDENTITY, resume=True) == path


@pytest.mark.parametrize(
    "key, other",
    [
        ("seed", IDENTITY | {"seed": 1}),
        ("data", IDENTITY | {"data": ["xyz"]}),
        ("streams.lv.batch", IDENTITY | {"streams": {"lv": {"batch": 8}}}),
        ("streams.it", IDENTITY | {"streams": {"lv": {"batch": 4}, "it": {"batch": 4}}}),
    ],
)
def test_another_run_in_the_folder_is_refused_by_the_key_that_differs(tmp_path, key, other):
    checkpoint.write_identity(tmp_path, IDENTITY)
    with pytest.raises(UserError, match=f"another {key};"):
        checkpoint.claim(tmp_path, other, resume=True)


def test_another_run_goes_on_where_that_is_allowed_and_says_what_changed(tmp_path):
    run = IDENTITY | {"model": {"width": 8}}
    checkpoint.write_identity(tmp_path, run)
    other = run | {"seed": 1, "streams": {"lv": {"batch": 8}}}
    path = checkpoint.save(tmp_path, 1, *trained(0), keep=1, digests=["abc"])
    assert json.loads((path / checkpoint.MARKER).read_text())["data"] == ["abc"]
    with pytest.raises(UserError, match="another seed, streams.lv.batch; .* go on with it by --allow_changed true"):
        checkpoint.claim(tmp_path, other, resume=True)
    said = []
    assert checkpoint.claim(tmp_path, other, resume=True, allow_changed=True, say=said.append) == path
    assert said == [f"{tmp_path} goes on with another seed, streams.lv.batch"]
    with pytest.raises(UserError, match="another model.width; choose another folder or set it back$"):
        checkpoint.claim(tmp_path, other | {"model": {"width": 9}}, resume=True, allow_changed=True)


def test_a_claimed_folder_without_resume_or_with_a_broken_claim_is_refused(tmp_path):
    checkpoint.write_identity(tmp_path, IDENTITY)
    with pytest.raises(UserError, match="holds this run already"):
        checkpoint.claim(tmp_path, IDENTITY, resume=False)
    (tmp_path / "run.json").write_text(json.dumps(IDENTITY)[:-3])
    with pytest.raises(UserError, match="run.json"):
        checkpoint.claim(tmp_path, IDENTITY, resume=True)


def test_a_run_that_starts_to_average_midway_is_refused(tmp_path):
    models, optimizer = trained(0)
    path = checkpoint.save(tmp_path, 3, models, optimizer, keep=2)
    with pytest.raises(UserError, match="ema_decay"):
        checkpoint.load(path, {**models, "average": models["model"]}, optimizer)
