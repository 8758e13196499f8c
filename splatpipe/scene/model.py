"""A COLMAP model as tables, just as its files hold it: the common result of the binary and the text reader."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from splatpipe.compiled import fast, in_parts
from splatpipe.scene.arrays import Intrinsics
from splatpipe.scene.library import load_pycolmap

DENSE = 8  # ids that span less than this many times their count are looked up in a table


@dataclass(frozen=True, eq=False)
class Model:
    """C registered images in file order, T observations that have a 3D point, P points in file order."""

    cameras: dict[int, Intrinsics]  # by COLMAP camera id
    image_ids: NDArray[np.int64]  # (C,)
    names: tuple[str, ...]  # (C,)
    camera_ids: NDArray[np.int64]  # (C,)
    quats: NDArray[np.float64]  # (C, 4) wxyz, world to camera, as stored (not normalised)
    translations: NDArray[np.float64]  # (C, 3)
    obs_images: NDArray[np.int32]  # (T,) row of the observing image, ascending
    obs_points: NDArray[np.int64]  # (T,) COLMAP point ids
    obs_xy: NDArray[np.float32]  # (T, 2) pixels
    point_ids: NDArray[np.int64]  # (P,)
    points: NDArray[np.float64]  # (P, 3)
    colors: NDArray[np.uint8]  # (P, 3)
    errors: NDArray[np.float64]  # (P,)


@cache
def camera_models() -> dict[int, tuple[str, int]]:
    """COLMAP's camera models: number to name and parameter count, as the installed pycolmap knows them."""
    pycolmap = load_pycolmap()

    found = {}
    for name, member in pycolmap.CameraModelId.__members__.items():
        if name != "INVALID":
            found[int(member)] = (name, len(pycolmap.Camera.create_from_model_name(1, name, 1.0, 2, 2).params))
    return found


def rows_of_ids(ids: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int32]:
    """(len(wanted),) the row of each wanted id in the ascending `ids`, -1 where it is not there."""
    rows = np.full(len(wanted), -1, np.int32)
    if not len(ids) or not len(wanted):
        return rows
    first, span = int(ids[0]), int(ids[-1]) - int(ids[0]) + 1
    if span <= DENSE * len(ids):
        table = np.full(span, -1, np.int32)  # a look-up is several times faster than a search
        table[ids - first] = np.arange(len(ids), dtype=np.int32)
        look_up = fast(_look_up, len(wanted))
        in_parts(lambda i, j: look_up(table, first, wanted[i:j], rows[i:j]), len(wanted))
        return rows
    found = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    return np.where(ids[found] == wanted, found, -1).astype(np.int32)


def _look_up(table, first, wanted, rows):  # type: ignore[no-untyped-def]
    """Compiled for many ids."""
    for i in range(len(wanted)):
        at = wanted[i] - first
        if 0 <= at < len(table):
            rows[i] = table[at]
