"""What a run folder knows of the scene: patches with their boxes, points and cameras, in scene coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from splatpipe.errors import RunFolderError, SplatpipeError
from splatpipe.files import read_json
from splatpipe.layout import PatchLayout, RunLayout
from splatpipe.patches.box import Box
from splatpipe.patches.dataset import PatchData, read_dataset
from splatpipe.patches.frame import Frame
from splatpipe.runfolder import read_run
from splatpipe.scene.arrays import Similarity

OUTLYING = (0.005, 0.995)  # quantiles between which points and cameras say how far the scene reaches


@dataclass(frozen=True, eq=False)
class Cameras:
    """C posed photographs of a patch, in scene coordinates."""

    names: tuple[str, ...]
    paths: tuple[Path, ...]
    viewmats: NDArray[np.float64]  # (C, 4, 4) world to camera, OpenCV axes
    Ks: NDArray[np.float64]  # (C, 3, 3) pixels
    sizes: NDArray[np.int32]  # (C, 2) width, height

    @property
    def centers(self) -> NDArray[np.float64]:
        """(C, 3)"""
        return -np.einsum("cji,cj->ci", self.viewmats[:, :3, :3], self.viewmats[:, :3, 3])


@dataclass(frozen=True, eq=False)
class PatchScenery:
    """One patch as it lies in the scene. `core` and `buffered` are boxes of `frame`."""

    id: str
    core: Box
    buffered: Box
    frame: Frame
    points: NDArray[np.float64]  # (N, 3) of the core
    colors: NDArray[np.uint8]  # (N, 3) RGB
    training: Cameras
    holdout: Cameras


def read_scenery(layout: RunLayout, most_points: int) -> tuple[PatchScenery, ...]:
    """Every patch on disk, with about `most_points` points in all. Raises `RunFolderError` when there is none."""
    folders = sorted(path.parent for path in layout.patches.glob("*/patch.json"))
    if not folders:
        read_run(layout)
        raise RunFolderError(f"{layout.root} has no patches yet; splatpipe run continues it")
    each = max(most_points // len(folders), 1)
    return tuple(_read_patch(PatchLayout(folder), each) for folder in folders)


def bounds(patches: Sequence[PatchScenery]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper corner (3,) of what is worth showing, in the frame of the patches."""
    frame = patches[0].frame
    clouds = [one.points for one in patches], [one.training.centers for one in patches]
    found = [frame.apply(np.concatenate(cloud)) for cloud in clouds if sum(map(len, cloud))]
    low = np.min([np.quantile(points, OUTLYING[0], axis=0) for points in found], axis=0)
    high = np.max([np.quantile(points, OUTLYING[1], axis=0) for points in found], axis=0)
    margin = 0.03 * float((high - low).max()) or 1.0
    return low - margin, high + margin


def _read_patch(layout: PatchLayout, most_points: int) -> PatchScenery:
    try:
        record = read_json(layout.patch_json)
        similarity = Similarity(record["similarity"]["scale"], tuple(record["similarity"]["translation"]))
        frame, core = Frame.from_json(record["frame"]), Box.from_json(record["core"])
        data = read_dataset(layout.root)
        points = similarity.invert(data.points)
        inside = np.flatnonzero(core.contains(frame.apply(points)))
        kept = inside[:: max(len(inside) // most_points, 1)]
        held = _cameras(read_dataset(layout.holdout), similarity) if record["holdout"] else _no_cameras()
        return PatchScenery(
            *(record["id"], core, Box.from_json(record["buffered"]), frame, points[kept], data.colors[kept]),
            *(_cameras(data, similarity), held),
        )
    except (OSError, ValueError, KeyError, SplatpipeError) as error:
        raise RunFolderError(f"{layout.root} cannot be read ({error}); splatpipe run writes it anew") from error


def _cameras(data: PatchData, similarity: Similarity) -> Cameras:
    x, y, z = similarity.translation
    back = Similarity(1 / similarity.scale, (-x / similarity.scale, -y / similarity.scale, -z / similarity.scale))
    return Cameras(data.names, data.image_paths, back.apply_viewmats(data.viewmats), data.Ks, data.sizes)


def _no_cameras() -> Cameras:
    return Cameras((), (), np.zeros((0, 4, 4)), np.zeros((0, 3, 3)), np.zeros((0, 2), np.int32))
