"""Square cells on the ground of the frame in which a scene is cut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

OUTSIDE = -1
MOST_CELLS = 1 << 20


@dataclass(frozen=True)
class Grid:
    """`columns` x `rows` cells of side `edge` from `low`, the smallest ground coordinates of the frame."""

    low: tuple[float, float]
    edge: float
    columns: int
    rows: int

    @classmethod
    def over(cls, points: NDArray[np.float64], cells: int) -> Grid:
        """About `cells` cells over the 1 to 99 percentile ground rectangle of (N, 3) points in the frame."""
        low, high = np.quantile(points[:, :2], (0.01, 0.99), axis=0)
        size = np.maximum(high - low, max(float((high - low).max()), 1e-12) * 1e-3)
        edge = float(np.sqrt(size.prod() / min(max(cells, 1), MOST_CELLS)))
        columns, rows = (int(n) for n in np.ceil(size / edge))
        return cls((float(low[0]), float(low[1])), edge, columns, rows)

    @property
    def cells(self) -> int:
        return self.columns * self.rows

    def cell(self, points: NDArray[np.float64]) -> NDArray[np.int64]:
        """(N,) cell number of (N, 3) points in the frame, row by row, or OUTSIDE."""
        x, y = ((points[:, i] - self.low[i]) / self.edge for i in (0, 1))
        inside = (x >= 0) & (x < self.columns) & (y >= 0) & (y < self.rows)
        with np.errstate(invalid="ignore"):  # beyond what an integer holds
            cells = y.astype(np.int64) * self.columns + x.astype(np.int64)  # whatever it is outside
        return np.where(inside, cells, OUTSIDE)

    def center(self, cell: int) -> tuple[float, float]:
        """Ground coordinates of a cell's middle."""
        row, column = divmod(cell, self.columns)
        return self.low[0] + (column + 0.5) * self.edge, self.low[1] + (row + 0.5) * self.edge
