"""Which points each camera sees, as one table that drives ownership, camera choice and background."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splatpipe.scene.arrays import Scene
from splatpipe.scene.tracks import group, point_of_observation

POOR = 20  # a camera with fewer tracked points is also judged by what projects into its image
SAMPLE = 20_000  # points projected for such a camera
NEAR = 0.05  # of the camera's median depth; nearer points may be behind its back


@dataclass(frozen=True, eq=False)
class Visibility:
    """CSR by camera: camera c sees `points[offsets[c] : offsets[c + 1]]`."""

    offsets: NDArray[np.int64]  # (C + 1,)
    points: NDArray[np.int64]  # (T,) point indices

    def counts(self) -> NDArray[np.int64]:
        """(C,) how many points each camera sees."""
        return np.diff(self.offsets)

    def pairs(self, cameras: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row into `cameras`, and point, of everything those cameras see."""
        lengths = self.offsets[cameras + 1] - self.offsets[cameras]
        rows = np.repeat(np.arange(len(cameras)), lengths)
        first = np.cumsum(lengths) - lengths
        at = np.arange(len(rows)) - first[rows] + self.offsets[cameras][rows]
        return rows, self.points[at]

    def without(self, points: NDArray[np.bool_]) -> Visibility:
        """The same, but for the points (P,) that nobody is to see."""
        if not points.any():
            return self
        kept = ~points[self.points]
        before = np.concatenate([[0], np.cumsum(kept)])
        return Visibility(before[self.offsets], self.points[kept])


def visibility(scene: Scene) -> Visibility:
    """Tracks, and for cameras with hardly any the points that project into their image (occlusion ignored)."""
    cameras, points = scene.track_cameras, point_of_observation(scene)
    tracked = np.bincount(cameras, minlength=scene.n_cameras)
    poor = np.flatnonzero(tracked < POOR)
    if len(poor):
        extra_cameras, extra_points = _projected(scene, poor)
        cameras = np.concatenate([cameras, extra_cameras])
        points = np.concatenate([points, extra_points])
        pair = np.unique(cameras.astype(np.int64) * scene.n_points + points)
        cameras, points = (pair // scene.n_points).astype(np.int32), pair % scene.n_points
    order, offsets = group(cameras, scene.n_cameras)
    return Visibility(offsets, points[order])


def _projected(scene: Scene, cameras: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    sample = np.arange(0, scene.n_points, max(scene.n_points // SAMPLE, 1))
    seen_by, seen = [], []
    for camera in cameras:
        inside = sample[projects_inside(scene, int(camera), sample)]
        seen.append(inside)
        seen_by.append(np.full(len(inside), camera, np.int32))
    return np.concatenate(seen_by), np.concatenate(seen)


def projects_inside(scene: Scene, camera: int, points: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N,) whether each of the scene's points at index `points` projects into the camera's image."""
    viewmat, K = scene.viewmats[camera], scene.Ks[camera]
    local = scene.points[points] @ viewmat[:3, :3].T + viewmat[:3, 3]
    depth = local[:, 2]
    ahead = depth > 0
    if not ahead.any():
        return ahead
    ahead &= depth > NEAR * np.median(depth[ahead])
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        xy = local[:, :2] / depth[:, None] * K[[0, 1], [0, 1]] + K[:2, 2]
        return ahead & ((xy >= 0) & (xy < scene.sizes[camera])).all(axis=1)
