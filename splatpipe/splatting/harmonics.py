"""View-dependent colour in plain torch, differentiable in direction and coefficients.

The same as the rasterisers' own (raster/harmonics.py; P.-P. Sloan, "Efficient Spherical Harmonic Evaluation", 2013),
for callers whose directions are not those from the rasteriser's camera.
"""

from __future__ import annotations

import torch


def sh_colors(directions: torch.Tensor, sh0: torch.Tensor, shN: torch.Tensor, degree: int) -> torch.Tensor:
    """(N, 3) colours, not below 0, at `directions` (N, 3) of any length, of the first `degree` bands (0 to 3).

    sh0 (N, 1, 3), shN (N, K - 1, 3).
    """
    colors = 0.28209479177387814 * sh0[:, 0] + 0.5
    if degree:
        basis = sh_basis(torch.nn.functional.normalize(directions, dim=1), degree)
        colors = colors + (basis[:, :, None] * shN[:, : basis.shape[1]]).sum(1)
    return colors.clamp_min(0)


def sh_basis(directions: torch.Tensor, degree: int) -> torch.Tensor:
    """(N, (degree + 1)^2 - 1) values of all but the constant function at unit directions (N, 3)."""
    x, y, z = directions.unbind(1)
    found = [-0.48860251190292 * y, 0.48860251190292 * z, -0.48860251190292 * x]
    if degree > 1:
        cos2, sin2, zz = x * x - y * y, 2 * x * y, z * z
        found += [
            0.5462742152960395 * sin2,
            -1.092548430592079 * y * z,
            0.9461746957575601 * zz - 0.3153915652525201,
            -1.092548430592079 * x * z,
            0.5462742152960395 * cos2,
        ]
        if degree > 2:
            ring = 0.4570457994644658 - 2.285228997322329 * zz
            found += [
                -0.5900435899266435 * (x * sin2 + y * cos2),
                1.445305721320277 * z * sin2,
                ring * y,
                z * (1.865881662950577 * zz - 1.119528997770346),
                ring * x,
                1.445305721320277 * z * cos2,
                -0.5900435899266435 * (x * cos2 - y * sin2),
            ]
    return torch.stack(found, 1)
