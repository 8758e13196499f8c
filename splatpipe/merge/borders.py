"""The Gaussians at borders of a merged splat, with Adam's moments of each, in a file of their own.

The moments outlive the turns of a neighbourhood. If each turn began with fresh ones, its first steps would be as long
as the learning rate whatever the gradient, and neighbourhoods would undo what others did to Gaussians that both see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from splatpipe.files import atomic_path
from splatpipe.merge.rowfile import RowFile
from splatpipe.merge.rows import Rows
from splatpipe.splatting.adam import Adam
from splatpipe.splatting.ply import PlyHeader, columns, iter_rows

NAMES = ("means", "quats", "scales", "opacities", "sh0", "shN")
KINDS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, eq=False)
class BorderRecords:
    """B records of a row in the layout of `ply.columns` and both moments in that of `NAMES`: 720 bytes for SH 3.

    `index` (B,): ascending rows of the splat.
    """

    path: Path
    index: NDArray[np.int64]
    sh_degree: int

    @property
    def row_width(self) -> int:
        return len(columns(self.sh_degree))

    @property
    def width(self) -> int:
        return self.row_width + 2 * (self.row_width - 3)  # normals have no moments

    def write(self, header: PlyHeader, check: Callable[[], None]) -> None:
        """Begin with the rows of a file and moments of zero; `check` is called now and then, and may raise."""
        with atomic_path(self.path) as temporary, temporary.open("wb") as handle:
            start = 0
            for rows in iter_rows(header):
                check()
                first, last = np.searchsorted(self.index, [start, start + len(rows)])
                records = np.zeros((last - first, self.width), "<f4")
                records[:, : self.row_width] = rows[self.index[first:last] - start]
                handle.write(records.reshape(-1).view(np.uint8).data)  # not tofile(), which hides that a disk is full
                start += len(rows)

    def open(self, *, writable: bool = False) -> RowFile:
        return RowFile(self.path, 0, self.width, writable=writable)

    def places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the records of ascending rows of the splat are, all of which must lie at borders."""
        return np.searchsorted(self.index, rows)

    def chunks(self, header: PlyHeader, kept: NDArray[np.bool_]) -> Iterator[Rows]:
        """The rows of the whole splat, in pieces, with those records put in that are `kept` (B,)."""
        start = 0
        with self.open() as file:
            for rows in iter_rows(header):
                first, last = np.searchsorted(self.index, [start, start + len(rows)])
                places = first + np.flatnonzero(kept[first:last])
                rows = rows.copy()
                rows[self.index[places] - start] = file.take(places)[:, : self.row_width]
                yield rows
                start += len(rows)


def lend(moments: Rows, adam: Adam, rows: torch.Tensor, steps: int) -> None:
    """Put the moments (n, 2 M) of the Gaussians at `rows` (n,) into an optimiser that has made `steps` steps."""
    adam.steps, at = steps, 0
    for kind in KINDS:
        for name in NAMES:
            state = adam.state[name][kind]
            width = state[0].numel() if len(state) else 0
            values = torch.from_numpy(np.ascontiguousarray(moments[:, at : at + width]))
            state[rows] = values.reshape(-1, *state.shape[1:]).to(state.device)
            at += width


def taken_back(adam: Adam, rows: torch.Tensor) -> Rows:
    """(n, 2 M) the other way."""
    parts = [adam.state[name][kind][rows].reshape(len(rows), -1).cpu().numpy() for kind in KINDS for name in NAMES]
    return np.concatenate(parts, axis=1)
