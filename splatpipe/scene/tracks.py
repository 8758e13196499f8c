"""Who sees what: rows of the scene's track arrays, gathered without a Python loop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splatpipe.scene.arrays import Scene


@dataclass(frozen=True, eq=False)
class Observations:
    """T' observations, grouped by point: row of the point asked for, scene camera index, pixel position."""

    rows: NDArray[np.int64]  # (T',) into the `points` that were asked for
    cameras: NDArray[np.int32]  # (T',)
    xy: NDArray[np.float32]  # (T', 2)


def observations_of(scene: Scene, points: NDArray[np.integer]) -> Observations:
    """All observations of the scene's points at index `points`."""
    starts = scene.track_offsets[points]
    lengths = scene.track_offsets[np.asarray(points) + 1] - starts
    rows = np.repeat(np.arange(len(points)), lengths)
    first = np.cumsum(lengths) - lengths
    at = np.arange(len(rows)) - first[rows] + starts[rows]
    return Observations(rows, scene.track_cameras[at], scene.track_xy[at])


def point_of_observation(scene: Scene) -> NDArray[np.int64]:
    """(T,) the point index of every observation of the scene."""
    return np.repeat(np.arange(scene.n_points), np.diff(scene.track_offsets))


def observation_counts(scene: Scene) -> NDArray[np.int64]:
    """(C,) how many points each camera observes."""
    return np.bincount(scene.track_cameras, minlength=scene.n_cameras)
