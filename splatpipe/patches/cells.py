"""Recursive balanced cuts: cores that tile the ground, each with the cameras whose home it is."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from splatpipe.patches.box import Box
from splatpipe.patches.cell import Cell, fits
from splatpipe.patches.drawn import Layout
from splatpipe.patches.joins import join_degenerate
from splatpipe.patches.settings import PatchingSettings
from splatpipe.patches.visibility import Visibility

GROUND_AXES = (0, 1)
SPREAD = (0.05, 0.95)  # quantiles between which a cell's sides are measured
WIDE_GAP = 0.1  # of a side; a cut moves into an empty strip of that width if the balance allows
EXTRA = 1.15  # cells at most, over the fewest that the cap allows, for the sake of the reserve
SAME_PLACE = 1e-9  # of a side; coordinates closer than this are one place


@dataclass(frozen=True, eq=False)
class Cells:
    """All cells, in the order of the cuts, and the cameras for which there was no place under the cap."""

    cells: tuple[Cell, ...]
    unplaced: NDArray[np.int64]


def cut_into_cells(
    positions: NDArray[np.float64],
    seen: Visibility,
    cameras: NDArray[np.int64],
    settings: PatchingSettings,
    layout: Layout | None = None,
) -> Cells:
    """Cut, first along `layout`, until no cell is home to more than `max_cameras` of `cameras`, and all limits hold.

    `positions` are all points in the cutting frame, (P, 3). Each camera must see something; its home holds at least
    one point it sees. Only where more cameras than the cap see nothing but a single place are some left unplaced.
    """
    cells: list[Cell] = []
    unplaced: list[NDArray[np.int64]] = []
    stack = [(cell, 0) for cell in _cut_along(Cell(Box.everything(), cameras, *seen.pairs(cameras)), layout, positions)]
    while stack:
        cell, pieces = stack.pop()
        if pieces < 2 and not fits(cell.core, len(cell.cameras), positions, settings):
            pieces = max(_pieces(len(cell.cameras), settings), 2)
        halves = _halve(cell, pieces, positions, settings) if pieces > 1 else None
        if halves:
            stack += halves[::-1]
            continue
        cell, left_out = _thinned(cell, settings.max_cameras)
        cells.append(cell)
        unplaced.append(left_out)
    joined = join_degenerate(cells, positions, seen, cameras, settings)
    return Cells(tuple(joined), np.concatenate(unplaced))


def _cut_along(cell: Cell, layout: Layout | None, positions: NDArray[np.float64]) -> list[Cell]:
    """The cells of a layout, in reverse order of its cuts; a part in which no camera is at home is not cut off."""
    if layout is None:
        return [cell]
    goes_left = _homes(cell, positions[cell.points, layout.axis] < layout.at)
    if goes_left is None:
        one, other = layout.below, layout.above
        is_left = bool((positions[cell.points, layout.axis] < layout.at).mean() > 0.5)
        return _cut_along(cell, one if is_left else other, positions)
    left, right = _parts(cell, layout.axis, layout.at, goes_left, positions)
    return _cut_along(right, layout.above, positions) + _cut_along(left, layout.below, positions)


def _pieces(cameras: int, settings: PatchingSettings) -> int:
    """Cells needed for so many home cameras, with the reserve for neighbours' views kept free.

    Rounding up must not cost more than the reserve is worth: where it would, the reserve gives way.
    """
    fewest = max(math.ceil(cameras / settings.max_cameras), 1)
    most = math.floor(max(EXTRA, 1 / (1 - settings.reserve)) * fewest + 1e-9)
    return max(min(math.ceil(cameras / _reserved(settings)), most), fewest)


def _reserved(settings: PatchingSettings) -> int:
    """Home cameras of one cell when the reserve is kept free."""
    return max(settings.max_cameras - math.floor(settings.reserve * settings.max_cameras), 1)


def _room(cameras: int, pieces: int, settings: PatchingSettings) -> int:
    """Home cameras of one of the cells into which so many are to go."""
    return max(_reserved(settings), min(math.ceil(cameras / pieces), settings.max_cameras))


def _halve(
    cell: Cell, pieces: int, positions: NDArray[np.float64], settings: PatchingSettings
) -> list[tuple[Cell, int]] | None:
    """Both sides of the best cut with the pieces each is to become, or None if all that is seen is one place."""
    weights = 1.0 / np.bincount(cell.rows, minlength=len(cell.cameras))  # every camera counts the same
    load = np.bincount(cell.points, weights=weights[cell.rows], minlength=len(positions)).astype(np.float64)
    seen = np.flatnonzero(load)
    sorted_axes = {axis: _sorted(positions[seen, axis], load[seen]) for axis in GROUND_AXES}
    sides = {axis: _side(*along) for axis, along in sorted_axes.items()}
    for axis in sorted(sides, key=lambda axis: -round(sides[axis] / (max(sides.values()) or 1.0), 6)):
        at = _cut_position(*sorted_axes[axis], sides[axis], pieces, len(cell.cameras), settings)
        if at is None:
            continue
        room, planned = _room(len(cell.cameras), pieces, settings), pieces // 2
        fewest = len(cell.cameras) - (pieces - planned) * room
        goes_left = _homes(cell, positions[cell.points, axis] < at, fewest, planned * room)
        if goes_left is not None:
            left, right = _parts(cell, axis, at, goes_left, positions)
            for_left, for_right = _shares(pieces, len(left.cameras), len(right.cameras), settings)
            return [(left, for_left), (right, for_right)]
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
    room = _room(cameras, pieces, settings)
    low, high = 1 - (pieces - left) * room / cameras, left * room / cameras
    reach = choice[(share[choice] >= max(low, 0.5 * left / pieces)) & (share[choice] <= min(high, 0.75))]
    wide = reach[gaps[reach] > WIDE_GAP * side]
    if len(wide):
        best = wide[np.argmax(gaps[wide])]
    else:
        best = choice[np.argmin(np.abs(share[choice] - left / pieces).round(9))]
    return float(x[best] + gaps[best] / 2)


def _homes(
    cell: Cell, is_left: NDArray[np.bool_], fewest: int = 1, most: int | None = None
) -> NDArray[np.bool_] | None:
    """(M,) which cameras make their home on the left: where most of what they see is.

    At least `fewest` and at most `most` go there, if that is possible without sending a camera where it sees
    nothing. None if one side would stay without cameras.
    """
    total = len(cell.cameras)
    share = np.bincount(cell.rows, weights=is_left, minlength=total) / np.bincount(cell.rows, minlength=total)
    only_left, only_right = int((share == 1).sum()), int((share == 0).sum())
    widest = max(only_left, 1), min(total - only_right, total - 1)
    low, high = max(widest[0], fewest), min(widest[1], most if most is not None else total)
    if low > high:
        low, high = widest
    if low > high:
        return None
    k = int(np.clip((share > 0.5).sum(), low, high))
    goes_left = np.zeros(total, bool)
    goes_left[np.argsort(-share, kind="stable")[:k]] = True
    return goes_left


def _shares(pieces: int, left: int, right: int, settings: PatchingSettings) -> tuple[int, int]:
    """How many pieces each half becomes: as planned if its cameras fit, else as many as they need."""
    room, planned = _room(left + right, pieces, settings), pieces // 2
    if left <= planned * room and right <= (pieces - planned) * room:
        return min(planned, left), min(pieces - planned, right)
    return _pieces(left, settings), _pieces(right, settings)


def _parts(
    cell: Cell, axis: int, at: float, goes_left: NDArray[np.bool_], positions: NDArray[np.float64]
) -> tuple[Cell, Cell]:
    is_left = positions[cell.points, axis] < at
    cores = cell.core.cut(axis, at)
    halves = []
    for core, members, inside in ((cores[0], goes_left, is_left), (cores[1], ~goes_left, ~is_left)):
        row = np.cumsum(members) - 1
        kept = inside & members[cell.rows]
        halves.append(Cell(core, cell.cameras[members], row[cell.rows[kept]], cell.points[kept]))
    return halves[0], halves[1]


def _thinned(cell: Cell, cap: int) -> tuple[Cell, NDArray[np.int64]]:
    """The cell with at most `cap` cameras, evenly chosen, and those left out."""
    n = len(cell.cameras)
    if n <= cap:
        return cell, np.empty(0, np.int64)
    kept = np.zeros(n, bool)
    kept[np.arange(cap) * n // cap] = True
    return replace(cell, cameras=cell.cameras[kept]), cell.cameras[~kept]
