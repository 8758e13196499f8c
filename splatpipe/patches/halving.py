"""One cut: where it goes, and which cameras make their home on which side."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from splatpipe.compiled import fast, in_parts
from splatpipe.patches.box import Box
from splatpipe.patches.cell import Cell
from splatpipe.patches.settings import PatchingSettings
from splatpipe.patches.sharing import room_of_one, shares
from splatpipe.patches.visibility import Visibility

GROUND_AXES = (0, 1)
SPREAD = (0.05, 0.95)  # quantiles between which a cell's sides are measured
WIDE_GAP = 0.1  # of a side; a cut moves into an empty strip of that width if the balance allows
SAMPLE = 300_000  # observations of one cell that are looked at to find a cut
SAME_PLACE = 1e-9  # of a side; coordinates closer than this are one place


def halve(
    cell: Cell, pieces: int, ground: NDArray[np.float64], settings: PatchingSettings
) -> list[tuple[Cell, int]] | None:
    """Both sides of the best cut with the pieces each is to become, or None if all that is seen is one place.

    `ground` (2, P) are all points' coordinates along the ground axes. An even sample of what is seen decides where to
    cut; who goes where is counted in full.
    """
    total = len(cell.cameras)
    step = max(len(cell.seen.points) // SAMPLE, 1)
    sampled = np.diff(-(-cell.seen.offsets // step))  # of every camera's view
    weights = np.repeat(1.0 / np.maximum(sampled, 1), sampled)  # every camera counts the same
    load = np.bincount(cell.seen.points[::step], weights, ground.shape[1]).astype(np.float64, copy=False)
    seen = np.flatnonzero(load)
    along = {axis: _sorted(ground[axis, seen], load[seen]) for axis in GROUND_AXES}
    sides = {axis: _side(*along[axis]) for axis in GROUND_AXES}
    for axis in sorted(sides, key=lambda axis: -round(sides[axis] / (max(sides.values()) or 1.0), 6)):
        at = _cut_position(*along[axis], sides[axis], pieces, total, settings)
        if at is None:
            continue
        room, planned = room_of_one(total, pieces, settings), pieces // 2
        cut = cut_at(cell, axis, at, ground, total - (pieces - planned) * room, planned * room)
        if cut is not None:
            left, right = cut
            numbers = shares(pieces, len(left.cameras), len(right.cameras), settings)
            return [(left, numbers[0]), (right, numbers[1])]
    return None


def _sorted(x: NDArray[np.float64], load: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ascending coordinates, and the share of the load up to and with each."""
    order = np.argsort(x)
    share = np.cumsum(load[order])
    return x[order], share / share[-1]


def _side(x: NDArray[np.float64], share: NDArray[np.float64]) -> float:
    """Length between the `SPREAD` quantiles of the load."""
    low, high = np.searchsorted(share, SPREAD).clip(0, len(x) - 1)
    return float(x[high] - x[low])


def _cut_position(
    x: NDArray[np.float64],
    share: NDArray[np.float64],
    side: float,
    pieces: int,
    cameras: int,
    settings: PatchingSettings,
) -> float | None:
    """Between two points near the balanced share of the load, in a wide gap if there is one in reach."""
    share, gaps = share[:-1], np.diff(x)
    possible = gaps > SAME_PLACE * max(side, float(x[-1] - x[0]) * SAME_PLACE)
    few = min(settings.min_points, len(x) // 4)
    enough = possible.copy()
    enough[: max(few - 1, 0)] = enough[len(gaps) - max(few - 1, 0) :] = False
    choice = np.flatnonzero(enough if enough.any() else possible)
    if not len(choice):
        return None
    left = pieces // 2
    room = room_of_one(cameras, pieces, settings)
    low, high = 1 - (pieces - left) * room / cameras, left * room / cameras
    reach = choice[(share[choice] >= max(low, 0.5 * left / pieces)) & (share[choice] <= min(high, 0.75))]
    wide = reach[gaps[reach] > WIDE_GAP * side]
    if len(wide):
        best = wide[np.argmax(gaps[wide])]
    else:
        best = choice[np.argmin(np.abs(share[choice] - left / pieces).round(9))]
    return float(x[best] + gaps[best] / 2)


def cut_at(
    cell: Cell, axis: int, at: float, ground: NDArray[np.float64], fewest: int = 1, most: int | None = None
) -> tuple[Cell, Cell] | None:
    """Both sides of a cut; each camera goes where most of what it sees is. None if one side would have none.

    At least `fewest` and at most `most` go below the cut, if that is possible without sending a camera where it sees
    nothing.
    """
    offsets, points, seen = cell.seen.offsets, cell.seen.points, cell.seen.counts()
    is_below, below = np.empty(len(points), np.bool_), np.empty(len(seen), np.int64)
    count, keep = fast(_count_below, len(points)), fast(_keep, len(points))
    in_parts(lambda i, j: count(offsets, points, ground[axis], at, i, j, is_below, below), seen)
    goes_below = _homes(below / seen, fewest, len(seen) if most is None else most)
    if goes_below is None:
        return None

    def side(core: Box, mine: NDArray[np.bool_], side: bool) -> Cell:
        """The core with those cameras and what they see on their side of the cut."""
        rows = np.flatnonzero(mine)
        starts = np.concatenate([[0], np.cumsum(below[rows] if side else seen[rows] - below[rows])])
        kept = np.empty(starts[-1], np.int32)
        in_parts(lambda i, j: keep(offsets, points, is_below, side, rows, starts, i, j, kept), seen[rows])
        return Cell(core, cell.cameras[rows], Visibility(starts, kept))

    lower, upper = cell.core.cut(axis, at)
    return side(lower, goes_below, True), side(upper, ~goes_below, False)


def _homes(share: NDArray[np.float64], fewest: int, most: int) -> NDArray[np.bool_] | None:
    """(M,) whether each camera goes below, given the `share` (M,) of its view there."""
    only_below, only_above = int((share == 1).sum()), int((share == 0).sum())
    widest = max(only_below, 1), min(len(share) - only_above, len(share) - 1)
    low, high = max(widest[0], fewest), min(widest[1], most)
    if low > high:
        low, high = widest
    if low > high:
        return None
    k = int(np.clip((share > 0.5).sum(), low, high))
    goes_below = np.zeros(len(share), bool)
    goes_below[np.argsort(-share, kind="stable")[:k]] = True
    return goes_below


def _count_below(offsets, points, x, at, first, last, is_below, below):  # type: ignore[no-untyped-def]
    """Which observations of the cameras from `first` to `last` lie below the cut, and how many of each camera's."""
    for camera in range(first, last):
        n = 0
        for t in range(offsets[camera], offsets[camera + 1]):
            is_below[t] = x[points[t]] < at
            n += is_below[t]
        below[camera] = n


def _keep(offsets, points, is_below, side, rows, starts, first, last, kept):  # type: ignore[no-untyped-def]
    """What the cameras `rows[first:last]` see on one side of the cut."""
    for i in range(first, last):
        place = starts[i]
        for t in range(offsets[rows[i]], offsets[rows[i] + 1]):
            if is_below[t] == side:
                kept[place] = points[t]
                place += 1
