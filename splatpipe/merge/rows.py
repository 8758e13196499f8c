"""What the merge reads off rows in the layout of `ply.columns`: size, shape and weight of Gaussians."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

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


def faded(rows: Rows, shares: NDArray[np.float64]) -> Rows:
    """A copy with opacities a turned into 1 - (1 - a)^share: copies whose shares add up to 1 look like the original."""
    out = rows.copy()
    solid = np.clip(opacities(rows), 0.0, 1 - 1e-7)
    out[:, OPACITY] = logit(-np.expm1(shares * np.log1p(-solid)))
    return out
