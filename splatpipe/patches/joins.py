"""Degenerate pieces become part of a neighbour."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from splatpipe.patches.cell import Cell, fits, owners, view_counts
from splatpipe.patches.settings import PatchingSettings
from splatpipe.patches.union import parts_of, together
from splatpipe.patches.visibility import Visibility


def join_degenerate(
    cells: list[Cell],
    positions: NDArray[np.float64],
    seen: Visibility,
    cameras: NDArray[np.int64],
    settings: PatchingSettings,
) -> list[Cell]:
    """Join cells with too few points or cameras to the neighbour with which they share most views.

    Only as far as the limits allow. Cells that somebody asked for may have few cameras of their own: their neighbours'
    views train them.
    """
    cells, fewest = list(cells), 0 if settings.asked_for else settings.min_cameras
    owner = owners(cells, positions)
    points = np.bincount(owner, minlength=len(cells))
    sees: NDArray[np.bool_] | None = None
    while len(cells) > 1:
        weak = [i for i, cell in enumerate(cells) if points[i] < settings.min_points or len(cell.cameras) < fewest]
        joins = [
            (i, j)
            for i in weak
            for j in range(len(cells))
            if i != j and _can_join(cells[i], cells[j], positions, settings)
        ]
        if not joins:
            break
        if sees is None:
            sees = view_counts(owner, len(cells), seen, cameras) > 0
        views = sees
        i, j = max(joins, key=lambda join: int((views[:, join[0]] & views[:, join[1]]).sum()))
        kept, gone = sorted((i, j))
        cells[kept] = _joined(cells[i], cells[j])
        del cells[gone]
        points[kept] += points[gone]
        points = np.delete(points, gone)
        sees[:, kept] |= sees[:, gone]
        sees = np.delete(sees, gone, axis=1)
    return cells


def _can_join(one: Cell, other: Cell, positions: NDArray[np.float64], settings: PatchingSettings) -> bool:
    touch = any(
        ((a.lower <= b.upper) & (b.lower <= a.upper)).all() for a in parts_of(one.core) for b in parts_of(other.core)
    )
    return touch and fits(together([one.core, other.core]), len(one.cameras) + len(other.cameras), positions, settings)


def _joined(one: Cell, other: Cell) -> Cell:
    cameras = np.concatenate([one.cameras, other.cameras])
    order = np.argsort(cameras)
    offsets = np.concatenate([one.seen.offsets, other.seen.offsets[1:] + one.seen.offsets[-1]])
    both = Visibility(offsets, np.concatenate([one.seen.points, other.seen.points]))
    return Cell(together([one.core, other.core]), cameras[order], both.of(order))
