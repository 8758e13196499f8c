"""Which points each camera sees, as one table that drives ownership, camera choice and background."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splatpipe.compiled import fast, in_parts
from splatpipe.scene.arrays import Scene
from splatpipe.scene.tracks import by_camera

POOR = 20  # a camera with fewer tracked points is also judged by what projects into its image
SAMPLE = 20_000  # points projected for such a camera
NEAR = 0.05  # of the camera's median depth; nearer points may be behind its back


@dataclass(frozen=True, eq=False)
class Visibility:
    """CSR by camera: camera c sees `points[offsets[c] : offsets[c + 1]]`."""

    offsets: NDArray[np.int64]  # (C + 1,)
    points: NDArray[np.int32]  # (T,) point indices

    def counts(self) -> NDArray[np.int64]:
        """(C,) how many points each camera sees."""
        return np.diff(self.offsets)

    def of(self, cameras: NDArray[np.int64]) -> Visibility:
        """What some cameras see, numbered anew in the order given."""
        offsets = np.concatenate([[0], np.cumsum(self.counts()[cameras])])
        points = np.empty(offsets[-1], np.int32)
        fast(_gather, len(points))(self.offsets, self.points, cameras, points)
        return Visibility(offsets, points)

    def views(self, cameras: NDArray[np.int64], n_points: int) -> NDArray[np.int32]:
        """(n_points,) how many of the cameras see each point."""
        views = np.zeros(n_points, np.int32)
        fast(_count, int(self.counts()[cameras].sum()))(self.offsets, self.points, cameras, views)
        return views

    def without(self, points: NDArray[np.bool_]) -> Visibility:
        """The same, but for the points (P,) that nobody is to see."""
        if not points.any():
            return self
        kept = ~points[self.points]
        before = np.concatenate([[0], np.cumsum(kept)])
        return Visibility(before[self.offsets], self.points[kept])


def _gather(offsets, points, cameras, gathered):  # type: ignore[no-untyped-def]
    at = 0
    for camera in cameras:
        for t in range(offsets[camera], offsets[camera + 1]):
            gathered[at] = points[t]
            at += 1


def _count(offsets, points, cameras, views):  # type: ignore[no-untyped-def]
    for camera in cameras:
        for t in range(offsets[camera], offsets[camera + 1]):
            views[points[t]] += 1


def visibility(scene: Scene) -> Visibility:
    """Tracks, and for cameras with hardly any the points that project into their image (occlusion ignored).

    What a camera observes behind its back is left out: poses can be wrong, and it would see no Gaussian there.
    """
    offsets, points = _in_front(scene, *by_camera(scene))
    poor = np.flatnonzero(np.diff(offsets) < POOR)
    if not len(poor):
        return Visibility(offsets, points)
    parts = np.split(points, offsets[1:-1])
    for camera, projected in zip(poor, _projected(scene, poor), strict=True):
        parts[camera] = np.union1d(parts[camera], projected).astype(np.int32)
    lengths = np.array([len(part) for part in parts])
    return Visibility(np.concatenate([[0], np.cumsum(lengths)]), np.concatenate(parts))


def _in_front(
    scene: Scene, offsets: NDArray[np.int64], points: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    is_before = np.empty(len(points), np.bool_)
    axes = np.ascontiguousarray(scene.viewmats[:, 2])

    look = fast(_look, len(points))
    in_parts(lambda i, j: look(axes, scene.points, offsets, points, i, j, is_before), np.diff(offsets))
    if is_before.all():
        return offsets, points
    return np.concatenate([[0], np.cumsum(is_before)])[offsets], points[is_before]


def _look(axes, positions, offsets, points, first, last, is_before):  # type: ignore[no-untyped-def]
    for camera in range(first, last):
        a, b, c, d = axes[camera, 0], axes[camera, 1], axes[camera, 2], axes[camera, 3]
        for t in range(offsets[camera], offsets[camera + 1]):
            p = points[t]
            is_before[t] = a * positions[p, 0] + b * positions[p, 1] + c * positions[p, 2] + d > 0


def _projected(scene: Scene, cameras: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The points that project into the image of each of the cameras."""
    sample = np.arange(0, scene.n_points, max(scene.n_points // SAMPLE, 1))
    return [sample[projects_inside(scene, int(camera), sample)] for camera in cameras]


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
