"""Cells of the outlines that somebody drew, each with the cameras whose home it is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from splatpipe.patches.cell import Cell, owners, view_counts
from splatpipe.patches.region import Region, Ring, regions_of
from splatpipe.patches.visibility import Visibility


def cells_of_rings(
    rings: list[Ring], positions: NDArray[np.float64], seen: Visibility, cameras: NDArray[np.int64]
) -> tuple[list[Cell], int]:
    """One cell for each polygon, and one for the rest; and how many polygons joined the rest.

    These are the ones that no camera can have as its home. The last polygon is the rest if there is no other.
    """
    rings, rest, asked = list(rings), True, len(rings)
    while True:
        regions = regions_of(rings, rest)
        owner = owners([Cell(region, cameras[:0], seen.of(cameras[:0])) for region in regions], positions)
        home = _homes(view_counts(owner, len(regions), seen, cameras))
        empty = np.setdiff1d(np.arange(len(regions)), home)
        if not len(empty) or len(regions) == 1:
            cells = [_cell(region, i, owner, seen, cameras[home == i]) for i, region in enumerate(regions)]
            return cells, asked - len(rings)
        if empty[0] == len(rings):
            rest = False
        else:
            del rings[int(empty[0])]


def _homes(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """(M,) the region of which each camera sees most; a region without one takes the camera that sees most of it."""
    home = counts.argmax(axis=1)
    for i in range(counts.shape[1]):
        if (home == i).any():
            continue
        for camera in np.argsort(-counts[:, i], kind="stable"):
            if counts[camera, i] and (home == home[camera]).sum() > 1:
                home[camera] = i
                break
    return home


def _cell(region: Region, i: int, owner: NDArray[np.int32], seen: Visibility, cameras: NDArray[np.int64]) -> Cell:
    return Cell(region, cameras, seen.of(cameras).without(owner != i))
