"""Which patch a place belongs to, so that every Gaussian is taken from exactly one patch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from splatpipe.merge.grid import Grid
from splatpipe.merge.mass import scaled_axes, share_in
from splatpipe.merge.rows import Rows, log_widest
from splatpipe.patches.box import Box
from splatpipe.patches.frame import Frame
from splatpipe.patches.region import Region, meet
from splatpipe.patches.union import Union, parts_of

NOBODY = -1
LEAST_SHARE = 0.01  # of a wide Gaussian's mass; with less a patch does not claim it


class Territory(Protocol):
    """What a `Patch` says of space: the core it owns, and the buffered box in which its training can be trusted."""

    @property
    def id(self) -> str: ...
    @property
    def core(self) -> Box: ...
    @property
    def buffered(self) -> Box: ...


@dataclass(frozen=True, eq=False)
class Loans:
    """Ground cells in which a neighbour stands in for an owner that is too thin there.

    `cells[owner, neighbour]` are ascending cell numbers of `grid`; an owner lends a cell to one neighbour at most.
    """

    grid: Grid
    cells: Mapping[tuple[str, str], NDArray[np.int64]]

    def of_owner(self, owner: str) -> NDArray[np.int64]:
        """Every cell that `owner` lends."""
        lent = [cells for (lender, _), cells in sorted(self.cells.items()) if lender == owner]
        return np.unique(np.concatenate(lent)) if lent else np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class Claim:
    """What one patch contributes of N Gaussians of its file."""

    points: NDArray[np.float64]  # (N, 3) their positions in the frame of the cut
    shares: NDArray[np.float64]  # (N,) 1: it owns it, 0: it does not, between: its part of a wide Gaussian
    filled: dict[str, NDArray[np.bool_]]  # per hole, (N,) which of its Gaussians stand in for the missing patch
    borrowed: NDArray[np.bool_]  # (N,) which stand in for an owner that is too thin


class Ownership:
    """Cores of the patches that were trained, and of those that were not (holes), in the frame they were cut in.

    A place belongs to the patch whose core it is in, unless that patch lends the cell to a neighbour. A place in
    a hole belongs to the trained patch with the nearest core among those whose buffered box contains it (the
    first id among equals), or to nobody.
    With `share_wide`, a Gaussian whose three standard deviations exceed `reach`, the patches' usual buffer, belongs
    to each patch by the share of its mass in the core, because each has trained such Gaussians of its own there.
    """

    def __init__(
        self,
        frame: Frame,
        trained: Sequence[Territory],
        holes: Sequence[Territory] = (),
        loans: Loans | None = None,
        share_wide: bool = False,
    ) -> None:
        self.frame, self.loans = frame, loans
        self._widest = np.log(reach([*trained, *holes]) / 3) if share_wide else np.inf
        self._trained = tuple(sorted(trained, key=lambda territory: territory.id))
        self._holes = tuple(sorted(holes, key=lambda territory: territory.id))

    @property
    def holes(self) -> tuple[str, ...]:
        """Ids of the patches that were not trained."""
        return tuple(hole.id for hole in self._holes)

    def claim(self, patch_id: str, rows: Rows) -> Claim:
        """What `patch_id` contributes of rows (N, P) from its own file, in scene coordinates."""
        with np.errstate(invalid="ignore", over="ignore"):  # rows that are not finite are counted by the cleaning
            points = self.frame.apply(rows[:, :3])
            me = next(i for i, territory in enumerate(self._trained) if territory.id == patch_id)
            own, filled = self._trained[me].core.contains(points), {}
            for hole in self._holes:
                mask = hole.core.contains(points)
                mask[mask] = self._nearest_trained(points[mask]) == me
                filled[hole.id] = mask
            borrowed = self._borrowed(patch_id, points)
            own &= ~self._lent(patch_id, points)
            shares = np.logical_or.reduce([own, borrowed, *filled.values()]).astype(np.float64)
            self._divide_wide(self._trained[me], rows, points, shares)
        return Claim(points, shares, filled, borrowed)

    def _lent(self, patch_id: str, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        if self.loans is None or not len(lent := self.loans.of_owner(patch_id)):
            return np.zeros(len(points), np.bool_)
        return np.isin(self.loans.grid.cell(points), lent)

    def _borrowed(self, patch_id: str, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        mask = np.zeros(len(points), np.bool_)
        for (owner, neighbour), cells in self.loans.cells.items() if self.loans else ():
            if neighbour == patch_id:
                core = next(territory.core for territory in self._trained if territory.id == owner)
                mask |= np.isin(self.loans.grid.cell(points), cells) & core.contains(points)  # type: ignore[union-attr]
        return mask

    def _divide_wide(self, me: Territory, rows: Rows, points: NDArray[np.float64], shares: NDArray[np.float64]) -> None:
        """Replace the shares of wide Gaussians by the mass in the core, and an even part of the holes next to it."""
        wide = np.flatnonzero(log_widest(rows) > self._widest)
        if not len(wide):
            return
        centers, axes = points[wide], scaled_axes(rows[wide], self.frame.rotation)
        mass = share_in(me.core, centers, axes)
        for hole in self._holes:
            heirs = [one for one in self._trained if touching(one.buffered, hole.core)]
            if me in heirs:
                mass += share_in(hole.core, centers, axes) / len(heirs)
        shares[wide] = np.where(mass < LEAST_SHARE, 0.0, np.where(mass > 1 - LEAST_SHARE, 1.0, mass))

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
    """(N,) Euclidean distance of (N, 3) points to a core of the same frame, 0 inside.

    To the part of an outline that a box cuts off, the larger of the distances to both, which may be too little.
    """
    if isinstance(box, Union):
        return np.min([distance(part, points) for part in box.parts], axis=0)
    outside = np.maximum(np.maximum(box.lower - points, points - box.upper), 0)
    away = np.sqrt((outside**2).sum(axis=1))
    return np.maximum(away, box.outside(points)) if isinstance(box, Region) else away


def reach(territories: Sequence[Territory]) -> float:
    """How far buffered boxes reach beyond their cores: the median; infinite where none has a bounded side or a buffer.

    One number for all patches, so that they agree on which Gaussians are wide.
    """
    margins = [margin(territory) for territory in territories]
    return float(np.median([one for one in margins if 0 < one < np.inf] or [np.inf]))


def margin(territory: Territory) -> float:
    """How far one buffered box reaches beyond its core; infinite for a core without a bounded side."""
    core, buffered = territory.core, territory.buffered
    low, high = np.isfinite(core.lower), np.isfinite(core.upper)
    sides = (core.lower[low] - buffered.lower[low], buffered.upper[high] - core.upper[high], [np.inf])
    return float(np.concatenate(sides).min())


def touching(a: Box, b: Box) -> bool:
    """Whether two boxes of the same frame have a place, or a face, in common; of outlines, what a search finds."""
    if isinstance(a, Union) or isinstance(b, Union):
        return any(touching(one, other) for one in parts_of(a) for other in parts_of(b))
    if not np.all((a.lower <= b.upper) & (b.lower <= a.upper)):
        return False
    return meet(a, b) if isinstance(a, Region) and isinstance(b, Region) else True
