"""Patches trained apart can differ in exposure: measured where two of them saw the same ground, and evened out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splatpipe.merge.rows import FIRST_REST, SCALES, SH0, Rows
from splatpipe.merge.survey import ENOUGH, SH_C0, Survey

HUBER = 0.03  # of full scale; cells that differ by more count ever less: something moved, or one patch is wrong there
ROUNDS = 12
PRIOR = 1e-3  # pull towards no change, per cell, for what the overlaps leave open
GAUGE = 1e3  # holds the mean change over all patches at none; without it the best fit is no contrast anywhere


@dataclass(frozen=True, eq=False)
class ColorFit:
    """corrected colour = gain x colour + offset, per channel, colours from 0 to 1."""

    gain: NDArray[np.float64]  # (3,)
    offset: NDArray[np.float64]  # (3,)

    def apply(self, rows: Rows) -> Rows:
        """A copy of rows with corrected SH coefficients: colour is 0.5 + C0 sh0 + the rest, which has mean 0."""
        out = rows.copy()
        out[:, SH0] = rows[:, SH0] * self.gain + (0.5 * (self.gain - 1) + self.offset) / SH_C0
        rest = out[:, FIRST_REST : rows.shape[1] + (SCALES.start or 0) - 1]
        rest *= np.repeat(self.gain, rest.shape[1] // 3).astype(np.float32)
        return out


@dataclass(frozen=True)
class ColorDifference:
    """What two patches make of the same ground: median over their overlap of the absolute difference, 0 to 1."""

    patches: tuple[str, str]
    cells: int
    difference: float
    after: float  # with the fits applied


def fit_colors(surveyed: Survey) -> tuple[dict[str, ColorFit], tuple[ColorDifference, ...]]:
    """A fit for each patch that makes overlaps agree, all patches at once, robustly; and how they differ."""
    pairs = [(a, b, i[keep], j[keep]) for a, b, i, j in surveyed.overlaps() if (keep := _solid(surveyed, i, j)).any()]
    n = len(surveyed.ids)
    gain, offset = np.ones((n, 3)), np.zeros((n, 3))
    if pairs:
        a = np.concatenate([np.full(len(i), one) for one, _, i, _ in pairs])
        b = np.concatenate([np.full(len(i), other) for _, other, i, _ in pairs])
        first = surveyed.color[np.concatenate([i for *_, i, _ in pairs])]
        second = surveyed.color[np.concatenate([j for *_, j in pairs])]
        for channel in range(3):
            gain[:, channel], offset[:, channel] = _solve(a, b, first[:, channel], second[:, channel], n)
    fits = {patch_id: ColorFit(gain[k], offset[k]) for k, patch_id in enumerate(surveyed.ids)}
    return fits, tuple(_difference(surveyed, gain, offset, *pair) for pair in pairs)


def _solid(surveyed: Survey, i: NDArray[np.intp], j: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Where both patches cover the ground well enough for its colour to be theirs."""
    enough = (surveyed.count[i] >= ENOUGH) & (surveyed.count[j] >= ENOUGH)
    return np.asarray(enough & (np.minimum(surveyed.covered[i], surveyed.covered[j]) > 0.3))


def _solve(
    a: NDArray[np.int64], b: NDArray[np.int64], first: NDArray[np.float64], second: NDArray[np.float64], n: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gains and offsets (n,) of one channel by iteratively reweighted least squares (Huber weights).

    The unknowns are changes: gain - 1 about mid-grey, so that gain and offset are not confused, and the shift there.
    """
    rows = np.arange(len(a))
    design = np.zeros((len(a), 2 * n))
    design[rows, a], design[rows, b] = first - 0.5, 0.5 - second
    design[rows, n + a], design[rows, n + b] = 1.0, -1.0
    target = second - first
    change: NDArray[np.float64] = np.zeros(2 * n)
    prior = PRIOR * len(a) * np.eye(2 * n)
    prior[:n, :n] += GAUGE * len(a)
    prior[n:, n:] += GAUGE * len(a)
    for _ in range(ROUNDS):
        residual = np.abs(design @ change - target)
        weight = np.minimum(1.0, HUBER / np.maximum(residual, 1e-9))[:, None]
        change[:] = np.linalg.solve(design.T @ (weight * design) + prior, design.T @ (weight[:, 0] * target))
    return 1 + change[:n], change[n:] - 0.5 * change[:n]


def _difference(
    surveyed: Survey,
    gain: NDArray[np.float64],
    offset: NDArray[np.float64],
    a: int,
    b: int,
    i: NDArray[np.intp],
    j: NDArray[np.intp],
) -> ColorDifference:
    first, second = surveyed.color[i], surveyed.color[j]
    before = float(np.median(np.abs(first - second)))
    after = float(np.median(np.abs(gain[a] * first + offset[a] - gain[b] * second - offset[b])))
    return ColorDifference((surveyed.ids[a], surveyed.ids[b]), len(i), round(before, 5), round(after, 5))
