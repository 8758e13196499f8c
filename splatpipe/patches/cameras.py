"""Which cameras train a patch, by what they see of its core; and which views are kept for evaluation."""

from __future__ import annotations

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
    neighbour's camera must have `external_share` of its view in the core. The one whose view adds most to points
    with few views comes first, until the cap.
    """
    total = np.maximum(counts.sum(axis=1), 1)
    reasons = {int(c): f"home: {counts[c, cell]:,} of the {total[c]:,} points it sees are in the core" for c in home}
    allowed = (counts[:, cell] > 0) & (counts[:, cell] >= settings.external_share * total)
    allowed[home] = False
    room = settings.max_cameras - len(home)
    for camera, added in _most_useful(cell, home, np.flatnonzero(allowed), room, owner, seen):
        reasons[camera] = (
            f"neighbour: sees {counts[camera, cell]:,} points of the core, worth {added:.1f} points without other views"
        )
    chosen = sorted(reasons)
    return np.array(chosen, np.int64), tuple(reasons[c] for c in chosen)


def _most_useful(
    cell: int,
    home: NDArray[np.int64],
    candidates: NDArray[np.int64],
    room: int,
    owner: NDArray[np.int32],
    seen: Visibility,
) -> list[tuple[int, float]]:
    """Up to `room` candidates, greedily by the sum of 1 / (1 + views so far) over the core points each sees."""
    views = np.zeros(len(owner), np.int64)
    points = seen.pairs(home)[1]
    np.add.at(views, points[owner[points] == cell], 1)
    rows, points = seen.pairs(candidates)
    inside = owner[points] == cell
    rows, points = rows[inside], points[inside]
    ends = np.searchsorted(rows, np.arange(len(candidates) + 1))
    chosen: list[tuple[int, float]] = []
    open_rows = np.ones(len(candidates), bool)
    while len(chosen) < min(room, len(candidates)):
        gains = np.bincount(rows, weights=1.0 / (1 + views[points]), minlength=len(candidates))
        best = int(np.argmax(np.where(open_rows, gains, -1.0).round(9)))
        chosen.append((int(candidates[best]), float(gains[best])))
        open_rows[best] = False
        views[points[ends[best] : ends[best + 1]]] += 1
    return chosen


def assign_holdout(holdout: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """(H,) the cell whose core holds most of what each hold-out view sees; -1 for a view that sees nothing.

    `counts` is (H, cells).
    """
    return np.where(counts.sum(axis=1) > 0, counts.argmax(axis=1), -1) if len(holdout) else holdout
