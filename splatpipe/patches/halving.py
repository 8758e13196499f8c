"""One cut: where it goes, and which cameras make their home on which side."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from splatpipe.compiled import compiled
from splatpipe.patches.cell import Cell
from splatpipe.patches.settings import PatchingSettings
from splatpipe.patches.sharing import room_of_one, shares

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
    step = max(len(cell.rows) // SAMPLE, 1)
    rows, points = cell.rows[::step], cell.points[::step]
    weights = 1.0 / np.maximum(np.bincount(rows, minlength=total), 1)  # every camera counts the same
    load = np.bincount(points, weights=weights[rows], minlength=ground.shape[1]).astype(np.float64)
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
    total = len(cell.cameras)
    is_below = np.empty(len(cell.rows), np.bool_)
    below, seen = np.zeros(total, np.int64), np.zeros(total, np.int64)
    compiled(_count_below)(cell.rows, cell.points, ground[axis], at, is_below, below, seen)
    goes_below = _homes(below / seen, fewest, total if most is None else most)
    if goes_below is None:
        return None
    row = np.where(goes_below, np.cumsum(goes_below), np.cumsum(~goes_below)).astype(np.int32) - np.int32(1)
    sizes = int(below[goes_below].sum()), int((seen - below)[~goes_below].sum())
    lists = [np.empty(size, np.int32) for size in sizes for _ in range(2)]
    compiled(_deal)(cell.rows, cell.points, is_below, goes_below, row, *lists)
    lower, upper = cell.core.cut(axis, at)
    return (
        Cell(lower, cell.cameras[goes_below], lists[0], lists[1]),
        Cell(upper, cell.cameras[~goes_below], lists[2], lists[3]),
    )


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


def _count_below(rows, points, x, at, is_below, below, seen):  # type: ignore[no-untyped-def]
    for t in range(len(rows)):
        is_below[t] = x[points[t]] < at
        seen[rows[t]] += 1
        below[rows[t]] += is_below[t]


def _deal(  # type: ignore[no-untyped-def]
    rows, points, is_below, goes_below, row, below_rows, below_points, above_rows, above_points
):
    """What each camera sees on its side of the cut."""
    b = a = 0
    for t in range(len(rows)):
        goes = goes_below[rows[t]]
        if goes != is_below[t]:
            continue
        if goes:
            below_rows[b], below_points[b] = row[rows[t]], points[t]
            b += 1
        else:
            above_rows[a], above_points[a] = row[rows[t]], points[t]
            a += 1
