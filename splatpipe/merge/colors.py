"""Patches trained apart can differ in exposure: fitted to places that two of them render, and evened out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from splatpipe.merge.rows import FIRST_REST, SCALES, SH0, Rows

SH_C0 = 0.28209479177387814
HUBER = 0.03  # of full scale; places that differ by more count ever less: something moved, or one patch is wrong there
ROUNDS = 12
PRIOR = 1e-3  # pull towards no change, per place, for what the overlaps leave open
GAUGE = 1e3  # holds the mean change over all patches at none; without it the best fit is no contrast anywhere
NOTABLE = 0.03  # of full scale: neighbours that differ by more show it along their border


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


@dataclass(frozen=True, eq=False)
class Places:
    """Colours from 0 to 1 that two patches, `a` and `b` (indices into `ids`), give to the same R places."""

    ids: tuple[str, ...]
    a: NDArray[np.int64]  # (R,)
    b: NDArray[np.int64]  # (R,)
    first: NDArray[np.float64]  # (R, 3) as `a` has them
    second: NDArray[np.float64]  # (R, 3) as `b` has them

    def pairs(self) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
        """Each two patches that were compared, and (R,) which places are theirs."""
        for a, b in np.unique(np.column_stack([self.a, self.b]), axis=0):
            yield int(a), int(b), (self.a == a) & (self.b == b)


@dataclass(frozen=True)
class ColorDifference:
    """What two patches make of the same ground: median over the places of the absolute difference, 0 to 1."""

    patches: tuple[str, str]
    places: int
    difference: float
    after: float  # with the fits applied

    @property
    def sentence(self) -> str | None:
        """What to do about a difference that shows, and that a fit removes; None where there is none."""
        if self.difference < NOTABLE or self.after > self.difference / 2:
            return None
        return (
            f"{self.patches[0]} and {self.patches[1]} differ by {100 * self.difference:.0f} % of full brightness where "
            "both render the same ground, which looks like exposure; merge.match_colors=true evens it out"
        )


def exposure_advice(differences: Iterable[ColorDifference]) -> str | None:
    """The sentence of the neighbours that differ most, of those that a fit brings together."""
    named = [(one.difference, one.sentence) for one in differences if one.sentence]
    return max(named)[1] if named else None


def fit_colors(places: Places) -> tuple[dict[str, ColorFit], tuple[ColorDifference, ...]]:
    """A fit for each patch that makes overlaps agree, all patches at once, robustly; and how they differ."""
    n = len(places.ids)
    gain, offset = np.ones((n, 3)), np.zeros((n, 3))
    if len(places.a):
        for channel in range(3):
            gain[:, channel], offset[:, channel] = _solve(places, channel)
    fits = {patch_id: ColorFit(gain[k], offset[k]) for k, patch_id in enumerate(places.ids)}
    return fits, tuple(_difference(places, fits, *pair) for pair in places.pairs())


def _solve(places: Places, channel: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gains and offsets (n,) of one channel by iteratively reweighted least squares (Huber weights).

    The unknowns are changes: gain - 1 about mid-grey, so that gain and offset are not confused, and the shift there.
    """
    first, second, a, b = places.first[:, channel], places.second[:, channel], places.a, places.b
    n, one = len(places.ids), np.ones(len(a))
    entries, columns = np.column_stack([first - 0.5, 0.5 - second, one, -one]), np.column_stack([a, b, n + a, n + b])
    design = csr_array((entries.ravel(), columns.ravel(), np.arange(0, 4 * len(a) + 1, 4)), shape=(len(a), 2 * n))
    target = second - first
    change: NDArray[np.float64] = np.zeros(2 * n)
    prior = PRIOR * len(a) * np.eye(2 * n)
    prior[:n, :n] += GAUGE * len(a)
    prior[n:, n:] += GAUGE * len(a)
    for _ in range(ROUNDS):
        residual = np.abs(design @ change - target)
        weight = np.minimum(1.0, HUBER / np.maximum(residual, 1e-9))
        normal = (design.T @ (design * weight[:, None])).toarray() + prior
        change[:] = np.linalg.solve(normal, design.T @ (weight * target))
    return 1 + change[:n], change[n:] - 0.5 * change[:n]


def _difference(
    places: Places, fits: Mapping[str, ColorFit], a: int, b: int, theirs: NDArray[np.bool_]
) -> ColorDifference:
    pair = places.ids[a], places.ids[b]
    first, second = places.first[theirs], places.second[theirs]
    fitted = [fits[name].gain * color + fits[name].offset for name, color in zip(pair, (first, second), strict=True)]
    before, after = (float(np.median(np.abs(x - y))) for x, y in ((first, second), fitted))
    return ColorDifference(pair, int(theirs.sum()), round(before, 5), round(after, 5))
