"""A slow and plain rasteriser in float64: every pixel looks at every Gaussian, torch differentiates.

Written from gsplat's definitions, not from our kernels; the tests compare the two.
"""

from __future__ import annotations

import math

import torch


def rotation(quats: torch.Tensor) -> torch.Tensor:
    """(N, 4) wxyz of any length to (N, 3, 3)."""
    w, x, y, z = (quats / quats.norm(dim=1, keepdim=True)).unbind(1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], 1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], 1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], 1),
    ]
    return torch.stack(rows, 1)


def harmonics(degree: int, d: torch.Tensor) -> torch.Tensor:
    """Real SH bases (N, (degree + 1)^2) at unit directions, from their textbook Cartesian form."""
    x, y, z = d.unbind(1)
    one = torch.ones_like(x)
    c1 = math.sqrt(3 / (4 * math.pi))
    c2 = math.sqrt(15 / (4 * math.pi))
    bases = [math.sqrt(1 / (4 * math.pi)) * one, -c1 * y, c1 * z, -c1 * x]
    bases += [c2 * x * y, -c2 * y * z, math.sqrt(5 / (16 * math.pi)) * (3 * z * z - 1), -c2 * x * z]
    bases += [c2 / 2 * (x * x - y * y)]
    c33, c31 = math.sqrt(35 / (32 * math.pi)), math.sqrt(21 / (32 * math.pi))
    bases += [-c33 * y * (3 * x * x - y * y), math.sqrt(105 / (4 * math.pi)) * x * y * z]
    bases += [-c31 * y * (5 * z * z - 1), math.sqrt(7 / (16 * math.pi)) * z * (5 * z * z - 3)]
    bases += [-c31 * x * (5 * z * z - 1), math.sqrt(105 / (16 * math.pi)) * z * (x * x - y * y)]
    bases += [-c33 * x * (x * x - 3 * y * y)]
    return torch.stack(bases[: (degree + 1) ** 2], 1)


def _colours(means, colors, viewmat, sh_degree):
    if sh_degree is None:
        return colors
    centre = -viewmat[:3, :3].T @ viewmat[:3, 3]
    away = means - centre
    bases = harmonics(sh_degree, away / away.norm(dim=1, keepdim=True))
    shades = (bases[:, :, None] * colors[:, : bases.shape[1]]).sum(1)
    return (shades + 0.5).clamp_min(0)


def _covariance(cam, scales, quats, viewmat, K, width, height):
    x, y, z = cam.unbind(1)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    mx, my = 0.15 * width / fx, 0.15 * height / fy
    tx = z * (x / z).clamp(-(cx / fx + mx), (width - cx) / fx + mx)
    ty = z * (y / z).clamp(-(cy / fy + my), (height - cy) / fy + my)
    zero = torch.zeros_like(z)
    J = torch.stack(
        [torch.stack([fx / z, zero, -fx * tx / z**2], 1), torch.stack([zero, fy / z, -fy * ty / z**2], 1)], 1
    )
    M = J @ viewmat[:3, :3] @ rotation(quats) * scales[:, None]
    return M @ M.transpose(1, 2)


def render(
    means, quats, scales, opacities, colors, viewmat, K, width, height, *,
    near_plane=0.01, far_plane=1e10, eps2d=0.3, sh_degree=None, background=None, antialiased=False,
):  # fmt: skip
    """One camera's image (H, W, 3) and alpha (H, W); all tensors float64."""
    cam = means @ viewmat[:3, :3].T + viewmat[:3, 3]
    keep = (cam[:, 2] >= near_plane) & (cam[:, 2] <= far_plane)
    keep = torch.nonzero(keep)[:, 0]
    keep = keep[torch.argsort(cam[keep, 2], stable=True)]
    shades = _colours(means[keep], colors[keep], viewmat, sh_degree)
    cam = cam[keep]
    sharp = _covariance(cam, scales[keep], quats[keep], viewmat, K, width, height)
    cov = sharp + eps2d * torch.eye(2, dtype=sharp.dtype)
    conic = torch.linalg.inv(cov)
    opacity = opacities[keep]
    if antialiased:
        opacity = opacity * (torch.linalg.det(sharp) / torch.linalg.det(cov)).clamp_min(0).sqrt()
    centre = torch.stack([K[0, 0] * cam[:, 0] / cam[:, 2] + K[0, 2], K[1, 1] * cam[:, 1] / cam[:, 2] + K[1, 2]], 1)
    ys, xs = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixels = torch.stack([xs, ys], -1).to(means.dtype)
    image = torch.zeros(height, width, 3, dtype=means.dtype)
    light = torch.ones(height, width, dtype=means.dtype)
    stopped = torch.zeros(height, width, dtype=torch.bool)
    for g in range(len(keep)):
        d = centre[g] - pixels
        sigma = 0.5 * torch.einsum("hwi,ij,hwj->hw", d, conic[g], d)
        alpha = (opacity[g] * torch.exp(-sigma)).clamp_max(0.999)
        hit = (alpha >= 1 / 255) & ~stopped
        after = light * (1 - alpha)
        stopped = stopped | (hit & (after <= 1e-4))
        hit = hit & (after > 1e-4)
        image = image + torch.where(hit, alpha * light, 0.0)[..., None] * shades[g]
        light = torch.where(hit, after, light)
    if background is not None:
        image = image + light[..., None] * background
    return image, 1 - light
