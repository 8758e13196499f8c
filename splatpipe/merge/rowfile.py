"""Single rows of a table on disk that is too large to hold, read and replaced where they are."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from splatpipe.merge.rows import Rows
from splatpipe.splatting.ply import PlyHeader, columns

WINDOW = 4096  # rows; of each window what lies between the first and the last row asked for is read in one piece


class RowFile:
    """Rows of `width` float32 from byte `offset` of a file on; their number and order stay.

    A process that is killed while rows are replaced leaves old and new rows, and at worst one that is part of each.
    """

    def __init__(self, path: Path, offset: int, width: int, *, writable: bool) -> None:
        self.path, self._offset, self._width = path, offset, width
        self._handle = path.open("r+b" if writable else "rb", buffering=0)

    @classmethod
    def of_splat(cls, header: PlyHeader) -> RowFile:
        """The Gaussians of a file that `splat_writer` wrote, only to be read."""
        width = len(columns(header.sh_degree))
        if header.row_bytes != 4 * width:
            raise ValueError(f"{header.path} is not in the layout of splat_writer")
        return cls(header.path, header.offset, width, writable=False)

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._handle.close()

    def take(self, index: NDArray[np.int64]) -> Rows:
        """(n, width) rows at ascending `index` (n,)."""
        rows = np.empty((len(index), self._width), np.float32)
        for part in self._windows(index):
            rows[part] = self._span(index[part])[index[part] - index[part.start]]
        return rows

    def put(self, index: NDArray[np.int64], rows: Rows) -> None:
        """Replace the rows at ascending `index` (n,) and wait until the disk has them."""
        for part in self._windows(index):
            span = self._span(index[part])
            span[index[part] - index[part.start]] = rows[part]
            self._seek(index[part.start])
            left = span.reshape(-1).view(np.uint8).data
            while left:
                left = left[self._handle.write(left) :]
        os.fsync(self._handle.fileno())

    def _windows(self, index: NDArray[np.int64]) -> Iterator[slice]:
        """Pieces of `index` that fall into one window each."""
        cuts = np.flatnonzero(np.diff(index // WINDOW)) + 1
        edges = [0, *cuts.tolist(), len(index)]
        yield from (slice(a, b) for a, b in itertools.pairwise(edges) if a < b)

    def _span(self, index: NDArray[np.int64]) -> Rows:
        """Every row from the first to the last of `index`."""
        self._seek(index[0])
        span = np.empty((int(index[-1] - index[0]) + 1, self._width), "<f4")
        left = span.reshape(-1).view(np.uint8).data
        while left:
            count = self._handle.readinto(left)
            if not count:
                raise OSError(f"{self.path}: became shorter while it was used")
            left = left[count:]
        return span

    def _seek(self, row: np.int64) -> None:
        self._handle.seek(self._offset + int(row) * 4 * self._width)
