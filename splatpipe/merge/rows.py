"""What the merge reads off rows in the layout of `ply.columns`: size, shape and weight of Gaussians."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtr

from splatpipe.patches.box import Box
from splatpipe.patches.region import Region

# A row ends with opacity, three scales and the four of the rotation, whatever its SH degree.
OPACITY, SCALES, QUATS = -8, slice(-7, -4), slice(-4, None)
SH0, FIRST_REST = slice(6, 9), 9

MOST_LOGIT = np.float32(9.2)  # opacity 0.9999; more would not be seen

Rows = NDArray[np.float32]


def opacities(rows: Rows) -> NDArray[np.float64]:
    """(N,) from 0 to 1."""
    return expit(rows[:, OPACITY].astype(np.float64))


def log_widest(rows: Rows) -> NDArray[np.float32]:
    """(N,) log of the largest standard deviation."""
    a, b, c = (rows[:, i] for i in range(SCALES.start, SCALES.stop))
    return np.maximum(np.maximum(a, b), c)


def widest(rows: Rows) -> NDArray[np.float64]:
    """(N,) largest standard deviation, scene units."""
    with np.errstate(over="ignore"):
        return np.exp(log_widest(rows).astype(np.float64))


def thickness(rows: Rows, area: float, widest_counted: float) -> NDArray[np.float32]:
    """(N,) optical thickness that each adds to a ground cell of this area, at most that of filling it.

    0 for one with a standard deviation above `widest_counted`: where its centre lies says little about where it is.

    A Gaussian of opacity a and standard deviations s, t covers 2 pi s t of ground by -log(1 - a); lying or standing,
    it is taken at its two longer sides.
    """
    a, b, c = (rows[:, i] for i in range(SCALES.start, SCALES.stop))
    sides = a + b + c - np.minimum(np.minimum(a, b), c)
    footprint = np.exp(np.minimum(sides + np.float32(np.log(2 * np.pi / area)), 0))
    footprint *= log_widest(rows) <= np.log(widest_counted)
    return footprint * np.log1p(np.exp(np.minimum(rows[:, OPACITY], MOST_LOGIT)))  # log(1 + e^x) = -log(1 - sigmoid x)


def spreads(rows: Rows, rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 3) standard deviations along the axes of a frame, given as the rows of `rotation` (3, 3)."""
    w, x, y, z = (rows[:, QUATS] / np.linalg.norm(rows[:, QUATS], axis=1, keepdims=True)).T.astype(np.float64)
    axes = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )  # (3, 3, N), columns are the Gaussian's own axes
    turned = np.einsum("ij,jkn->nik", rotation, axes)
    return np.sqrt(np.einsum("nik,nk->ni", turned**2, np.exp(2 * rows[:, SCALES].astype(np.float64))))


def share_in(box: Box, centers: NDArray[np.float64], sigmas: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) share of the mass of Gaussians (N, 3) that lies in a box of the same frame, axis by axis.

    Boxes that tile space get shares that add up to 1. In an outline that somebody drew, a Gaussian lies where its
    centre does.
    """
    if isinstance(box, Region):
        return box.contains(centers).astype(np.float64)
    inside = ndtr((box.upper - centers) / sigmas) - ndtr((box.lower - centers) / sigmas)
    return inside.prod(axis=1)


def faded(rows: Rows, shares: NDArray[np.float64]) -> Rows:
    """A copy with opacities a turned into 1 - (1 - a)^share: copies whose shares add up to 1 look like the original."""
    out = rows.copy()
    solid = np.clip(opacities(rows), 0.0, 1 - 1e-7)
    out[:, OPACITY] = logit(-np.expm1(shares * np.log1p(-solid)))
    return out
