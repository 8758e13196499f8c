"""The exploration noise of 3DGS-MCMC: every step, Gaussians that are nearly transparent wander.

As gsplat 1.5.3 `inject_noise_to_position`: displacement = covariance (gate strength n), with n standard
normal and gate = sigmoid(-100 (opacity - 0.005)). On the CPU the normals are a function of (seed, step, row)
alone: the same on every machine, for any number of threads, and after a resume.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from splatpipe.splatting.raster import pool
from splatpipe.splatting.raster.compile import kernel

_GATE_SLOPE, _GATE_AT = 100.0, 0.005
_LARGEST_DRAW = 7.0  # the length of three normals made from 32-bit uniforms practically never exceeds it
_RESOLUTION = 2.0**-25  # half the spacing of float32 relative to the value, at most
_MASK = np.uint64(0xFFFFFFFF)


@kernel
def _philox(counter, step, seed):
    """Four 32-bit random words from 64-bit counter, step and seed: Philox4x32-10 (Salmon et al., 2011)."""
    c0, c1 = counter & _MASK, counter >> np.uint64(32)
    c2, c3 = step & _MASK, step >> np.uint64(32)
    k0, k1 = seed & _MASK, seed >> np.uint64(32)
    for _ in range(10):
        p0 = c0 * np.uint64(0xD2511F53)
        p1 = c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (p1 >> np.uint64(32)) ^ c1 ^ k0, p1 & _MASK, (p0 >> np.uint64(32)) ^ c3 ^ k1, p0 & _MASK
        k0 = (k0 + np.uint64(0x9E3779B9)) & _MASK
        k1 = (k1 + np.uint64(0xBB67AE85)) & _MASK
    return c0, c1, c2, c3


@kernel
def _normals(row, step, seed):
    """Three independent standard normals, by Box and Muller."""
    a, b, c, d = _philox(np.uint64(row), np.uint64(step), np.uint64(seed))
    scale = 2.0**-32
    r0 = math.sqrt(-2.0 * math.log((np.float64(a) + 0.5) * scale))
    r1 = math.sqrt(-2.0 * math.log((np.float64(c) + 0.5) * scale))
    t0, t1 = 2.0 * math.pi * np.float64(b) * scale, 2.0 * math.pi * np.float64(d) * scale
    return r0 * math.cos(t0), r0 * math.sin(t0), r1 * math.cos(t1)


@kernel
def _wander(start, stop, means, quats, log_scales, logits, strength, seed, step):
    for row in range(start, stop):
        # sigmoid(logit) - 0.005 without the exponential where the gate is shut for certain
        opacity = 1.0 / (1.0 + math.exp(-np.float64(logits[row])))
        gate = 1.0 / (1.0 + math.exp(_GATE_SLOPE * (opacity - _GATE_AT)))
        s0, s1, s2 = log_scales[3 * row], log_scales[3 * row + 1], log_scales[3 * row + 2]
        x, y, z = means[3 * row], means[3 * row + 1], means[3 * row + 2]
        reach = gate * strength * math.exp(2.0 * np.float64(max(s0, s1, s2))) * _LARGEST_DRAW
        if reach < _RESOLUTION * max(abs(x), abs(y), abs(z)):
            continue  # would not move the mean; true of most Gaussians at most times
        qw, qx, qy, qz = quats[4 * row], quats[4 * row + 1], quats[4 * row + 2], quats[4 * row + 3]
        n = 1.0 / math.sqrt(np.float64(qw * qw + qx * qx + qy * qy + qz * qz))
        w, i, j, k = qw * n, qx * n, qy * n, qz * n
        r00, r01, r02 = 1 - 2 * (j * j + k * k), 2 * (i * j - w * k), 2 * (i * k + w * j)
        r10, r11, r12 = 2 * (i * j + w * k), 1 - 2 * (i * i + k * k), 2 * (j * k - w * i)
        r20, r21, r22 = 2 * (i * k - w * j), 2 * (j * k + w * i), 1 - 2 * (i * i + j * j)
        n0, n1, n2 = _normals(row, step, seed)
        along0 = (r00 * n0 + r10 * n1 + r20 * n2) * math.exp(2.0 * np.float64(s0)) * gate * strength
        along1 = (r01 * n0 + r11 * n1 + r21 * n2) * math.exp(2.0 * np.float64(s1)) * gate * strength
        along2 = (r02 * n0 + r12 * n1 + r22 * n2) * math.exp(2.0 * np.float64(s2)) * gate * strength
        means[3 * row] = np.float32(x + r00 * along0 + r01 * along1 + r02 * along2)
        means[3 * row + 1] = np.float32(y + r10 * along0 + r11 * along1 + r12 * along2)
        means[3 * row + 2] = np.float32(z + r20 * along0 + r21 * along1 + r22 * along2)


@torch.no_grad()
def add_noise_(
    means: torch.Tensor,  # (N, 3), changed in place
    quats: torch.Tensor,  # (N, 4) wxyz, any length
    scales_log: torch.Tensor,  # (N, 3)
    opacities_logit: torch.Tensor,  # (N,)
    lr: float,
    seed: int,
    step: int,
) -> None:
    """Move each mean by its covariance times gate(opacity) * lr * normals(seed, step, row).

    `lr` is gsplat's scaler: the means' present learning rate times noise_lr. On the CPU a Gaussian whose
    displacement could not change its mean in float32 is left alone. Raises ValueError for a tensor that is
    not contiguous float32 of the right shape.
    """
    shapes = {"means": (3,), "quats": (4,), "scales_log": (3,), "opacities_logit": ()}
    for (name, shape), tensor in zip(shapes.items(), (means, quats, scales_log, opacities_logit), strict=True):
        if tensor.shape != (len(means), *shape) or tensor.dtype != torch.float32 or not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous float32 of shape {(len(means), *shape)}")
    if means.device.type != "cpu":
        _add_noise_torch(means, quats, scales_log, opacities_logit, lr, seed, step)
        return
    flat = [t.detach().numpy().reshape(-1) for t in (means, quats, scales_log, opacities_logit)]
    ranges = pool.spans(len(means), max(1, len(means) // 8192)) if len(means) else []
    pool.run(lambda chunk: _wander(*ranges[chunk], *flat, float(lr), seed, step), len(ranges))


def _add_noise_torch(
    means: torch.Tensor,
    quats: torch.Tensor,
    scales_log: torch.Tensor,
    opacities_logit: torch.Tensor,
    lr: float,
    seed: int,
    step: int,
) -> None:
    """The same on another device, with that device's own generator seeded from (seed, step)."""
    mixed = int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0] >> np.uint64(1))
    generator = torch.Generator(device=means.device).manual_seed(mixed)
    normals = torch.randn(means.shape, generator=generator, device=means.device)
    gate = torch.sigmoid(-_GATE_SLOPE * (torch.sigmoid(opacities_logit) - _GATE_AT))
    w, x, y, z = torch.nn.functional.normalize(quats, dim=1).unbind(1)
    rotation = torch.stack(
        [
            1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
        ],
        1,
    ).view(-1, 3, 3)  # fmt: skip
    along = torch.einsum("nji,nj->ni", rotation, normals) * torch.exp(2 * scales_log)
    means += torch.einsum("nij,nj->ni", rotation, along) * (gate * lr)[:, None]
