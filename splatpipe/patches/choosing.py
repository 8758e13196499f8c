"""Cameras for all cells at once, driven by one table of what every camera sees of every core."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splatpipe.machine import usable_cores
from splatpipe.patches.cameras import choose_cameras
from splatpipe.patches.cell import Cell, owners, view_counts
from splatpipe.patches.settings import PatchingSettings
from splatpipe.patches.sights import Sights
from splatpipe.patches.visibility import Visibility
from splatpipe.scene.arrays import Scene


@dataclass(frozen=True, eq=False)
class Ground:
    """What is cut: all points in the cutting frame, and who sees what of them."""

    scene: Scene
    positions: NDArray[np.float64]  # (P, 3)
    outliers: NDArray[np.bool_]  # (P,) points that belong to nobody
    seen: Visibility
    training: NDArray[np.int64]  # cameras that may train


@dataclass(frozen=True, eq=False)
class Chosen:
    """Training cameras of every cell."""

    cells: tuple[Cell, ...]
    owner: NDArray[np.int32]  # (P,) the cell of each point, -1 for outliers
    counts: NDArray[np.int64]  # (C, cells) how many points of each core each camera of the scene sees
    cameras: tuple[NDArray[np.int64], ...]  # by cell, ascending
    reasons: tuple[tuple[str, ...], ...]  # by cell, for each camera
    short: tuple[int, ...]  # by cell: points with fewer than `min_views` views, though the scene has more

    @property
    def short_shares(self) -> NDArray[np.float64]:
        """(cells,) share of each core's points that are short of views."""
        points = np.bincount(self.owner[self.owner >= 0], minlength=len(self.cells))
        return np.array(self.short) / np.maximum(points, 1)


def choose_for_all(cells: Sequence[Cell], ground: Ground, settings: PatchingSettings) -> Chosen:
    """Choose the cameras of each cell, and count the points that stay short of views."""
    seen, n_cameras = ground.seen, ground.scene.n_cameras
    owner = np.where(ground.outliers, np.int32(-1), owners(tuple(cells), ground.positions))
    counts = view_counts(owner, len(cells), seen, np.arange(n_cameras))
    may_train = np.zeros((n_cameras, 1), np.int64)
    may_train[ground.training] = 1
    trains = counts * may_train
    wanted = np.minimum(seen.views(ground.training, len(owner)), np.int32(settings.min_views))
    sights = Sights.of(ground.scene)

    def choose(i: int) -> tuple[NDArray[np.int64], tuple[str, ...], int]:
        return choose_cameras(i, cells[i].cameras, trains, owner, seen, wanted, sights, settings)

    with ThreadPoolExecutor(usable_cores()) as pool:
        cameras, reasons, short = zip(*pool.map(choose, range(len(cells))), strict=True)
    return Chosen(tuple(cells), owner, counts, cameras, reasons, short)
