"""How much of a Gaussian's mass lies in a core, whatever its outline."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from splatpipe.merge.rows import QUATS, SCALES, Rows
from splatpipe.patches.box import Box
from splatpipe.patches.region import Region
from splatpipe.patches.union import Union

PLACES = 128  # at which a Gaussian is looked up in an outline, each standing for an equal part of its mass
BLOCK = 4096  # Gaussians looked up at a time
GOLDEN_ANGLE = np.pi * (3 - np.sqrt(5))


def scaled_axes(rows: Rows, rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 3, 3) own axes as columns, as long as their standard deviations, in a frame given as rows (3, 3).

    A quaternion of zeros turns nothing, and no standard deviation is above e^300: every Gaussian has a mass somewhere.
    """
    norms = np.linalg.norm(rows[:, QUATS].astype(np.float64), axis=1, keepdims=True)
    w, x, y, z = (rows[:, QUATS] / np.where(norms > 0, norms, 1)).T
    axes = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )  # (3, 3, N)
    return np.einsum("ij,jkn->nik", rotation, axes) * np.exp(np.minimum(rows[:, None, SCALES].astype(np.float64), 300))


def share_in(core: Box, centers: NDArray[np.float64], axes: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) share of the mass of Gaussians, given as centres (N, 3) and `scaled_axes`, that lies in a core.

    Cores that tile space get shares that add up to 1. In a box it is the product over its axes; in an outline, which
    has no bounds upwards, it is the share of `PLACES` on the ground.
    """
    if isinstance(core, Union):
        return np.sum([share_in(part, centers, axes) for part in core.parts], axis=0)
    if isinstance(core, Region):
        blocks = [slice(first, first + BLOCK) for first in range(0, len(centers), BLOCK)]
        return np.concatenate([np.zeros(0), *(_share_of_places(core, centers[one], axes[one]) for one in blocks)])
    sigmas = np.linalg.norm(axes, axis=2)
    inside = ndtr((core.upper - centers) / sigmas) - ndtr((core.lower - centers) / sigmas)
    return inside.prod(axis=1)


def _share_of_places(core: Region, centers: NDArray[np.float64], axes: NDArray[np.float64]) -> NDArray[np.float64]:
    covariance = np.einsum("nik,njk->nij", axes[:, :2], axes[:, :2])
    first = np.sqrt(covariance[:, 0, 0])  # of its Cholesky factor
    across = covariance[:, 0, 1] / first
    second = np.sqrt(np.maximum(covariance[:, 1, 1] - across**2, 0))
    a, b = _normal_places()
    places = np.repeat(centers[:, None], PLACES, axis=1)
    places[..., 0] += first[:, None] * a
    places[..., 1] += across[:, None] * a + second[:, None] * b
    return core.contains(places.reshape(-1, 3)).reshape(-1, PLACES).mean(axis=1)


def _normal_places() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places of equal mass in a round Gaussian of unit variance: on a sunflower's spiral, no two in one direction."""
    k = np.arange(PLACES)
    radius = np.sqrt(-2 * np.log1p(-(k + 0.5) / PLACES))
    return radius * np.cos(k * GOLDEN_ANGLE), radius * np.sin(k * GOLDEN_ANGLE)
