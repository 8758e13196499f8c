"""A patch on disk, as a COLMAP data set in training coordinates that any trainer opens."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from splatpipe.errors import SceneError
from splatpipe.files import atomic_folder, read_json, write_json
from splatpipe.layout import PatchLayout
from splatpipe.patches.patch import SAMPLE, Patch, Role, observed_distances
from splatpipe.scene.arrays import Scene, Similarity, lengths
from splatpipe.scene.colmap import assemble, read_model, write_model
from splatpipe.scene.masks import mask_name, mask_paths
from splatpipe.scene.offset import NONE


class HasJson(Protocol):
    """Anything that goes into patch.json."""

    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True, eq=False)
class PatchData:
    """What a training reads: C cameras in name order, P points, all in training coordinates."""

    names: tuple[str, ...]
    image_paths: tuple[Path, ...]
    viewmats: NDArray[np.float64]  # (C, 4, 4) world to camera, OpenCV axes
    Ks: NDArray[np.float64]  # (C, 3, 3) pixels
    sizes: NDArray[np.int32]  # (C, 2) width, height
    points: NDArray[np.float64]  # (P, 3)
    colors: NDArray[np.uint8]  # (P, 3)
    track_offsets: NDArray[np.int64]  # (P + 1,) of each point's observations in the array below
    track_cameras: NDArray[np.int32]  # (T,)
    masks: tuple[Path | None, ...] = ()  # of each image, None without one

    def observed(self, cameras: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        """For each of `cameras`, the points that it observes."""
        points = np.repeat(np.arange(len(self.points)), np.diff(self.track_offsets))
        return tuple(points[self.track_cameras == camera] for camera in cameras)


def normalising_similarity(scene: Scene, patch: Patch) -> Similarity:
    """Uniform scale and translation to training coordinates, covariant to the scene's own units and origin.

    The median of the core points moves to the origin; the median distance between a camera of the patch and a
    core point that it observes becomes 1. Without observations, camera centres or the points' spread serve.
    """
    core = patch.points_with(Role.CORE)
    core = core if len(core) else patch.point_index
    center = np.array([np.median(axis) for axis in scene.points[core].T])
    scale = 1.0 / _typical_distance(scene, patch, core, center)
    x, y, z = (float(value) for value in -scale * center)
    return Similarity(float(scale), (x, y, z))


def _typical_distance(scene: Scene, patch: Patch, core: NDArray[np.int64], center: NDArray[np.float64]) -> float:
    distances = observed_distances(scene, patch, core)
    core = core[:: max(len(core) // SAMPLE, 1)]
    candidates = (
        distances,
        lengths(scene.centers[patch.camera_index] - center),
        lengths(scene.points[core] - center),
    )
    medians = (float(np.median(values)) for values in candidates if len(values))
    return next((value for value in medians if np.isfinite(value) and value > 0), 1.0)


def write_dataset(
    scene: Scene,
    patch: Patch,
    layout: PatchLayout,
    stats: HasJson | None,
    preflight: HasJson | None,
    similarity: Similarity,
) -> None:
    """Write the patch to `layout`, whole or not at all: linked images, model, hold-out data set, patch.json."""
    with atomic_folder(layout.root) as temporary:
        draft = PatchLayout(temporary)
        write_model(scene, patch.camera_index, patch.point_index, draft.sparse, similarity)
        _link_images(scene, patch.camera_index, draft.images, layout)
        _link_masks(scene, patch.camera_index, draft.masks, layout)
        if len(patch.holdout_cameras):
            held = PatchLayout(draft.holdout)
            # Views to be judged need no points; repeating the patch's would double what is written.
            write_model(scene, patch.holdout_cameras, patch.point_index[:0], held.sparse, similarity)
            _link_images(scene, patch.holdout_cameras, held.images, layout)
            _link_masks(scene, patch.holdout_cameras, held.masks, layout)
        record = patch.to_json(scene) | {
            "similarity": {"scale": similarity.scale, "translation": list(similarity.translation)},
            "stats": stats.to_json() if stats else None,
            "preflight": preflight.to_json() if preflight else None,
            "masks": masked_images(scene, patch),
        }
        if scene.offset != NONE:
            record["offset"] = list(scene.offset)  # of all positions here; in the model they are larger by it
        write_json(draft.patch_json, record)


def masked_images(scene: Scene, patch: Patch) -> list[str]:
    """Names of the patch's images, hold-out views too, that have a mask."""
    names = [scene.names[i] for i in (*patch.camera_index, *patch.holdout_cameras)]
    return [name for name, path in zip(names, mask_paths(scene.mask_dir, names), strict=True) if path]


def leads_to(scene: Scene, patch: Patch, layout: PatchLayout) -> bool:
    """Whether the patch's images are still those of the scene; its first link tells. The scene may have been moved."""
    if not len(patch.camera_index):
        return True
    name = scene.names[int(patch.camera_index[0])]
    link = layout.images / name
    return link.exists() and (not link.is_symlink() or link.resolve() == (scene.image_dir / name).resolve())


def _link_images(scene: Scene, cameras: NDArray[np.int64], folder: Path, layout: PatchLayout) -> None:
    _link_files(scene.image_dir, [scene.names[i] for i in cameras], folder, layout)


def _link_masks(scene: Scene, cameras: NDArray[np.int64], folder: Path, layout: PatchLayout) -> None:
    if scene.mask_dir is not None:
        found = [mask_name(scene.mask_dir, scene.names[i]) for i in cameras]
        _link_files(scene.mask_dir, [name for name in found if name is not None], folder, layout)


def _link_files(source: Path, names: Iterable[str], folder: Path, layout: PatchLayout) -> None:
    """Link the files called `names` in `source` below `folder`, sub-folders kept.

    Links are relative where scene and run share a tree, so that the tree can be moved; `folder` is a sibling
    of its final place, at the same depth.
    """
    source = source.resolve()
    root = layout.root.resolve()
    run = root.parent.parent
    relative = source.is_relative_to(run) or root.is_relative_to(source.parent)
    pointers: dict[str, Path] = {}  # from the links of each sub-folder to their targets' folder
    for name in names:
        parent, _, last = name.rpartition("/")
        if parent not in pointers:
            place, beside = folder / parent, source / parent
            place.mkdir(parents=True, exist_ok=True)
            pointers[parent] = Path(os.path.relpath(beside, place.resolve())) if relative else beside
        _link(folder / name, pointers[parent] / last, source / name)


def _link(link: Path, pointer: Path, target: Path) -> None:
    try:
        link.symlink_to(pointer)
    except OSError:  # file systems without symbolic links
        try:
            link.hardlink_to(target)
        except OSError:
            shutil.copy2(target, link)


def read_dataset(folder: Path) -> PatchData:
    """The data set at `folder` (a patch, or its `holdout/`), in name order. Raises `SceneError`."""
    layout = PatchLayout(folder)
    if not layout.sparse.is_dir():
        raise SceneError(f"{folder} is no patch data set: it has no sparse/0; split the scene again")
    scene = assemble(read_model(layout.sparse), layout.sparse, layout.images)[0]
    return PatchData(
        names=scene.names,
        image_paths=tuple(layout.images / name for name in scene.names),
        viewmats=scene.viewmats,
        Ks=scene.Ks,
        sizes=scene.sizes,
        points=scene.points,
        colors=scene.colors,
        track_offsets=scene.track_offsets,
        track_cameras=scene.track_cameras,
        masks=mask_paths(layout.masks if layout.masks.is_dir() else None, scene.names),
    )


def read_patch(layout: PatchLayout, scene: Scene) -> tuple[Patch, Similarity]:
    """The patch that `write_dataset` wrote for this scene, and its similarity."""
    data = read_json(layout.patch_json)
    similarity = Similarity(data["similarity"]["scale"], tuple(data["similarity"]["translation"]))
    return Patch.from_json(data, scene, read_model(layout.sparse).point_ids), similarity
