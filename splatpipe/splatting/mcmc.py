"""Relocation and growth of 3DGS-MCMC (Kheradmand et al. 2024), as in gsplat's MCMCStrategy.

Written in torch for both devices: the sums are evaluated in float64, so that neither device depends
on gsplat's relocation kernel, which some toolchains compile into NaN (gsplat PR #953).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from splatpipe.splatting.adam import Adam
from splatpipe.splatting.model import Params

MAX_RATIO = 51  # gsplat's n_max: a Gaussian shares its mass with at most 50 others
_CHUNK = 1 << 17  # rows per pass; bounds the (rows, 51) float64 work array to 54 MB


@dataclass(frozen=True)
class Refinement:
    """What one refinement did; `dead` counts Gaussians at or below min_opacity before it."""

    dead: int
    relocated: int
    added: int


def relocated_values(
    opacities: torch.Tensor, scales: torch.Tensor, ratios: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Opacity (M,) and scales (M, 3) of each of `ratios` copies that together look like the original.

    Equation (9) of the paper, o' = 1 - (1 - o)^(1/n) and sigma' = sigma * o / D(n, o'), with its double
    sum collapsed by the hockey-stick identity: D = sum_{k=1..n} C(n, k) (-1)^(k-1) o'^k / sqrt(k).
    opacities in (0, 1), scales linear, ratios (M,) integers, clamped to [1, 51].
    """
    k = torch.arange(1, MAX_RATIO + 1, dtype=torch.float64, device=opacities.device)
    signs = 1 - 2 * ((k - 1) % 2)
    table = torch.tensor(
        [[math.comb(n, j) for j in range(1, MAX_RATIO + 1)] for n in range(MAX_RATIO + 1)],
        dtype=torch.float64,
        device=opacities.device,
    ) * (signs / k.sqrt())
    new_opacities, factors = [], []
    for start in range(0, len(opacities), _CHUNK):
        o = opacities[start : start + _CHUNK].double()
        n = ratios[start : start + _CHUNK].clamp(1, MAX_RATIO)
        o_new = -torch.expm1(torch.log1p(-o) / n)
        denominator = (table[n] * o_new[:, None] ** k).sum(1)
        new_opacities.append(o_new)
        factors.append(o / denominator)
    if not new_opacities:
        return opacities, scales
    return torch.cat(new_opacities).float(), (scales.double() * torch.cat(factors)[:, None]).float()


def refine(
    params: Params, optimizer: Adam, *, min_opacity: float, growth: float, max_cap: int, generator: torch.Generator
) -> Refinement:
    """Move dead Gaussians onto living ones and grow towards the cap; `params` is changed in place.

    The caller makes sure that at least one Gaussian is alive (opacity above min_opacity).
    """
    with torch.no_grad():
        opacities = torch.sigmoid(params["opacities"])
        alive = opacities > min_opacity
        dead = torch.nonzero(~alive)[:, 0]
        if len(dead):
            living = torch.nonzero(alive)[:, 0]
            hosts = living[_sample(opacities[living], len(dead), generator)]
            _split_hosts(params, optimizer, hosts, min_opacity)
            for value in params.values():
                value[dead] = value[hosts]
        before = len(params["means"])
        wanted = max(0, min(max_cap, math.ceil(growth * before)) - before)
        if wanted:
            hosts = _sample(torch.sigmoid(params["opacities"]), wanted, generator)
            _split_hosts(params, optimizer, hosts, min_opacity)
            for name in list(params):
                params[name] = torch.cat([params[name], params[name][hosts]])
            optimizer.append_zero_rows(wanted)
    return Refinement(dead=len(dead), relocated=len(dead), added=wanted)


def _sample(weights: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """`count` row indices with replacement, probability proportional to `weights`.

    By inversion of the cumulative sum: torch.multinomial stops at 2^24 categories.
    """
    cumulative = torch.cumsum(weights.double(), 0)
    draws = torch.rand(count, dtype=torch.float64, generator=generator).to(weights.device) * cumulative[-1]
    return torch.searchsorted(cumulative, draws, right=True).clamp_max(len(weights) - 1)


def _split_hosts(params: Params, optimizer: Adam, hosts: torch.Tensor, min_opacity: float) -> None:
    """Share each host's mass with the copies about to be made of it and forget its moments."""
    counts = torch.bincount(hosts, minlength=len(params["means"]))
    unique = torch.nonzero(counts)[:, 0]
    opacities, scales = relocated_values(
        torch.sigmoid(params["opacities"][unique]), torch.exp(params["scales"][unique]), counts[unique] + 1
    )
    opacities = opacities.clamp(min_opacity, 1 - torch.finfo(torch.float32).eps)
    params["opacities"][unique] = torch.logit(opacities)
    params["scales"][unique] = torch.log(scales)
    optimizer.zero_rows(unique)
