"""Patch data sets altered for an experiment: fewer points or cameras, somebody else's points, other units."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from splatpipe.files import atomic_folder
from splatpipe.layout import PatchLayout
from splatpipe.scene.arrays import Scene, Similarity
from splatpipe.scene.colmap import assemble, read_model, write_model


def read_patch_scene(layout: PatchLayout) -> Scene:
    """The patch's data set as a scene in training coordinates. Raises `SceneError` when it cannot be read."""
    return assemble(read_model(layout.sparse), layout.sparse, layout.images)[0]


def with_points(cameras: Scene, points: Scene) -> Scene:
    """The cameras of one patch and the points of another, both where they stand in training coordinates; no tracks."""
    return replace(
        cameras,
        point_ids=points.point_ids,
        points=points.points,
        colors=points.colors,
        errors=points.errors,
        track_offsets=np.zeros(points.n_points + 1, np.int64),
        track_cameras=np.zeros(0, np.int32),
        track_xy=np.zeros((0, 2), np.float32),
    )


def recentred(scene: Scene) -> Similarity:
    """Median of the points to the origin, median distance of a camera to it to 1: what splatpipe itself aims at."""
    center = np.median(scene.points, axis=0)
    distance = float(np.median(np.linalg.norm(scene.centers - center, axis=1)))
    scale = 1.0 / distance if distance > 0 else 1.0
    x, y, z = (float(value) for value in -scale * center)
    return Similarity(scale, (x, y, z))


def distances(scene: Scene) -> NDArray[np.float64]:
    """(P,) of the points from their median position, in units of the median such distance."""
    found = np.linalg.norm(scene.points - np.median(scene.points, axis=0), axis=1)
    typical = float(np.median(found))
    return found / typical if typical > 0 else np.zeros(len(found))


def write_variant(
    scene: Scene, layout: PatchLayout, points: NDArray[np.bool_] | None = None, similarity: Similarity | None = None
) -> None:
    """Write `scene`, or those of its points (P,), moved by `similarity`, as a data set at `layout`; whole or not."""
    kept = np.flatnonzero(points) if points is not None else np.arange(scene.n_points)
    with atomic_folder(layout.root) as temporary:
        draft = PatchLayout(temporary)
        write_model(scene, np.arange(scene.n_cameras), kept, draft.sparse, similarity)
        link_folder(draft.images, scene.image_dir)


def link_folder(link: Path, target: Path) -> None:
    """Make `link` stand for the folder `target`; where links cannot be made, for each of its files."""
    target = target.resolve()
    try:
        link.symlink_to(target, target_is_directory=True)
    except OSError:
        for file in target.rglob("*"):
            if file.is_file():
                place = link / file.relative_to(target)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.hardlink_to(file.resolve())
