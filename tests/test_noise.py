"""The MCMC noise: its statistics, its gate, and that it can be repeated."""

from __future__ import annotations

import pytest
import torch
from raster_reference import rotation
from thread_counts import thread_counts

from splatpipe.splatting.noise import _add_noise_torch, add_noise_

SEED = 7


def gaussians(n: int, opacity: float, scales: tuple[float, float, float] = (0.3, 0.1, 0.02)):
    """n equal Gaussians around the origin: means, quats, log scales, logits."""
    quats = torch.tensor([0.9, 0.3, -0.5, 0.2]).repeat(n, 1)
    logit = torch.logit(torch.tensor(opacity)).item()
    return torch.zeros(n, 3), quats, torch.tensor(scales).log().repeat(n, 1), torch.full((n,), logit)


@pytest.mark.parametrize("add", [add_noise_, _add_noise_torch])
def test_displacement_is_the_covariance_times_a_standard_normal(add):
    values = gaussians(200_000, 0.005)  # the gate is one half here
    add(*values, 4.0, SEED, 3)
    moved = values[0].double()
    R = rotation(values[1][:1].double())[0]
    covariance = R @ torch.diag(torch.tensor([0.3, 0.1, 0.02]).double() ** 2) @ R.T
    expected = (0.5 * 4.0) ** 2 * covariance @ covariance
    scale = expected.max().item()
    assert moved.mean(0).abs().max() < 5 * (scale / len(moved)) ** 0.5
    torch.testing.assert_close(moved.T @ moved / len(moved), expected, rtol=0, atol=0.02 * scale)


def test_coordinates_are_normal():
    values = gaussians(100_000, 0.005, (1.0, 1.0, 1.0))
    add_noise_(*values, 2.0, SEED, 0)  # gate one half times two: standard normals
    below = [(values[0] < z).double().mean().item() for z in (-2.0, -1.0, 0.0, 1.0, 2.0)]
    assert below == pytest.approx([0.02275, 0.15866, 0.5, 0.84134, 0.97725], abs=0.003)


@pytest.mark.parametrize("opacity", [0.001, 0.02, 0.05, 0.1])
def test_gate_shuts_as_opacity_grows(opacity):
    faint, half = gaussians(20_000, opacity), gaussians(20_000, 0.005)
    add_noise_(*faint, 1.0, SEED, 1)
    add_noise_(*half, 1.0, SEED, 1)
    gate = 1 / (1 + torch.exp(torch.tensor(100 * (opacity - 0.005)))).item()
    torch.testing.assert_close(faint[0], half[0] * gate / 0.5, rtol=1e-3, atol=1e-9)


def test_gaussian_that_could_not_move_stays_to_the_last_bit():
    values = gaussians(1000, 0.9)
    values[0][:] = 5.0
    add_noise_(*values, 80.0, SEED, 0)
    assert (values[0] == 5.0).all()


def test_noise_depends_on_seed_step_and_row_only():
    results = []
    for _ in thread_counts(1, 2, 3):
        values = gaussians(40_000, 0.003)
        add_noise_(*values, 1.0, SEED, 12)
        results.append(values[0])
    assert all(torch.equal(result, results[0]) for result in results)
    fewer = gaussians(100, 0.003)
    add_noise_(*fewer, 1.0, SEED, 12)
    assert torch.equal(fewer[0], results[0][:100])
    for seed, step in ((SEED, 13), (SEED + 1, 12)):
        other = gaussians(100, 0.003)
        add_noise_(*other, 1.0, seed, step)
        assert not (other[0] == fewer[0]).any()


def test_wrong_shape_is_named():
    means, quats, scales, logits = gaussians(4, 0.5)
    with pytest.raises(ValueError, match="opacities_logit must be contiguous float32 of shape"):
        add_noise_(means, quats, scales, logits[:, None], 1.0, 0, 0)
