"""Who sees what: rows of the scene's track arrays, gathered without a Python loop."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from splatpipe.compiled import fast
from splatpipe.scene.arrays import Scene


def group(keys: NDArray[np.integer], n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The stable order that sorts `keys` (each 0 to n - 1), and (n + 1,) offsets of the groups in it.

    Counts instead of comparing, which for the observations of a large scene takes a fraction of the time of a sort.
    """
    offsets = np.concatenate([[0], np.cumsum(np.bincount(keys, minlength=n))]).astype(np.int64)
    order = np.empty(len(keys), np.int64)
    fast(_place, len(keys))(keys, offsets[:-1].copy(), order)
    return order, offsets


def _place(keys, free, order):  # type: ignore[no-untyped-def]
    """Put each index where its group has room. Compiled for many keys."""
    for i in range(len(keys)):
        order[free[keys[i]]] = i
        free[keys[i]] += 1


def point_of_observation(scene: Scene) -> NDArray[np.int64]:
    """(T,) the point index of every observation of the scene."""
    return np.repeat(np.arange(scene.n_points), np.diff(scene.track_offsets))


def by_camera(scene: Scene) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """(C + 1,) offsets and (T,) point indices: camera c observes `points[offsets[c] : offsets[c + 1]]`, ascending."""
    counts = observation_counts(scene)
    ends = np.cumsum(counts)
    points = np.empty(len(scene.track_cameras), np.int32)
    fast(_turn, len(points))(scene.track_offsets, scene.track_cameras, ends - counts, points)
    return np.concatenate([[0], ends]).astype(np.int64), points


def _turn(offsets, cameras, free, points):  # type: ignore[no-untyped-def]
    """From CSR by point to CSR by camera. Compiled for many observations."""
    for p in range(len(offsets) - 1):
        for t in range(offsets[p], offsets[p + 1]):
            points[free[cameras[t]]] = p
            free[cameras[t]] += 1


def kept_tracks(
    scene: Scene, points: NDArray[np.int64], row: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """The tracks of some points as CSR, restricted to cameras with a `row` (C,) that is not -1, which replaces them."""
    steps = int((scene.track_offsets[points + 1] - scene.track_offsets[points]).sum())
    offsets, rows, xy = np.zeros(len(points) + 1, np.int64), np.empty(steps, np.int32), np.empty((steps, 2), np.float32)
    keep = fast(_copy_kept, steps)
    keep(points, scene.track_offsets, scene.track_cameras, scene.track_xy, row, offsets, rows, xy)
    return offsets, rows[: offsets[-1]], xy[: offsets[-1]]


def _copy_kept(points, offsets, cameras, xy, row, ends, rows, kept_xy):  # type: ignore[no-untyped-def]
    at = 0
    for i in range(len(points)):
        for t in range(offsets[points[i]], offsets[points[i] + 1]):
            if row[cameras[t]] >= 0:
                rows[at] = row[cameras[t]]
                kept_xy[at, 0], kept_xy[at, 1] = xy[t, 0], xy[t, 1]
                at += 1
        ends[i + 1] = at


def observation_counts(scene: Scene) -> NDArray[np.int64]:
    """(C,) how many points each camera observes."""
    return np.bincount(scene.track_cameras, minlength=scene.n_cameras)
