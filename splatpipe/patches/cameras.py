"""Which cameras train a patch, by what they see of its core; and which views are kept for evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splatpipe.compiled import fast
from splatpipe.patches.settings import PatchingSettings
from splatpipe.patches.sights import Sights
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
    wanted: NDArray[np.int32],
    sights: Sights,
    settings: PatchingSettings,
) -> tuple[NDArray[np.int64], tuple[str, ...], int]:
    """Training cameras of a cell (ascending), a reason for each, and how many core points stay short of views.

    `counts` is (C, cells) for all cameras of the scene, with rows of zeros for those that may not train; `wanted` (P,)
    are the views that each of the scene's points should keep. After the home cameras come those of neighbours that
    observe core points with fewer views, matched or by sight. Any other must have `external_share` of its view in the
    core, and the one whose view adds most comes first, until the cap.
    """
    total = np.maximum(counts.sum(axis=1), 1)
    reasons = {int(c): f"home: {counts[c, cell]:,} of the {total[c]:,} points it sees are in the core" for c in home}
    others = counts[:, cell] > 0
    others[home] = False
    table = _Views.of(cell, home, np.flatnonzero(others), counts[:, cell], owner, seen)
    core = np.flatnonzero(owner == cell)
    missing = wanted - sights.beside(table.views, wanted, core, home)
    for camera, added in table.rescue(settings.max_cameras - len(home), missing):
        reasons[camera] = (
            f"few views: sees {counts[camera, cell]:,} points of the core, {added:,} of them with fewer than "
            f"{settings.min_views} views"
        )
    enough = counts[:, cell] >= settings.external_share * total
    for camera, gain in table.most_useful(settings.max_cameras - len(reasons), enough):
        reasons[camera] = (
            f"neighbour: sees {counts[camera, cell]:,} points of the core, worth {gain:.1f} points without other views"
        )
    chosen = np.array(sorted(reasons), np.int64)
    missing -= table.views + sights.beside(table.views, missing, core, np.setdiff1d(chosen, home))
    return chosen, tuple(reasons[int(c)] for c in chosen), int((missing[core] > 0).sum())


@dataclass(eq=False)
class _Views:
    """Views of each point so far, and what the candidates, who could add to them, see of the core."""

    candidates: NDArray[np.int64]  # (K,) scene camera indices
    offsets: NDArray[np.int64]  # (K + 1,) into `points`
    points: NDArray[np.int32]  # (E,) core points by candidate
    views: NDArray[np.int32]  # (P,) how many chosen cameras see each of the scene's points
    free: NDArray[np.bool_]  # (K,) not chosen yet

    @classmethod
    def of(
        cls,
        cell: int,
        home: NDArray[np.int64],
        candidates: NDArray[np.int64],
        counts: NDArray[np.int64],
        owner: NDArray[np.int32],
        seen: Visibility,
    ) -> _Views:
        """`counts` (C,) are the core points that each camera of the scene sees."""
        offsets = np.concatenate([[0], np.cumsum(counts[candidates])])
        points = np.empty(offsets[-1], np.int32)
        fast(_inside, int(seen.counts()[candidates].sum()))(seen.offsets, seen.points, candidates, owner, cell, points)
        return cls(candidates, offsets, points, seen.views(home, len(owner)), np.ones(len(candidates), bool))

    def rescue(self, room: int, wanted: NDArray[np.int32]) -> list[tuple[int, int]]:
        """Up to `room` cameras, each with how many points it lifted that had fewer than `wanted` (P,) views."""
        return [(camera, round(gain)) for camera, gain in self._greedy(room, wanted)]

    def most_useful(self, room: int, allowed: NDArray[np.bool_]) -> list[tuple[int, float]]:
        """Up to `room` cameras, greedily by the sum of 1 / (1 + views so far) over the core points each sees.

        `allowed` is (C,) over the scene's cameras.
        """
        self.free &= allowed[self.candidates]
        return self._greedy(room, np.empty(0, np.int32))

    def _greedy(self, room: int, wanted: NDArray[np.int32]) -> list[tuple[int, float]]:
        room = min(max(room, 0), len(self.candidates))
        rows, gains = np.empty(room, np.int64), np.empty(room)
        n = fast(_choose, len(self.points))(self.offsets, self.points, self.views, self.free, wanted, rows, gains)
        return [(int(self.candidates[row]), float(gain)) for row, gain in zip(rows[:n], gains[:n], strict=True)]


def _inside(offsets, points, cameras, owner, cell, inside):  # type: ignore[no-untyped-def]
    """The points that cameras see of one core."""
    at = 0
    for camera in cameras:
        for t in range(offsets[camera], offsets[camera + 1]):
            if owner[points[t]] == cell:
                inside[at] = points[t]
                at += 1


def _choose(offsets, points, views, free, wanted, rows, gains):  # type: ignore[no-untyped-def]
    """Fill `rows` and `gains` greedily and update `views` and `free`; how many were chosen.

    With `wanted` (P,), a camera's gain is the number of its points with fewer views than that; empty, the sum of
    1 / (1 + views). No gain ever grows, so an old value is a bound, and only the camera with the largest bound has to
    be looked at again: the choice is the same as if all were, at a fraction of the cost.
    """
    bounds, open_to = np.full(len(free), np.inf), free.copy()
    chosen = 0
    while chosen < len(rows):
        best = -1
        for i in range(len(free)):
            if open_to[i] and (best < 0 or bounds[i] > bounds[best]):
                best = i
        if best < 0:
            break
        gain = 0.0
        for t in range(offsets[best], offsets[best + 1]):
            if len(wanted) == 0:
                gain += 1.0 / (1 + views[points[t]])
            elif views[points[t]] < wanted[points[t]]:
                gain += 1.0
        gain = np.floor(gain * 1e9 + 0.5) / 1e9  # equal gains must not differ by rounding
        if len(wanted) > 0 and gain == 0.0:
            open_to[best] = False
            continue
        if gain < bounds[best]:
            bounds[best] = gain
            continue
        free[best] = open_to[best] = False
        rows[chosen], gains[chosen] = best, gain
        chosen += 1
        for t in range(offsets[best], offsets[best + 1]):
            views[points[t]] += 1
    return chosen


def assign_holdout(holdout: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """(H,) the cell whose core holds most of what each hold-out view sees; -1 for a view that sees nothing.

    `counts` is (H, cells).
    """
    return np.where(counts.sum(axis=1) > 0, counts.argmax(axis=1), -1) if len(holdout) else holdout
