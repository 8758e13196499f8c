"""The ground frame in which a scene is cut: two ground axes and an up, never raw XY."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splatpipe.patches.settings import FrameName, Matrix
from splatpipe.scene.arrays import Scene

FIXED: dict[str, tuple[tuple[int, int, int], ...]] = {
    "xy": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "xz": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "yz": ((0, 1, 0), (0, 0, 1), (1, 0, 0)),
}
FLAT = 0.35  # the points are a plane if their spread along its normal is below this share of the next larger
ROUND = 0.7  # above this share the points have no plane to speak of
UPRIGHT = 0.6  # the cameras agree on an up if their up vectors average to at least this length
AGREE_DEGREES = 25.0
FACING = 0.8  # cosine above which a view straight at the points' plane says nothing about up
TRIM = (0.02, 0.98)  # quantiles between which points count, per axis; outliers must not turn the frame
MAX_POINTS = 200_000
YAW_STEPS = 180


@dataclass(frozen=True, eq=False)
class Frame:
    """A rotation used for cutting only; the data are never rotated. Rows: first ground axis, second, up."""

    rotation: NDArray[np.float64]  # (3, 3) scene to frame
    source: str  # "points", "cameras", "axes"
    message: str  # one sentence: where up comes from and what disagrees
    disagreement_degrees: float | None = None  # between the points' normal and the cameras' up, if both exist

    def apply(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """(N, 3) scene positions in the frame, each axis in one piece of memory.

        Written out instead of a matrix product, whose rounding depends on where in the array a row stands:
        a point must fall on the same side of a cut in every array it is in.
        """
        x, y, z = np.asarray(points, np.float64).T
        return np.stack([row[0] * x + row[1] * y + row[2] * z for row in self.rotation]).T

    def ground(self, place: Sequence[float]) -> NDArray[np.float64]:
        """(2,) ground coordinates of a scene position (3,)."""
        return self.apply(np.array([place]))[0, :2]

    @property
    def agrees(self) -> bool:
        """Whether points and cameras say the same, as far as both say anything."""
        return self.disagreement_degrees is None or self.disagreement_degrees <= AGREE_DEGREES

    def to_json(self) -> dict[str, Any]:
        return {
            "rotation": self.rotation.tolist(),
            "source": self.source,
            "message": self.message,
            "disagreement_degrees": self.disagreement_degrees,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Frame:
        return cls(np.array(data["rotation"]), data["source"], data["message"], data["disagreement_degrees"])


def ground_frame(scene: Scene, name: FrameName | Matrix = "auto") -> Frame:
    """The frame called `name`, the one given as a matrix, or the one estimated from the scene.

    Aerial views straight down and a facade seen from the front look the same here, and both are cut in their plane.

    A scene whose points lie in a plane (terrain, a reef, a facade) is cut in that plane. Any other (rooms,
    objects) is cut across the cameras' up, or across the points' least spread where cameras have no common up.
    """
    if not isinstance(name, str):
        left, _, right = np.linalg.svd(np.array(name, np.float64))  # the nearest rotation, without its rounding
        return Frame(left @ right, "axes", "the frame is a matrix, as set")
    if name != "auto":
        return Frame(np.array(FIXED[name], np.float64), "axes", f"the frame is {name}, as set")
    points = _normalised(scene.points)
    normal, flatness = _principal_plane(points)
    up = _camera_up(scene)
    facing = flatness < FLAT and float(np.median(np.abs(scene.viewmats[:, 2, :3] @ normal))) > FACING
    if up is None or facing:
        up_vector, source, angle = _towards_cameras(normal, scene), "points", None
        reason = "the cameras look straight at it" if facing else "the cameras have no common up"
        message = f"up is across the points' plane; {reason}"
    else:
        angle = float(np.degrees(np.arccos(np.clip(abs(normal @ up), 0, 1)))) if flatness < ROUND else None
        source = "points" if flatness < FLAT else "cameras"
        up_vector = _towards_cameras(normal, scene) if source == "points" else up
        message = _describe(source, angle)
    return Frame(_with_yaw(up_vector, points), source, message, angle)


def _describe(source: str, angle: float | None) -> str:
    basis = "across the points' plane" if source == "points" else "the cameras' up, since the points are no plane"
    if angle is None:
        return f"up is {basis}"
    relation = "agree within" if angle <= AGREE_DEGREES else "disagree by"
    degrees = max(round(angle), 1)
    return f"up is {basis}; points and cameras {relation} {degrees} degree{'s' * (degrees > 1)}"


def _normalised(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred, of median radius 1, trimmed and rounded, so that the scene's units leave no trace in the result."""
    points = points[:: max(len(points) // MAX_POINTS, 1)]
    points = points - np.median(points, axis=0)
    radius = float(np.median(np.linalg.norm(points, axis=1)))
    points = np.round(points / (radius or 1.0), 9)
    low, high = np.quantile(points, TRIM, axis=0)
    inside = ((points >= low) & (points <= high)).all(axis=1)
    return points[inside] if inside.sum() >= 3 else points


def _principal_plane(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Unit normal of least spread, and that spread over the next larger one (0 flat, 1 round)."""
    centred = points - points.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    normal = vectors[:, 0] * np.sign(vectors[np.argmax(np.abs(vectors[:, 0])), 0])
    if values[1] <= 1e-9 * values[2]:  # a line or a single place has no plane
        return normal, 1.0
    return normal, float(np.sqrt(max(values[0], 0) / values[1]))


def _camera_up(scene: Scene) -> NDArray[np.float64] | None:
    """Where the cameras' common up points, or None if they have none.

    Photographers keep the horizon level, so up is across all the cameras' x axes; that holds for views straight
    down as well, whose own up points along the flight. With a single heading only the mean up is left.
    """
    right, up = scene.viewmats[:, 0, :3], -scene.viewmats[:, 1, :3]
    mean_up = up.mean(axis=0)
    values, vectors = np.linalg.eigh(right.T @ right / len(right))
    if values[1] > 0.1 and values[0] < 0.2 * values[1]:
        axis = vectors[:, 0]
        back = -scene.viewmats[:, 2, :3].mean(axis=0)  # views look down more often than up
        side = axis @ mean_up if abs(axis @ mean_up) > 0.1 else axis @ back
        return axis if side >= 0 else -axis
    length = float(np.linalg.norm(mean_up))
    return mean_up / length if length >= UPRIGHT else None


def _towards_cameras(normal: NDArray[np.float64], scene: Scene) -> NDArray[np.float64]:
    side = np.median(scene.centers @ normal) - np.median(scene.points @ normal)
    return normal if side >= 0 else -normal


def _with_yaw(up: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3, 3) with rows ground, ground, up, turned so that the points' rectangle is smallest, longer side first."""
    helper = np.eye(3)[int(np.argmin(np.abs(up)))]
    first = np.cross(helper, up)
    first /= np.linalg.norm(first)
    ground = np.stack([first, np.cross(up, first)])
    angles = np.arange(YAW_STEPS) * (np.pi / 2 / YAW_STEPS)
    turns = np.stack([np.cos(angles), np.sin(angles), -np.sin(angles), np.cos(angles)], axis=1).reshape(-1, 2, 2)
    flat = _hull(points @ ground.T)
    extents = np.stack([np.ptp(flat @ turn.T, axis=0) for turn in turns])
    areas = extents.prod(axis=1)
    best = int(np.argmax(areas <= areas.min() * (1 + 1e-6) + 1e-12))  # the first of equals, whatever the rounding
    axes = turns[best] @ ground
    if extents[best, 1] > extents[best, 0] * (1 + 1e-6):
        axes = np.stack([axes[1], -axes[0]])
    return np.stack([*axes, up])


def _hull(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The corners of the convex hull of (N, 2) points, or the points themselves where there is none."""
    from scipy.spatial import ConvexHull, QhullError

    try:
        return points[ConvexHull(points).vertices]
    except (QhullError, ValueError):
        return points
