"""One patch: the part of the scene it owns, what surrounds it, and the cameras that train it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splatpipe.patches.frame import Frame
from splatpipe.scene.arrays import Scene


@dataclass(frozen=True, eq=False)
class Box:
    """An axis-aligned box of the cutting frame, lower <= x < upper; bounds may be infinite."""

    lower: NDArray[np.float64]  # (3,)
    upper: NDArray[np.float64]  # (3,)

    @classmethod
    def everything(cls) -> Box:
        return cls(np.full(3, -np.inf), np.full(3, np.inf))

    def contains(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """(N,) for (N, 3) points in the cutting frame. Boxes that share a face share no point."""
        inside = np.ones(len(points), bool)
        for axis in range(3):
            if self.lower[axis] > -np.inf:
                inside &= points[:, axis] >= self.lower[axis]
            if self.upper[axis] < np.inf:
                inside &= points[:, axis] < self.upper[axis]
        return inside

    def cut(self, axis: int, at: float) -> tuple[Box, Box]:
        """The part below `at` along `axis`, and the rest."""
        lower, upper = self.lower.copy(), self.upper.copy()
        upper[axis] = lower[axis] = at
        return Box(self.lower, upper), Box(lower, self.upper)

    def grown(self, margin: float) -> Box:
        return Box(self.lower - margin, self.upper + margin)

    def union(self, other: Box) -> Box | None:
        """The box that both make together, or None if together they make none."""
        differ = np.flatnonzero((self.lower != other.lower) | (self.upper != other.upper))
        if len(differ) != 1:
            return None
        axis = differ[0]
        if self.upper[axis] != other.lower[axis] and other.upper[axis] != self.lower[axis]:
            return None
        return Box(np.minimum(self.lower, other.lower), np.maximum(self.upper, other.upper))

    def to_json(self) -> dict[str, list[float | None]]:
        """Infinite bounds become null."""
        return {"lower": _without_infinity(self.lower), "upper": _without_infinity(self.upper)}

    @classmethod
    def from_json(cls, data: dict[str, list[float | None]]) -> Box:
        lower = [-np.inf if value is None else value for value in data["lower"]]
        upper = [np.inf if value is None else value for value in data["upper"]]
        return cls(np.array(lower), np.array(upper))


def _without_infinity(values: NDArray[np.float64]) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


class Role(IntEnum):
    """Why a point is in a patch."""

    CORE = 0  # the patch owns it
    BUFFER = 1  # round the core, so that borders are trained from both sides
    BACKGROUND = 2  # far off, thinned: so that nothing inside has to explain it


@dataclass(frozen=True, eq=False)
class Patch:
    """Indices are into the `Scene` that was split, ascending."""

    id: str  # p000, p001, ...: the same for the same scene and settings
    core: Box
    buffered: Box
    frame: Frame
    point_index: NDArray[np.int64]  # (N,)
    point_role: NDArray[np.uint8]  # (N,) of `Role`
    camera_index: NDArray[np.int64]  # (M,) training cameras
    camera_reasons: tuple[str, ...]  # (M,)
    holdout_cameras: NDArray[np.int64]  # (H,) evaluated here, never trained on

    def points_with(self, *roles: Role) -> NDArray[np.int64]:
        """Scene indices of the points in any of `roles`."""
        return self.point_index[np.isin(self.point_role, roles)]

    def to_json(self, scene: Scene) -> dict[str, Any]:
        """Everything but the points, which stand in the patch's own model."""
        return {
            "id": self.id,
            "frame": self.frame.to_json(),
            "core": self.core.to_json(),
            "buffered": self.buffered.to_json(),
            "points": {role.name.lower(): int((self.point_role == role).sum()) for role in Role},
            "cameras": [
                {"image": scene.names[i], "image_id": int(scene.image_ids[i]), "reason": reason}
                for i, reason in zip(self.camera_index, self.camera_reasons, strict=True)
            ],
            "holdout": [scene.names[i] for i in self.holdout_cameras],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any], scene: Scene, point_ids: NDArray[np.int64]) -> Patch:
        """The patch that `to_json` described, given the COLMAP ids of its points. Roles follow from the boxes."""
        row = {name: i for i, name in enumerate(scene.names)}
        frame, core, buffered = (
            Frame.from_json(data["frame"]),
            Box.from_json(data["core"]),
            Box.from_json(data["buffered"]),
        )
        point_index = np.searchsorted(scene.point_ids, np.sort(point_ids))
        return cls(
            id=data["id"],
            core=core,
            buffered=buffered,
            frame=frame,
            point_index=point_index,
            point_role=point_roles(frame.apply(scene.points[point_index]), core, buffered),
            camera_index=np.array([row[camera["image"]] for camera in data["cameras"]], np.int64),
            camera_reasons=tuple(camera["reason"] for camera in data["cameras"]),
            holdout_cameras=np.array([row[name] for name in data["holdout"]], np.int64),
        )


def point_roles(points: NDArray[np.float64], core: Box, buffered: Box) -> NDArray[np.uint8]:
    """(N,) `Role` of (N, 3) points in the cutting frame."""
    roles = np.full(len(points), Role.BACKGROUND, np.uint8)
    roles[buffered.contains(points)] = Role.BUFFER
    roles[core.contains(points)] = Role.CORE
    return roles
