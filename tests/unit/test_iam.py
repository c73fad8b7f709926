"""The IAM block: mean pooling at #iter 0, shared weights, and masks that hide."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.models.iam import IAM

DIM = 16


def trained_iam(**options) -> IAM:
    """An IAM whose zero-initialised layers have been moved away from zero."""
    torch.manual_seed(0)
    iam = IAM(DIM, heads=4, positions=12, **options).double()
    for parameter in iam.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return iam


def inputs(rows=3, units=5, tokens=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pooled = torch.randn(rows, units, DIM, generator=generator, dtype=torch.float64)
    dense = torch.randn(rows, units, tokens, DIM, generator=generator, dtype=torch.float64)
    unit_mask = torch.rand(rows, units, generator=generator) < 0.7
    unit_mask[:, 0] = True
    dense_mask = torch.rand(rows, units, tokens, generator=generator) < 0.7
    dense_mask[:, :, 0] = True
    return pooled, unit_mask, dense, dense_mask


def test_no_iterations_is_clip4clips_mean_pooling():
    iam, (pooled, mask, dense, dense_mask) = trained_iam(latents=3), inputs()
    expected = torch.stack(
        [F.normalize(F.normalize(row[keep], dim=-1).mean(0), dim=-1) for row, keep in zip(pooled, mask, strict=True)]
    )
    assert torch.equal(iam(pooled, mask, dense, dense_mask, 0), expected) or torch.allclose(
        iam(pooled, mask, dense, dense_mask, 0), expected, rtol=0, atol=1e-15
    )


@pytest.mark.parametrize("iterations", [1, 3])
def test_a_new_iam_starts_from_mean_pooling(iterations):
    iam, given_inputs = IAM(DIM, heads=4, latents=2).double(), inputs()
    torch.testing.assert_close(iam(*given_inputs, iterations), iam(*given_inputs, 0), rtol=0, atol=1e-12)


@given(extra_units=st.integers(0, 4), extra_tokens=st.integers(0, 4), iterations=st.integers(0, 4), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_padding_never_changes_a_result(extra_units, extra_tokens, iterations, seed):
    iam, (pooled, mask, dense, dense_mask) = trained_iam(latents=2), inputs(seed=seed)
    wide = F.pad(pooled, (0, 0, 0, extra_units), value=7.0)
    wide_dense = F.pad(dense, (0, 0, 0, extra_tokens, 0, extra_units), value=7.0)
    padded = iam(
        wide,
        F.pad(mask, (0, extra_units)),
        wide_dense,
        F.pad(dense_mask, (0, extra_tokens, 0, extra_units)),
        iterations,
    )
    torch.testing.assert_close(padded, iam(pooled, mask, dense, dense_mask, iterations), rtol=0, atol=1e-12)


@pytest.mark.parametrize("iterations", [0, 2])
def test_what_is_masked_is_not_seen(iterations):
    iam, (pooled, mask, dense, dense_mask) = trained_iam(), inputs()
    dense_mask &= mask[:, :, None]
    noise = torch.where(dense_mask[..., None], dense, 1e3)
    torch.testing.assert_close(
        iam(torch.where(mask[..., None], pooled, -1e3), mask, noise, dense_mask, iterations),
        iam(pooled, mask, dense, dense_mask, iterations),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize("iterations", [0, 1, 4])
def test_a_fully_masked_row_is_finite_and_so_are_all_gradients(iterations):
    iam, (pooled, mask, dense, dense_mask) = trained_iam(), inputs()
    mask[1] = False
    dense.requires_grad_()
    pooled.requires_grad_()
    result = iam(pooled, mask, dense, dense_mask, iterations)
    result[[0, 2]].sum().backward()
    assert result.isfinite().all()
    gradients = [pooled.grad, *(p.grad for p in iam.parameters() if p.grad is not None)]
    assert all(g.isfinite().all() for g in gradients)
    assert not pooled.grad[1].any()


def test_weights_do_not_depend_on_iterations_and_results_do():
    iam, given_inputs = trained_iam(latents=2), inputs()
    results = [iam(*given_inputs, n) for n in range(9)]
    for earlier, later in zip(results, results[1:], strict=False):
        assert (earlier - later).abs().max() > 1e-4
    assert all(torch.allclose(r.norm(dim=-1), torch.ones(3, dtype=torch.float64)) for r in results)


def test_order_of_the_frames_matters():
    iam, (pooled, mask, dense, dense_mask) = trained_iam(), inputs()
    mask[:], dense_mask[:] = True, True
    backwards = iam(pooled.flip(1), mask, dense.flip(1), dense_mask, 1)
    assert (backwards - iam(pooled, mask, dense, dense_mask, 1)).abs().max() > 1e-4


def test_from_the_second_step_on_every_weight_has_a_gradient_and_latents_part():
    torch.manual_seed(0)
    iam, given_inputs = IAM(DIM, heads=4, latents=3, positions=5).double(), inputs()
    goal = F.normalize(torch.randn(3, DIM, dtype=torch.float64), dim=-1)
    optimizer = torch.optim.AdamW(iam.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (-(iam(*given_inputs, 2) * goal).sum()).backward()
        optimizer.step()
    assert {name for name, p in iam.named_parameters() if p.grad is None or not p.grad.any()} == set()
    states = iam._attend(torch.ones(3, 3, DIM).double(), iam._keys_values(given_inputs[2]), given_inputs[3].flatten(1))
    assert (states[:, 0] - states[:, 1]).abs().max() > 1e-4


def test_units_beyond_the_positions_share_the_last_ones():
    """A long text must not end a run: which ones are the last does not matter, all count."""
    iam, (units, unit_mask, dense, dense_mask) = trained_iam(), inputs(units=15)
    unit_mask[:], dense_mask[:] = True, True
    order = [*range(11), 13, 11, 14, 12]  # of 12 positions
    first = iam(units, unit_mask, dense, dense_mask, 2)
    torch.testing.assert_close(iam(units[:, order], unit_mask, dense[:, order], dense_mask, 2), first)
    order = [10, *range(10), *range(11, 15)]
    assert (iam(units[:, order], unit_mask, dense[:, order], dense_mask, 2) - first).abs().max() > 1e-4
