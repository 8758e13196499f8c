"""The Gaussians' parameters, raw as they are trained: log-scales, logit opacities, SH coefficients."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from splatpipe.splatting.ply import Splats
from splatpipe.splatting.spacing import initial_scales_gsplat

SH_C0 = 0.28209479177387814  # Y_0^0 = 1 / (2 sqrt(pi)); colour = 0.5 + SH_C0 * sh0

Params = dict[str, torch.Tensor]
"""means (N, 3), quats (N, 4) wxyz, scales (N, 3) log, opacities (N,) logit, sh0 (N, 1, 3), shN (N, K-1, 3)."""


def initial_params(
    points: NDArray[np.floating],
    colors: NDArray[np.uint8],
    *,
    init_scaling: float,
    init_opacity: float,
    sh_degree: int,
    max_cap: int,
    seed: int,
    device: str | torch.device,
) -> Params:
    """Gaussians at the points, sized init_scaling x nearest-neighbour distance (gsplat's simple_trainer).

    points (P, 3) in training coordinates, colors (P, 3) RGB. With more points than `max_cap`, a seeded
    random subset of `max_cap` is taken, so that the cap bounds memory from the first step.
    """
    rng = np.random.default_rng(seed)
    if len(points) > max_cap:
        chosen = np.sort(rng.choice(len(points), max_cap, replace=False))
        points, colors = points[chosen], colors[chosen]
    n = len(points)
    sigma = initial_scales_gsplat(points, init_scaling)
    quats = rng.random((n, 4))
    values = {
        "means": np.asarray(points),
        "quats": quats / np.linalg.norm(quats, axis=1, keepdims=True),
        "scales": np.log(np.repeat(sigma[:, None], 3, axis=1)),
        "opacities": np.full(n, np.log(init_opacity / (1 - init_opacity))),
        "sh0": ((np.asarray(colors, np.float64) / 255 - 0.5) / SH_C0)[:, None, :],
        "shN": np.zeros((n, (sh_degree + 1) ** 2 - 1, 3)),
    }
    return {name: torch.tensor(value, dtype=torch.float32, device=device) for name, value in values.items()}


def to_splats(params: Params) -> Splats:
    """The parameters as NumPy arrays on the host, quaternions normalised."""
    host = {name: value.detach().cpu().numpy() for name, value in params.items()}
    norms = np.linalg.norm(host["quats"], axis=1, keepdims=True)
    host["quats"] = host["quats"] / np.maximum(norms, 1e-12)
    return Splats(**host)
