"""One patch: the part of the scene it owns, what surrounds it, and the cameras that train it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splatpipe.patches.box import Box
from splatpipe.patches.frame import Frame
from splatpipe.scene.arrays import Scene, lengths
from splatpipe.scene.tracks import kept_tracks

SAMPLE = 20_000  # points that stand for all when distances are measured


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
        chosen = np.zeros(len(Role), bool)
        chosen[list(roles)] = True
        return self.point_index[chosen[self.point_role]]

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
        frame = Frame.from_json(data["frame"])
        core, buffered = Box.from_json(data["core"]), Box.from_json(data["buffered"])
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


def observed_distances(scene: Scene, patch: Patch, points: NDArray[np.int64]) -> NDArray[np.float64]:
    """Distances from the patch's cameras to those of the scene's points at index `points` that each observes.

    Of many points, an even sample stands for all.
    """
    points = points[:: max(len(points) // SAMPLE, 1)]
    ours = np.full(scene.n_cameras, -1, np.int32)
    ours[patch.camera_index] = patch.camera_index
    offsets, cameras, _ = kept_tracks(scene, points, ours)
    return lengths(np.repeat(scene.points[points], np.diff(offsets), axis=0) - scene.centers[cameras])
