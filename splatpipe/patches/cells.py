"""Recursive balanced cuts: cores that tile the ground, each with the cameras whose home it is."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from splatpipe.patches.patch import Box
from splatpipe.patches.settings import PatchingSettings
from splatpipe.patches.visibility import Visibility

GROUND_AXES = (0, 1)
SPREAD = (0.05, 0.95)  # quantiles between which a cell's sides are measured
WIDE_GAP = 0.1  # of a side; a cut moves into an empty strip of that width if the balance allows
SAME_PLACE = 1e-9  # of a side; coordinates closer than this are one place


@dataclass(frozen=True, eq=False)
class Cell:
    """A core and its home cameras, with what these see of it."""

    core: Box
    cameras: NDArray[np.int64]  # (M,) scene camera indices, ascending
    rows: NDArray[np.int64]  # (T,) into `cameras`
    points: NDArray[np.int64]  # (T,) scene point indices, all in `core`


@dataclass(frozen=True, eq=False)
class Cells:
    """All cells, in the order of the cuts, and the cameras for which there was no place under the cap."""

    cells: tuple[Cell, ...]
    unplaced: NDArray[np.int64]


def cut_into_cells(
    positions: NDArray[np.float64], seen: Visibility, cameras: NDArray[np.int64], settings: PatchingSettings
) -> Cells:
    """Cut until no cell is home to more than `max_cameras` of `cameras`, each of which must see something.

    `positions` are all points in the cutting frame, (P, 3). Every camera's home holds at least one point it sees.
    Only where more cameras than the cap see nothing but a single place are some left unplaced.
    """
    cell = Cell(Box.everything(), cameras, *seen.pairs(cameras))
    pieces = 1 if len(cameras) <= settings.max_cameras else _pieces(len(cameras), settings)
    cells: list[Cell] = []
    unplaced: list[NDArray[np.int64]] = []
    stack = [(cell, pieces)]
    while stack:
        cell, pieces = stack.pop()
        halves = _halve(cell, pieces, positions, settings) if pieces > 1 else None
        if halves:
            stack += halves[::-1]
            continue
        cell, left_out = _thinned(cell, settings.max_cameras)
        cells.append(cell)
        unplaced.append(left_out)
    merged = _merge_degenerate(cells, positions, seen, cameras, settings)
    return Cells(tuple(merged), np.concatenate(unplaced))


def _pieces(cameras: int, settings: PatchingSettings) -> int:
    """Cells needed for so many home cameras, with the reserve for neighbours' views kept free."""
    return max(math.ceil(cameras / _room(settings)), 1)


def _room(settings: PatchingSettings) -> int:
    """Home cameras of one cell."""
    return max(settings.max_cameras - math.floor(settings.reserve * settings.max_cameras), 1)


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
        goes_left = _home_left(cell, positions[cell.points, axis] < at, pieces, settings)
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
    room = _room(settings)
    low, high = 1 - (pieces - left) * room / cameras, left * room / cameras
    reach = choice[(share[choice] >= max(low, 0.5 * left / pieces)) & (share[choice] <= min(high, 0.75))]
    wide = reach[gaps[reach] > WIDE_GAP * side]
    if len(wide):
        best = wide[np.argmax(gaps[wide])]
    else:
        best = choice[np.argmin(np.abs(share[choice] - left / pieces).round(9))]
    return float(x[best] + gaps[best] / 2)


def _home_left(
    cell: Cell, is_left: NDArray[np.bool_], pieces: int, settings: PatchingSettings
) -> NDArray[np.bool_] | None:
    """(M,) which cameras make their home on the left: where most of what they see is, as far as the cap allows.

    No camera is sent where it sees nothing. None if one side would stay without cameras.
    """
    total = len(cell.cameras)
    share = np.bincount(cell.rows, weights=is_left, minlength=total) / np.bincount(cell.rows, minlength=total)
    only_left, only_right = int((share == 1).sum()), int((share == 0).sum())
    room, left = _room(settings), pieces // 2
    low, high = max(only_left, total - (pieces - left) * room, 1), min(total - only_right, left * room, total - 1)
    if low > high:
        low, high = max(only_left, 1), min(total - only_right, total - 1)
    if low > high:
        return None
    k = int(np.clip((share > 0.5).sum(), low, high))
    goes_left = np.zeros(total, bool)
    goes_left[np.argsort(-share, kind="stable")[:k]] = True
    return goes_left


def _shares(pieces: int, left: int, right: int, settings: PatchingSettings) -> tuple[int, int]:
    """How many pieces each half becomes: as planned if its cameras fit, else as many as they need."""
    room, planned = _room(settings), pieces // 2
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


def _merge_degenerate(
    cells: list[Cell],
    positions: NDArray[np.float64],
    seen: Visibility,
    cameras: NDArray[np.int64],
    settings: PatchingSettings,
) -> list[Cell]:
    """Join cells with too few points or cameras to the neighbour with which they share most views.

    Only neighbours with which they make a box, and only as far as the cap allows.
    """
    cells = list(cells)
    while len(cells) > 1:
        owner = owners(cells, positions)
        points = np.bincount(owner, minlength=len(cells))
        weak = [
            i
            for i, cell in enumerate(cells)
            if points[i] < settings.min_points or len(cell.cameras) < settings.min_cameras
        ]
        joins = _possible_joins(cells, weak, settings)
        if not joins:
            return cells
        sees = view_counts(owner, len(cells), seen, cameras) > 0
        i, j = max(joins, key=lambda join: int((sees[:, join[0]] & sees[:, join[1]]).sum()))
        cells = _joined(cells, i, j)
    return cells


def _possible_joins(cells: list[Cell], weak: list[int], settings: PatchingSettings) -> list[tuple[int, int]]:
    return [
        (i, j)
        for i in weak
        for j in range(len(cells))
        if i != j
        and len(cells[i].cameras) + len(cells[j].cameras) <= settings.max_cameras
        and cells[i].core.union(cells[j].core) is not None
    ]


def _joined(cells: list[Cell], i: int, j: int) -> list[Cell]:
    one, other = cells[i], cells[j]
    core = one.core.union(other.core)
    assert core is not None
    cameras = np.concatenate([one.cameras, other.cameras])
    order = np.argsort(cameras)
    row = np.argsort(order)  # old place to new place
    rows = row[np.concatenate([one.rows, other.rows + len(one.cameras)])]
    cell = Cell(core, cameras[order], rows, np.concatenate([one.points, other.points]))
    first, second = sorted((i, j))
    return [*cells[:first], cell, *cells[first + 1 : second], *cells[second + 1 :]]


def owners(cells: list[Cell] | tuple[Cell, ...], positions: NDArray[np.float64]) -> NDArray[np.int32]:
    """(P,) the cell whose core holds each position; cores tile the ground, so every position has one."""
    owner = np.zeros(len(positions), np.int32)
    for i, cell in enumerate(cells[1:], 1):
        owner[cell.core.contains(positions)] = i
    return owner


def view_counts(
    owner: NDArray[np.int32], n_cells: int, seen: Visibility, cameras: NDArray[np.int64]
) -> NDArray[np.int64]:
    """(len(cameras), n_cells) how many points of each core each camera sees: the table that all choices use."""
    rows, points = seen.pairs(cameras)
    flat = np.bincount(rows * n_cells + owner[points], minlength=len(cameras) * n_cells)
    return flat.reshape(len(cameras), n_cells)
