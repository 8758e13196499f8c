"""One COLMAP model in memory, as flat arrays.

"Camera" means a posed image, as in the 3DGS literature; COLMAP's "camera" is called `Intrinsics`.
All lengths are in scene units, all pixel coordinates have their origin at the top-left corner of
the top-left pixel (COLMAP's convention, which is also gsplat's).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Intrinsics:
    """One COLMAP camera: model name (`PINHOLE`, ...), size in pixels, parameters in COLMAP's order."""

    id: int
    model: str
    width: int
    height: int
    params: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Scene:
    """C cameras (posed images), P points, T observations. Cameras are sorted by image name."""

    model_dir: Path
    image_dir: Path
    intrinsics: tuple[Intrinsics, ...]
    image_ids: NDArray[np.int64]  # (C,) COLMAP image ids
    names: tuple[str, ...]  # (C,) relative to image_dir, with sub-folders
    intrinsics_index: NDArray[np.int32]  # (C,) into `intrinsics`
    viewmats: NDArray[np.float64]  # (C, 4, 4) world to camera, OpenCV axes
    Ks: NDArray[np.float64]  # (C, 3, 3) pinhole part of the intrinsics, pixels
    sizes: NDArray[np.int32]  # (C, 2) width, height in pixels
    point_ids: NDArray[np.int64]  # (P,) COLMAP point ids, sorted
    points: NDArray[np.float64]  # (P, 3)
    colors: NDArray[np.uint8]  # (P, 3) RGB
    errors: NDArray[np.float64]  # (P,) reprojection error, pixels
    track_offsets: NDArray[np.int64]  # (P + 1,) CSR offsets into the two arrays below
    track_cameras: NDArray[np.int32]  # (T,) index of the observing camera
    track_xy: NDArray[np.float32]  # (T, 2) the observation, pixels
    mask_dir: Path | None = None  # where `scene.masks.mask_paths` finds masks of images; None: there are none
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)  # taken off: a position in the model is ours + this

    @cached_property
    def centers(self) -> NDArray[np.float64]:
        """(C, 3) camera centres in world coordinates: -R^T t."""
        rotations, translations = self.viewmats[:, :3, :3], self.viewmats[:, :3, 3]
        return -np.einsum("cji,cj->ci", rotations, translations)

    @property
    def n_cameras(self) -> int:
        return len(self.names)

    @property
    def n_points(self) -> int:
        return len(self.points)


def lengths(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) lengths of (N, 3) vectors: the same numbers as `np.linalg.norm` along rows, several times as fast."""
    x, y, z = vectors.T
    return np.sqrt(x * x + y * y + z * z)


@dataclass(frozen=True)
class Similarity:
    """x_training = scale * x_scene + translation; no rotation, so SH coefficients stay valid."""

    scale: float
    translation: tuple[float, float, float]

    def apply(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """Scene to training coordinates; (..., 3)."""
        return np.asarray(points, np.float64) * self.scale + np.asarray(self.translation)

    def invert(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """Training to scene coordinates; (..., 3)."""
        return (np.asarray(points, np.float64) - np.asarray(self.translation)) / self.scale

    def apply_viewmats(self, viewmats: NDArray[np.floating]) -> NDArray[np.float64]:
        """(C, 4, 4) world-to-camera matrices of the same cameras in training coordinates.

        R stays; t' = scale * t - R @ translation, so that camera-space points are scaled only.
        """
        moved = np.array(viewmats, np.float64)
        rotations = moved[:, :3, :3]
        moved[:, :3, 3] = self.scale * moved[:, :3, 3] - rotations @ np.asarray(self.translation)
        return moved
