"""A patch as LichtFeld Studio wants it, and what it should find there."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from splatpipe.errors import SceneError
from splatpipe.layout import PatchLayout
from splatpipe.scene.binary import read_binary
from splatpipe.scene.model import Model
from splatpipe.scene.writing import write_binary

BYTES_PER_PIXEL = 3


@dataclass(frozen=True)
class Facts:
    """What one training reads: counts, the widest image in pixels, its decoded size, and LFS's scene scale."""

    images: int
    points: int
    widest: int
    decoded_bytes: int
    scene_scale: float


def read_patch(patch: PatchLayout, skip: Collection[str] = ()) -> Model:
    """The model of a patch without the images named in `skip`; every point stays.

    Raises SceneError when it cannot be read or nothing is left.
    """
    model = read_binary(patch.sparse)
    kept = np.array([name not in set(skip) for name in model.names], bool)
    if not kept.any() or not len(model.points):
        raise SceneError(f"{patch.root}: {int(kept.sum())} images and {len(model.points)} points are left to train.")
    return model if kept.all() else _take_images(model, kept)


def _take_images(model: Model, kept: np.ndarray) -> Model:
    row = np.cumsum(kept, dtype=np.int32) - 1
    seen = kept[model.obs_images]
    return replace(
        model,
        image_ids=model.image_ids[kept],
        names=tuple(name for name, keep in zip(model.names, kept, strict=True) if keep),
        camera_ids=model.camera_ids[kept],
        quats=model.quats[kept],
        translations=model.translations[kept],
        obs_images=row[model.obs_images[seen]],
        obs_points=model.obs_points[seen],
        obs_xy=model.obs_xy[seen],
    )


def facts(model: Model) -> Facts:
    """What LFS should report of `model`. Its scene scale is the median distance of points to the mean camera centre."""
    from scipy.spatial.transform import Rotation

    sizes = [(model.cameras[int(i)].width, model.cameras[int(i)].height) for i in model.camera_ids]
    centers = -Rotation.from_quat(model.quats, scalar_first=True).inv().apply(model.translations)
    distances = np.linalg.norm(model.points - centers.mean(axis=0), axis=1)
    return Facts(
        images=len(model.names),
        points=len(model.points),
        widest=max(width for width, _ in sizes),
        decoded_bytes=sum(width * height for width, height in sizes) * BYTES_PER_PIXEL,
        scene_scale=float(np.median(distances)),
    )


def stage(patch: PatchLayout, model: Model, skip: Collection[str], folder: Path) -> Path:
    """The data set to train: the patch itself, or, when images are skipped, a reduced one in `folder`."""
    if not skip:
        return patch.root.resolve()
    staged = PatchLayout(folder)
    write_binary(staged.sparse, model)
    staged.images.symlink_to(patch.images.resolve(), target_is_directory=True)
    if patch.masks.is_dir():
        staged.masks.symlink_to(patch.masks.resolve(), target_is_directory=True)
    return folder.resolve()
