"""A splat as a browser can take it: the Gaussians that show most, without view-dependent colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from splatpipe.splatting.ply import Splats, from_rows, iter_rows, read_header

OPACITY, SCALES = 9, slice(10, 13)  # columns of rows without SH bands


def thinned(path: Path, most: int) -> Splats:
    """At most `most` Gaussians of a splat file, those with the largest opacity times area. Raises SplatFileError."""
    header = read_header(path)
    weights = np.concatenate([_weight(rows) for rows in iter_rows(header, 0)] or [np.zeros(0, np.float32)])
    kept = np.isfinite(weights)
    if kept.sum() > most:
        order = np.argpartition(np.where(kept, weights, -np.inf), len(weights) - most)
        kept[order[: len(weights) - most]] = False
    rows, start = [np.zeros((0, 17), np.float32)], 0
    for chunk in iter_rows(header, 0):
        rows.append(chunk[kept[start : start + len(chunk)]])
        start += len(chunk)
    return from_rows(np.concatenate(rows))


def _weight(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N,) logarithm of opacity times the area of the two largest axes; not finite where a value is not."""
    scales = np.sort(rows[:, SCALES], axis=1)
    weight = -np.logaddexp(np.float32(0), -rows[:, OPACITY]) + scales[:, 1] + scales[:, 2]
    return np.where(np.isfinite(rows).all(axis=1), weight, np.nan).astype(np.float32)
