"""What a COLMAP camera says of its lens: a pinhole matrix, and the same at other sizes. pycolmap knows every model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from splatpipe.errors import SceneError
from splatpipe.scene.arrays import Intrinsics, Scene
from splatpipe.scene.library import load_pycolmap

PINHOLE_MODELS = ("PINHOLE", "SIMPLE_PINHOLE")
MAX_SIDE = 1 << 20  # pixels; no image is that wide


def _colmap_camera(intrinsics: Intrinsics):  # type: ignore[no-untyped-def]  # pycolmap.Camera, imported lazily
    pycolmap = load_pycolmap()

    return pycolmap.Camera(
        camera_id=intrinsics.id,
        model=intrinsics.model,
        width=intrinsics.width,
        height=intrinsics.height,
        params=list(intrinsics.params),
    )


def pinhole_matrix(intrinsics: Intrinsics) -> NDArray[np.float64]:
    """(3, 3) K of a COLMAP camera, distortion left aside; raises `SceneError` for what has none."""
    label = f"camera {intrinsics.id} ({intrinsics.model}, {intrinsics.width}x{intrinsics.height})"
    if not (0 < intrinsics.width <= MAX_SIDE and 0 < intrinsics.height <= MAX_SIDE):
        raise SceneError(f"{label} is no size of an image (1 to {MAX_SIDE:,} pixels a side); export the model again")
    camera = _colmap_camera(intrinsics)
    if intrinsics.model == "EQUIRECTANGULAR":
        raise SceneError(f"{label} is a panorama, which cannot be undistorted to a pinhole; cut it into views first")
    if not all(np.isfinite(intrinsics.params)) or camera.focal_length_x <= 0 or camera.focal_length_y <= 0:
        raise SceneError(
            f"{label} has parameters {list(intrinsics.params)}; a focal length must be finite and positive"
        )
    return np.asarray(camera.calibration_matrix(), np.float64)


def rescaled(scene: Scene, sizes: NDArray[np.int32]) -> Scene:
    """The scene with intrinsics and observations of images that really have `sizes` (equal for one intrinsics)."""
    first = np.unique(scene.intrinsics_index, return_index=True)[1]
    intrinsics = []
    for one, camera_index in zip(scene.intrinsics, first, strict=True):
        camera = _colmap_camera(one)
        camera.rescale(int(sizes[camera_index, 0]), int(sizes[camera_index, 1]))
        intrinsics.append(replace(one, width=camera.width, height=camera.height, params=tuple(camera.params.tolist())))
    return replace(
        scene,
        intrinsics=tuple(intrinsics),
        Ks=np.stack([pinhole_matrix(one) for one in intrinsics])[scene.intrinsics_index],
        sizes=np.array([(one.width, one.height) for one in intrinsics], np.int32)[scene.intrinsics_index],
        track_xy=scene.track_xy * (sizes / scene.sizes).astype(np.float32)[scene.track_cameras],
    )
