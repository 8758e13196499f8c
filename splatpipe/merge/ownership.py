"""Which patch a place belongs to, so that every Gaussian is taken from exactly one patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

NOBODY = -1


class Box(Protocol):
    """An axis-aligned box of the cutting frame; bounds may be infinite."""

    @property
    def lower(self) -> NDArray[np.float64]: ...  # (3,)

    @property
    def upper(self) -> NDArray[np.float64]: ...  # (3,)


@dataclass(frozen=True, eq=False)
class Territory:
    """A patch's core, which it owns, and its buffered box, in which it was trained and can be trusted."""

    patch_id: str
    core: Box
    buffered: Box


def contains(box: Box, points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(N,) whether lower <= point < upper: boxes that share a face share no point."""
    inside = np.ones(len(points), np.bool_)
    for axis, (low, high) in enumerate(zip(box.lower, box.upper, strict=True)):
        if np.isfinite(low):
            inside &= points[:, axis] >= low
        if np.isfinite(high):
            inside &= points[:, axis] < high
    return inside


def distance(box: Box, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) Euclidean distance to the box, 0 inside."""
    outside = np.maximum(np.maximum(box.lower - points, points - box.upper), 0)
    return np.sqrt((outside**2).sum(axis=1))


def to_frame(rotation: NDArray[np.float64], means: NDArray[np.floating]) -> NDArray[np.float64]:
    """(N, 3) float64 positions in the cutting frame; `rotation` (3, 3) maps scene to frame.

    Written out instead of a matrix product, whose rounding depends on where in the array a row stands:
    equal means must get equal coordinates in whichever file they are, or a border could own one twice.
    """
    x, y, z = np.asarray(means, np.float64).T
    return np.stack([row[0] * x + row[1] * y + row[2] * z for row in rotation], axis=1)


class Ownership:
    """Cores of the patches that were trained, and of those that were not (holes).

    A place in a hole belongs to the trained patch with the nearest core among those whose buffered box
    contains it (the first id among equals), or to nobody.
    """

    def __init__(
        self, rotation: NDArray[np.float64], trained: Sequence[Territory], holes: Sequence[Territory] = ()
    ) -> None:
        self.rotation = np.asarray(rotation, np.float64)
        self.trained = tuple(sorted(trained, key=lambda territory: territory.patch_id))
        self.holes = tuple(sorted(holes, key=lambda territory: territory.patch_id))

    def owned(
        self, patch_id: str, means: NDArray[np.floating]
    ) -> tuple[NDArray[np.bool_], dict[str, NDArray[np.bool_]]]:
        """What `patch_id` owns of (N, 3) scene positions: (N,) in its core, and per hole (N,) what it fills there."""
        me = next(i for i, territory in enumerate(self.trained) if territory.patch_id == patch_id)
        points = to_frame(self.rotation, means)
        filled = {}
        for hole in self.holes:
            mask = contains(hole.core, points)
            mask[mask] = self._nearest_trained(points[mask]) == me
            filled[hole.patch_id] = mask
        return contains(self.trained[me].core, points), filled

    def _nearest_trained(self, points: NDArray[np.float64]) -> NDArray[np.intp]:
        """(N,) index into `trained`, or NOBODY."""
        nearest = np.full(len(points), NOBODY, np.intp)
        least = np.full(len(points), np.inf)
        for i, territory in enumerate(self.trained):
            away = np.where(contains(territory.buffered, points), distance(territory.core, points), np.inf)
            nearer = away < least
            nearest[nearer], least[nearer] = i, away[nearer]
        return nearest
