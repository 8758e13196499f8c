"""A core with the cameras whose home it is, and the table of what every camera sees of every core."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splatpipe.compiled import fast, in_parts
from splatpipe.patches.box import Box
from splatpipe.patches.settings import PatchingSettings
from splatpipe.patches.union import parts_of
from splatpipe.patches.visibility import Visibility

STRIDE = 4096  # points whose positions stay in a processor's cache
EXTENT = (0.01, 0.99)  # quantiles of the points between which an extent is measured


@dataclass(frozen=True, eq=False)
class Cell:
    """A core and its home cameras, with what these see of it."""

    core: Box
    cameras: NDArray[np.int64]  # (M,) scene camera indices, ascending
    seen: Visibility  # scene point indices, all in `core`, by row of `cameras`


def fits(core: Box, cameras: int, positions: NDArray[np.float64], settings: PatchingSettings) -> bool:
    """Whether a core with so many home cameras keeps within `max_cameras`, `max_points` and `max_extent`."""
    if cameras > settings.max_cameras:
        return False
    if not settings.max_points and not settings.max_extent:
        return True
    inside = positions[core.contains(positions)]
    if settings.max_points and len(inside) > settings.max_points:
        return False
    if not settings.max_extent or not len(inside):
        return True
    low, high = np.quantile(inside[:, :2], EXTENT, axis=0)
    return bool((high - low).max() <= settings.max_extent)


def owners(cells: list[Cell] | tuple[Cell, ...], positions: NDArray[np.float64]) -> NDArray[np.int32]:
    """(P,) the cell whose core holds each position; cores tile the ground, so every position has one."""
    owner = np.zeros(len(positions), np.int32)
    parts = [(part, i) for i, cell in enumerate(cells) for part in parts_of(cell.core)]
    if any(type(part) is not Box for part, _ in parts):
        for part, i in parts:
            owner[part.contains(positions)] = i
        return owner
    lower, upper = (np.stack([getattr(part, side) for part, _ in parts]) for side in ("lower", "upper"))
    of = np.array([i for _, i in parts], np.int32)
    x, y, z = (np.ascontiguousarray(axis) for axis in positions.T)
    own = fast(_own, len(positions) * len(parts))
    in_parts(lambda i, j: own(lower, upper, of, x[i:j], y[i:j], z[i:j], owner[i:j]), len(positions))
    return owner


def _own(lower, upper, of, x, y, z, owner):  # type: ignore[no-untyped-def]
    """Box by box for `STRIDE` points at a time: without a branch, a processor takes several points at once."""
    for first in range(0, len(x), STRIDE):
        end = min(first + STRIDE, len(x))
        for i in range(len(lower)):
            (a, b, c), (d, e, f), cell = lower[i], upper[i], of[i]
            px, py, pz, mine = x[first:end], y[first:end], z[first:end], owner[first:end]
            for p in range(end - first):
                inside = (px[p] >= a) & (px[p] < d) & (py[p] >= b) & (py[p] < e) & (pz[p] >= c) & (pz[p] < f)
                mine[p] = cell if inside else mine[p]


def view_counts(
    owner: NDArray[np.int32], n_cells: int, seen: Visibility, cameras: NDArray[np.int64]
) -> NDArray[np.int64]:
    """(len(cameras), n_cells) how many points of each core each camera sees: the table that all choices use."""
    table, lengths = np.zeros((len(cameras), n_cells), np.int64), seen.counts()[cameras]
    count = fast(_count, int(lengths.sum()))
    in_parts(lambda i, j: count(seen.offsets, seen.points, cameras[i:j], owner, table[i:j]), lengths)
    return table


def _count(offsets, points, cameras, owner, table):  # type: ignore[no-untyped-def]
    for row in range(len(cameras)):
        for t in range(offsets[cameras[row]], offsets[cameras[row] + 1]):
            table[row, owner[points[t]]] += 1
