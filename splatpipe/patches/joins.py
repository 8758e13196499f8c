"""Degenerate pieces become part of a neighbour."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from splatpipe.patches.cell import Cell, fits, owners, view_counts
from splatpipe.patches.settings import PatchingSettings
from splatpipe.patches.visibility import Visibility


def join_degenerate(
    cells: list[Cell],
    positions: NDArray[np.float64],
    seen: Visibility,
    cameras: NDArray[np.int64],
    settings: PatchingSettings,
) -> list[Cell]:
    """Join cells with too few points or cameras to the neighbour with which they share most views.

    Only neighbours with which they make a box, and only as far as the limits allow. Cells that somebody asked for may
    have few cameras of their own: their neighbours' views train them.
    """
    cells, fewest = list(cells), 0 if settings.asked_for else settings.min_cameras
    while len(cells) > 1:
        owner = owners(cells, positions)
        points = np.bincount(owner, minlength=len(cells))
        weak = [i for i, cell in enumerate(cells) if points[i] < settings.min_points or len(cell.cameras) < fewest]
        joins = _possible_joins(cells, weak, positions, settings)
        if not joins:
            return cells
        sees = view_counts(owner, len(cells), seen, cameras) > 0
        i, j = max(joins, key=lambda join: int((sees[:, join[0]] & sees[:, join[1]]).sum()))
        cells = _joined(cells, i, j)
    return cells


def _possible_joins(
    cells: list[Cell], weak: list[int], positions: NDArray[np.float64], settings: PatchingSettings
) -> list[tuple[int, int]]:
    joins = []
    for i in weak:
        for j in range(len(cells)):
            core = cells[i].core.union(cells[j].core) if i != j else None
            if core and fits(core, len(cells[i].cameras) + len(cells[j].cameras), positions, settings):
                joins.append((i, j))
    return joins


def _joined(cells: list[Cell], i: int, j: int) -> list[Cell]:
    one, other = cells[i], cells[j]
    core = one.core.union(other.core)
    assert core is not None
    cameras = np.concatenate([one.cameras, other.cameras])
    order = np.argsort(cameras)
    row = np.argsort(order)  # old place to new place
    rows = row[np.concatenate([one.rows, other.rows + np.int32(len(one.cameras))])].astype(np.int32)
    cell = Cell(core, cameras[order], rows, np.concatenate([one.points, other.points]))
    first, second = sorted((i, j))
    return [*cells[:first], cell, *cells[first + 1 : second], *cells[second + 1 :]]
