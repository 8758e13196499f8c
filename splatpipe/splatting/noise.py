"""The exploration noise of 3DGS-MCMC: every step, Gaussians that are nearly transparent wander.

As gsplat 1.5.3 `inject_noise_to_position`: displacement = covariance (gate strength n), with n standard
normal and gate = sigmoid(-100 (opacity - 0.005)). On the CPU the normals are a function of (seed, step, row)
alone: the same on every machine, for any number of threads, and after a resume.
"""

# Numba types the kernels, not mypy.
# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math

import numpy as np
import torch

from splatpipe.splatting.raster import pool
from splatpipe.splatting.raster.compile import kernel
from splatpipe.splatting.raster.lanes import exp2, gather, larger, mask_bits, smaller

_GATE_SLOPE, _GATE_AT = 100.0, 0.005
_LARGEST_DRAW = 7.0  # the length of three normals made from 32-bit uniforms practically never exceeds it
_RESOLUTION = 2.0**-25  # half the spacing of float32 relative to the value, at most
_LOG2E = 1.4426950408889634
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
def _movable(first, last, means, log_scales, logits, log2_strength):
    """Which of eight Gaussians the noise could move at all, as bits.

    An upper bound: the gate is below exp(-100 (opacity - 0.005)), and no draw is longer than 7.
    """
    opacity = 1.0 / (1.0 + exp2(smaller(-_LOG2E * gather(logits, first, last, 1, 0), 120.0)))
    largest = gather(log_scales, first, last, 3, 0)
    largest = larger(larger(largest, gather(log_scales, first, last, 3, 1)), gather(log_scales, first, last, 3, 2))
    gate = smaller(_LOG2E * _GATE_SLOPE * (_GATE_AT - opacity), 0.0)
    reach = exp2(smaller(gate + 2.0 * _LOG2E * largest + log2_strength, 120.0))
    x, y, z = gather(means, first, last, 3, 0), gather(means, first, last, 3, 1), gather(means, first, last, 3, 2)
    size = larger(larger(larger(x, -x), larger(y, -y)), larger(z, -z))
    return mask_bits(reach >= _RESOLUTION * size)


@kernel
def _move(row, means, quats, log_scales, logits, strength, seed, step):
    """Displace one mean, in float64."""
    opacity = 1.0 / (1.0 + math.exp(-np.float64(logits[row])))
    gate = strength / (1.0 + math.exp(_GATE_SLOPE * (opacity - _GATE_AT)))
    w, x, y, z = (
        np.float64(quats[4 * row]),
        np.float64(quats[4 * row + 1]),
        np.float64(quats[4 * row + 2]),
        np.float64(quats[4 * row + 3]),
    )
    n = 1.0 / math.sqrt(w * w + x * x + y * y + z * z)
    w, x, y, z = w * n, x * n, y * n, z * n
    r00, r01, r02 = 1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)
    r10, r11, r12 = 2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)
    r20, r21, r22 = 2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)
    n0, n1, n2 = _normals(row, step, seed)
    along0 = (r00 * n0 + r10 * n1 + r20 * n2) * gate * math.exp(2.0 * np.float64(log_scales[3 * row]))
    along1 = (r01 * n0 + r11 * n1 + r21 * n2) * gate * math.exp(2.0 * np.float64(log_scales[3 * row + 1]))
    along2 = (r02 * n0 + r12 * n1 + r22 * n2) * gate * math.exp(2.0 * np.float64(log_scales[3 * row + 2]))
    means[3 * row] += r00 * along0 + r01 * along1 + r02 * along2
    means[3 * row + 1] += r10 * along0 + r11 * along1 + r12 * along2
    means[3 * row + 2] += r20 * along0 + r21 * along1 + r22 * along2


@kernel
def _wander(start, stop, means, quats, log_scales, logits, strength, seed, step):
    if not strength > 0:
        return
    last = logits.size - 1
    log2_strength = np.float32(math.log2(strength * _LARGEST_DRAW))
    for first in range(start, stop, 8):
        bits = _movable(first, last, means, log_scales, logits, log2_strength)
        for lane in range(min(8, stop - first)):
            if (bits >> lane) & 1:
                _move(first + lane, means, quats, log_scales, logits, strength, seed, step)


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
