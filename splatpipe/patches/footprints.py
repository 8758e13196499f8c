"""Which initial Gaussians each camera would see, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NEAR = 0.01  # training units; trainers cull Gaussians nearer to the camera
SIGMAS = 3.0  # a Gaussian's footprint reaches this many standard deviations
BLUR = 0.3  # px^2 that trainers add to the projected variance


def needed_scaling(
    means: NDArray[np.floating],
    unit_scales: NDArray[np.floating],
    viewmat: NDArray[np.floating],
    K: NDArray[np.floating],
    size: NDArray[np.integer],
) -> NDArray[np.float32]:
    """(N,) the smallest `init_scaling` at which each Gaussian's footprint touches the image; inf for never.

    `unit_scales` are the initial sigmas at init_scaling 1. The footprint is mean2d +- 3 sigma_px with
    sigma_px^2 = (f sigma / z)^2 + 0.3 on each axis (trainers.md, A12).
    """
    local = means.astype(np.float32) @ viewmat[:3, :3].T.astype(np.float32) + viewmat[:3, 3].astype(np.float32)
    depth = local[:, 2]
    needed = np.zeros(len(means), np.float32)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for axis in (0, 1):
            focal = np.float32(K[axis, axis])
            pixel = local[:, axis] / depth * focal + np.float32(K[axis, 2])
            outside = np.maximum(np.maximum(-pixel, pixel - np.float32(size[axis])), 0) / np.float32(SIGMAS)
            sigma_px = np.sqrt(np.maximum(outside * outside - np.float32(BLUR), 0))
            np.maximum(needed, sigma_px * depth / (focal * unit_scales.astype(np.float32)), out=needed)
    needed[~(depth > NEAR) | np.isnan(needed)] = np.inf
    return needed


def visible_counts(
    means: NDArray[np.floating],
    unit_scales: NDArray[np.floating],
    viewmats: NDArray[np.floating],
    Ks: NDArray[np.floating],
    sizes: NDArray[np.integer],
    rungs: Sequence[float],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Initial Gaussians seen, (rungs, C), and the share of cameras that see each at the first rung, (N,).

    All arguments in training coordinates: (N, 3), (N,), (C, 4, 4), (C, 3, 3), (C, 2).
    """
    counts = np.zeros((len(rungs), len(viewmats)), np.int64)
    seen_by = np.zeros(len(means), np.int64)
    for camera in range(len(viewmats)):
        needed = needed_scaling(means, unit_scales, viewmats[camera], Ks[camera], sizes[camera])
        for i, rung in enumerate(rungs):
            counts[i, camera] = int((needed <= np.float32(rung)).sum())
        seen_by += needed <= np.float32(rungs[0])
    return counts, seen_by / max(len(viewmats), 1)
