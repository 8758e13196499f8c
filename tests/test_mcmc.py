"""Relocation keeps what is seen, growth respects the cap."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splatpipe.splatting.adam import Adam
from splatpipe.splatting.mcmc import MAX_RATIO, refine, relocated_values
from splatpipe.splatting.model import initial_params


def paper_values(opacity: float, scale: float, n: int) -> tuple[float, float]:
    """Equation (9) of 3DGS-MCMC, term by term as it is printed."""
    new = 1 - (1 - opacity) ** (1 / n)
    total = math.fsum(
        math.comb(i - 1, k) * (-1) ** k * new ** (k + 1) / math.sqrt(k + 1) for i in range(1, n + 1) for k in range(i)
    )
    return new, scale * opacity / total


@given(opacity=st.floats(0.006, 0.995), scale=st.floats(1e-4, 10), n=st.integers(1, MAX_RATIO))
@settings(max_examples=100, deadline=None)
def test_relocated_values_are_those_of_the_paper(opacity: float, scale: float, n: int) -> None:
    o, s = relocated_values(torch.tensor([opacity]), torch.full((1, 3), scale), torch.tensor([n]))
    expected_o, expected_s = paper_values(float(np.float32(opacity)), float(np.float32(scale)), n)
    assert float(o[0]) == pytest.approx(expected_o, rel=1e-5)
    assert s[0].tolist() == pytest.approx([expected_s] * 3, rel=1e-4)


def test_values_stay_finite_for_the_most_opaque_and_most_shared_gaussian() -> None:
    o, s = relocated_values(torch.tensor([1 - 1e-7]), torch.ones(1, 3), torch.tensor([1000]))
    assert 0 < float(o[0]) < 1
    assert torch.isfinite(s).all()
    assert (s > 0).all()


def gaussians(n: int, max_cap: int = 10_000) -> tuple[dict[str, torch.Tensor], Adam]:
    rng = np.random.default_rng(0)
    params = initial_params(
        rng.normal(size=(n, 3)),
        rng.integers(0, 255, (n, 3), dtype=np.uint8),
        init_scaling=0.1,
        init_opacity=0.5,
        sh_degree=1,
        max_cap=max_cap,
        seed=1,
        device="cpu",
    )
    return params, Adam(params, dict.fromkeys(params, 1e-3))


def refined(params: dict[str, torch.Tensor], optimizer: Adam, max_cap: int) -> tuple[int, int]:
    done = refine(
        params, optimizer, min_opacity=0.005, growth=1.05, max_cap=max_cap, generator=torch.Generator().manual_seed(3)
    )
    return done.relocated, done.added


def test_dead_gaussians_move_onto_living_ones_and_share_their_opacity() -> None:
    params, optimizer = gaussians(200)
    params["opacities"][:50] = torch.logit(torch.tensor(0.001))
    living = {tuple(row) for row in params["means"][50:].tolist()}
    assert refined(params, optimizer, max_cap=200) == (50, 0)
    assert all(tuple(row) in living for row in params["means"][:50].tolist())
    assert (torch.sigmoid(params["opacities"]) > 0.005).all()


def test_the_transmittance_through_a_host_and_its_copies_is_that_of_the_host() -> None:
    params, optimizer = gaussians(100)
    params["opacities"][:40] = torch.logit(torch.tensor(0.001))
    refined(params, optimizer, max_cap=100)
    means = params["means"].numpy()
    opacities = torch.sigmoid(params["opacities"]).double().numpy()
    for row in np.unique(means, axis=0):
        together = 1 - np.prod(1 - opacities[(means == row).all(1)])
        assert together == pytest.approx(0.5, abs=1e-5)


def test_hosts_forget_their_moments_and_bystanders_keep_theirs() -> None:
    params, optimizer = gaussians(100)
    for state in optimizer.state.values():
        state["exp_avg"].fill_(1.0)
        state["exp_avg_sq"].fill_(1.0)
    params["opacities"][:10] = torch.logit(torch.tensor(0.001))
    before = params["opacities"].clone()
    refined(params, optimizer, max_cap=100)
    hosts = torch.nonzero(params["opacities"][10:] != before[10:])[:, 0] + 10
    others = torch.tensor([i for i in range(10, 100) if i not in set(hosts.tolist())])
    moments = optimizer.state["means"]["exp_avg_sq"]
    assert len(hosts) > 0
    assert (moments[hosts] == 0).all()
    assert (moments[others] == 1).all()


@given(n=st.integers(2, 300), cap=st.integers(2, 400))
@settings(max_examples=40, deadline=None)
def test_growth_is_five_per_cent_and_never_beyond_the_cap(n: int, cap: int) -> None:
    params, optimizer = gaussians(n, max_cap=cap)
    start = len(params["means"])
    assert start == min(n, cap)
    refined(params, optimizer, cap)
    grown = len(params["means"])
    assert grown == min(cap, math.ceil(1.05 * start))
    assert all(len(value) == grown for value in params.values())
    assert all(len(m) == grown for state in optimizer.state.values() for m in state.values())


def test_the_same_seed_refines_alike() -> None:
    results = []
    for _ in range(2):
        params, optimizer = gaussians(150)
        params["opacities"][::3] = -8.0
        refined(params, optimizer, max_cap=160)
        results.append(params)
    for name in results[0]:
        assert torch.equal(results[0][name], results[1][name])
