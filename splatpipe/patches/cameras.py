"""Which cameras train a patch, by what they see of its core; and which views are kept for evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splatpipe.patches.settings import PatchingSettings
from splatpipe.patches.visibility import Visibility

MIN_CAMERAS_FOR_HOLDOUT = 8


def choose_holdout(n_cameras: int, every: int) -> NDArray[np.int64]:
    """Every `every`-th camera in name order, from the first; none in a scene of fewer than 8 cameras."""
    if every < 2 or n_cameras < MIN_CAMERAS_FOR_HOLDOUT:
        return np.empty(0, np.int64)
    return np.arange(0, n_cameras, every)


def choose_cameras(
    cell: int,
    home: NDArray[np.int64],
    counts: NDArray[np.int64],
    owner: NDArray[np.int32],
    seen: Visibility,
    settings: PatchingSettings,
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Training cameras of a cell (ascending) and a reason for each: its home cameras, then what neighbours add.

    `counts` is (C, cells) for all cameras of the scene, with rows of zeros for those that may not train. A
    neighbour's camera comes first if it sees core points with fewer than `min_views` views; any other must have
    `external_share` of its view in the core, and the one whose view adds most comes first, until the cap.
    """
    total = np.maximum(counts.sum(axis=1), 1)
    reasons = {int(c): f"home: {counts[c, cell]:,} of the {total[c]:,} points it sees are in the core" for c in home}
    others = counts[:, cell] > 0
    others[home] = False
    table = _Views.of(cell, home, np.flatnonzero(others), owner, seen)
    for camera, added in table.rescue(settings.max_cameras - len(home), settings.min_views):
        reasons[camera] = (
            f"few views: sees {counts[camera, cell]:,} points of the core, {added:,} of them with fewer than "
            f"{settings.min_views} views"
        )
    enough = counts[:, cell] >= settings.external_share * total
    for camera, gain in table.most_useful(settings.max_cameras - len(reasons), enough):
        reasons[camera] = (
            f"neighbour: sees {counts[camera, cell]:,} points of the core, worth {gain:.1f} points without other views"
        )
    chosen = sorted(reasons)
    return np.array(chosen, np.int64), tuple(reasons[c] for c in chosen)


@dataclass(eq=False)
class _Views:
    """Views of each core point so far, and who among the candidates could add to them."""

    candidates: NDArray[np.int64]  # (K,) scene camera indices
    rows: NDArray[np.int64]  # (E,) into `candidates`, ascending
    points: NDArray[np.int64]  # (E,) core points, numbered from 0
    views: NDArray[np.int64]  # (core points,) how many chosen cameras see each
    free: NDArray[np.bool_]  # (K,) not chosen yet

    @classmethod
    def of(
        cls,
        cell: int,
        home: NDArray[np.int64],
        candidates: NDArray[np.int64],
        owner: NDArray[np.int32],
        seen: Visibility,
    ) -> _Views:
        number = np.full(len(owner), -1)
        core = np.flatnonzero(owner == cell)
        number[core] = np.arange(len(core))
        by_home = number[seen.pairs(home)[1]]
        rows, points = seen.pairs(candidates)
        points = number[points]
        inside = points >= 0
        views = np.bincount(by_home[by_home >= 0], minlength=len(core))
        return cls(candidates, rows[inside], points[inside], views, np.ones(len(candidates), bool))

    def rescue(self, room: int, wanted: int) -> list[tuple[int, int]]:
        """Up to `room` cameras, each with how many points it lifted that had fewer than `wanted` views."""
        starved = self.views[self.points] < wanted
        rows, points = self.rows[starved], self.points[starved]
        chosen: list[tuple[int, int]] = []
        while len(chosen) < room and len(rows):
            counts = np.bincount(rows, minlength=len(self.candidates))
            best = int(counts.argmax())
            chosen.append((int(self.candidates[best]), int(counts[best])))
            self._take(best)
            kept = (rows != best) & (self.views[points] < wanted)
            rows, points = rows[kept], points[kept]
        return chosen

    def most_useful(self, room: int, allowed: NDArray[np.bool_]) -> list[tuple[int, float]]:
        """Up to `room` cameras, greedily by the sum of 1 / (1 + views so far) over the core points each sees.

        `allowed` is (C,) over the scene's cameras.
        """
        chosen: list[tuple[int, float]] = []
        self.free &= allowed[self.candidates]
        open_rows = self.free[self.rows]
        self.rows, self.points = self.rows[open_rows], self.points[open_rows]
        while len(chosen) < room and self.free.any():
            gains = np.bincount(self.rows, weights=1.0 / (1 + self.views[self.points]), minlength=len(self.candidates))
            best = int(np.argmax(np.where(self.free, gains, -1.0).round(9)))
            chosen.append((int(self.candidates[best]), float(gains[best])))
            self._take(best)
        return chosen

    def _take(self, row: int) -> None:
        self.free[row] = False
        first, last = np.searchsorted(self.rows, (row, row + 1))
        self.views[self.points[first:last]] += 1


def short_of_views(
    cell: int,
    cameras: NDArray[np.int64],
    owner: NDArray[np.int32],
    seen: Visibility,
    wanted: NDArray[np.int64],
) -> int:
    """How many points of a core have fewer views in `cameras` than `wanted` (P,) of the scene's points."""
    views = np.bincount(seen.pairs(cameras)[1], minlength=len(owner))
    return int(((owner == cell) & (views < wanted)).sum())


def assign_holdout(holdout: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """(H,) the cell whose core holds most of what each hold-out view sees; -1 for a view that sees nothing.

    `counts` is (H, cells).
    """
    return np.where(counts.sum(axis=1) > 0, counts.argmax(axis=1), -1) if len(holdout) else holdout
