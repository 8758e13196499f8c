"""Recursive balanced cuts: cores that tile the ground, each with the cameras whose home it is."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splatpipe.machine import usable_cores
from splatpipe.patches.box import Box
from splatpipe.patches.cell import Cell, fits
from splatpipe.patches.drawn import Layout, leaves
from splatpipe.patches.halving import cut_at, halve
from splatpipe.patches.joins import join_degenerate
from splatpipe.patches.region import Ring
from splatpipe.patches.seeded import cells_of_rings
from splatpipe.patches.settings import PatchingSettings
from splatpipe.patches.sharing import cells_needed
from splatpipe.patches.visibility import Visibility

STARVING = 0.25  # a core with a larger share of its points short of views is cut, whatever that costs


@dataclass(frozen=True, eq=False)
class Cells:
    """All cells, in the order of the cuts."""

    cells: tuple[Cell, ...]
    unplaced: NDArray[np.int64]  # cameras for which there was no place under the cap
    joined: int  # pieces that became part of a neighbour, because they were degenerate


@dataclass(frozen=True, eq=False)
class _Job:
    """A cell and into how many pieces it is to be cut; 0 for as many as its limits ask for, 1 for none."""

    cell: Cell
    pieces: int = 0


def cut_into_cells(
    positions: NDArray[np.float64],
    seen: Visibility,
    cameras: NDArray[np.int64],
    settings: PatchingSettings,
    layout: Layout | list[Ring] | None = None,
) -> Cells:
    """Cut until no cell is home to more than `max_cameras` of `cameras`, and all limits hold.

    First come the cuts or polygons of `layout`. `positions` are all points in the cutting frame, (P, 3). Each camera
    must see something; its home holds at least one point it sees. Only where more cameras than the cap see nothing but
    a single place are some left unplaced.
    """
    ground = np.ascontiguousarray(positions[:, :2].T)
    if isinstance(layout, list):
        first, lost = cells_of_rings(layout, positions, seen, cameras)
    else:
        first = _cut_along(Cell(Box.everything(), cameras, seen.of(cameras)), layout, ground)
        lost = leaves(layout) - len(first)
    found: list[_Job | Cell] = [_Job(cell, settings.patches) for cell in first]
    del first  # with all that is seen; the pieces hold it again
    with ThreadPoolExecutor(usable_cores()) as pool:
        while any(isinstance(one, _Job) for one in found):
            steps = pool.map(lambda one: _step(one, positions, ground, settings), found)
            found = [piece for pieces in steps for piece in pieces]
    cells, left_out = zip(*(_thinned(one, settings.max_cameras) for one in found if isinstance(one, Cell)), strict=True)
    joined = join_degenerate(list(cells), positions, seen, cameras, settings)
    return Cells(tuple(joined), np.concatenate(left_out), lost + len(cells) - len(joined))


def _step(
    one: _Job | Cell, positions: NDArray[np.float64], ground: NDArray[np.float64], settings: PatchingSettings
) -> list[_Job | Cell]:
    """Both halves of a job; its cell, where that fits or cannot be cut; a cell as it is."""
    if isinstance(one, Cell):
        return [one]
    cell, pieces = one.cell, one.pieces
    if pieces < 2 and not fits(cell.core, len(cell.cameras), positions, settings):
        pieces = max(cells_needed(len(cell.cameras), settings), 2)
    halves = halve(cell, pieces, ground, settings) if pieces > 1 else None
    return [_Job(*half) for half in halves] if halves else [cell]


def _cut_along(cell: Cell, layout: Layout | None, ground: NDArray[np.float64]) -> list[Cell]:
    """The cells of a layout, in the order of its cuts; a part in which no camera is at home is not cut off."""
    if layout is None:
        return [cell]
    halves = cut_at(cell, layout.axis, layout.at, ground)
    if halves is None:
        one, other = layout.below, layout.above
        is_below = bool((ground[layout.axis, cell.seen.points] < layout.at).mean() > 0.5)
        return _cut_along(cell, one if is_below else other, ground)
    return _cut_along(halves[0], layout.below, ground) + _cut_along(halves[1], layout.above, ground)


def _thinned(cell: Cell, cap: int) -> tuple[Cell, NDArray[np.int64]]:
    """The cell with at most `cap` cameras, evenly chosen, and those left out."""
    n = len(cell.cameras)
    if n <= cap:
        return cell, np.empty(0, np.int64)
    kept = np.zeros(n, bool)
    kept[np.arange(cap) * n // cap] = True
    return Cell(cell.core, cell.cameras[kept], cell.seen.of(np.flatnonzero(kept))), cell.cameras[~kept]


def cut_further(
    cells: Sequence[Cell],
    short: NDArray[np.float64],
    room: int,
    positions: NDArray[np.float64],
    settings: PatchingSettings,
) -> list[Cell]:
    """The cells with those halved that are too short of views, where both halves keep `min_cameras` of their own.

    `short` (cells,) are the shares of their points; the worst come first. Above `max_short` as many are cut as there
    is `room` for, above `STARVING` all.
    """
    ground = np.ascontiguousarray(positions[:, :2].T)
    pieces = [[cell] for cell in cells]
    for i in np.argsort(-short, kind="stable"):
        if short[i] <= settings.max_short or (room < 1 and short[i] <= STARVING):
            break
        halves = halve(cells[i], 2, ground, settings) if len(cells[i].seen.points) else None
        if halves and min(len(half.cameras) for half, _ in halves) >= max(settings.min_cameras, 1):
            pieces[i] = [half for half, _ in halves]
            room -= 1
    return [piece for both in pieces for piece in both]
