"""Distances among the Gaussians of one patch, for the cleaning rules that look at local spacing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from splatpipe.splatting.ply import PlyHeader, iter_rows

NEIGHBOURS = 3
BLOCK = 1 << 16  # rows of one query


@dataclass(frozen=True, eq=False)
class Spacing:
    """Per Gaussian of a file: distance to its third nearest other one, and that over what its neighbours have.

    Infinite where there is none: a row that is not finite, a file of fewer than four.
    """

    distance: NDArray[np.float32]  # (N,) scene units
    isolation: NDArray[np.float32]  # (N,) about 1 amid others, large for a floater

    def part(self, start: int, stop: int) -> Spacing:
        return Spacing(self.distance[start:stop], self.isolation[start:stop])


def spacing(header: PlyHeader) -> Spacing:
    """Look at all Gaussians of a file, before anything is cut off. Needs about 120 bytes for each."""
    means = np.concatenate([rows[:, :3].copy() for rows in iter_rows(header, 0)] or [np.zeros((0, 3), np.float32)])
    distance = np.full(len(means), np.inf, np.float32)
    isolation = distance.copy()
    good = np.flatnonzero(np.isfinite(means).all(axis=1))
    if len(good) <= NEIGHBOURS:
        return Spacing(distance, isolation)
    tree = KDTree(means[good].astype(np.float64), balanced_tree=False, compact_nodes=False)
    near = np.empty((len(good), NEIGHBOURS), np.int32)
    for start in range(0, len(good), BLOCK):
        block = slice(start, start + BLOCK)
        away, index = tree.query(tree.data[block], NEIGHBOURS + 1, workers=-1)
        distance[good[block]], near[block] = away[:, -1], index[:, 1:]
    typical = np.mean([distance[good[near[:, k]]] for k in range(NEIGHBOURS)], axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        isolation[good] = np.nan_to_num(distance[good] / typical, nan=1.0, posinf=np.inf)
    return Spacing(distance, isolation)
