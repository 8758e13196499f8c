"""Which patch a place belongs to, so that every Gaussian is taken from exactly one patch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from splatpipe.patches.frame import Frame
from splatpipe.patches.patch import Box

NOBODY = -1


class Territory(Protocol):
    """What a `Patch` says of space: the core it owns, and the buffered box in which its training can be trusted."""

    @property
    def id(self) -> str: ...
    @property
    def core(self) -> Box: ...
    @property
    def buffered(self) -> Box: ...


class Ownership:
    """Cores of the patches that were trained, and of those that were not (holes), in the frame they were cut in.

    A place in a hole belongs to the trained patch with the nearest core among those whose buffered box
    contains it (the first id among equals), or to nobody.
    """

    def __init__(self, frame: Frame, trained: Sequence[Territory], holes: Sequence[Territory] = ()) -> None:
        self._frame = frame
        self._trained = tuple(sorted(trained, key=lambda territory: territory.id))
        self._holes = tuple(sorted(holes, key=lambda territory: territory.id))

    @property
    def holes(self) -> tuple[str, ...]:
        """Ids of the patches that were not trained."""
        return tuple(hole.id for hole in self._holes)

    def owned(
        self, patch_id: str, means: NDArray[np.floating]
    ) -> tuple[NDArray[np.bool_], dict[str, NDArray[np.bool_]]]:
        """What `patch_id` owns of (N, 3) scene positions: (N,) in its core, and per hole (N,) what it fills there."""
        me = next(i for i, territory in enumerate(self._trained) if territory.id == patch_id)
        points = self._frame.apply(means)
        filled = {}
        for hole in self._holes:
            mask = hole.core.contains(points)
            mask[mask] = self._nearest_trained(points[mask]) == me
            filled[hole.id] = mask
        return self._trained[me].core.contains(points), filled

    def _nearest_trained(self, points: NDArray[np.float64]) -> NDArray[np.intp]:
        """(N,) index into the trained patches, or NOBODY."""
        nearest = np.full(len(points), NOBODY, np.intp)
        least = np.full(len(points), np.inf)
        for i, territory in enumerate(self._trained):
            away = np.where(territory.buffered.contains(points), distance(territory.core, points), np.inf)
            nearer = away < least
            nearest[nearer], least[nearer] = i, away[nearer]
        return nearest


def distance(box: Box, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) Euclidean distance of (N, 3) points to a box of the same frame, 0 inside."""
    outside = np.maximum(np.maximum(box.lower - points, points - box.upper), 0)
    return np.sqrt((outside**2).sum(axis=1))
