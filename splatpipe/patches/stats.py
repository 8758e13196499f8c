"""What is measured of a patch before it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from splatpipe.compiled import FEW
from splatpipe.patches.footprints import footprints
from splatpipe.patches.neighbours import nearest_distances, spatial_order
from splatpipe.patches.patch import Patch, Role, observed_distances
from splatpipe.scene.arrays import Scene, Similarity
from splatpipe.splatting.spacing import gsplat_sizes, lichtfeld_sizes, neighbour_distances

RUNGS = (0.1, 0.2, 0.3, 0.4)
ROBUST = (0.01, 0.99)  # quantiles of the robust extent
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
TrainerName = Literal["gsplat", "lichtfeld"]


@dataclass(frozen=True, eq=False)
class PatchStats:
    """Lengths are in scene units along the axes of the cutting frame, unless named `training`."""

    patch_id: str
    cameras: int
    holdout: int
    core_points: int
    buffer_points: int
    background_points: int
    extent_axes: tuple[float, float, float]  # 1-99 percentile range of core and buffer points
    full_extent_axes: tuple[float, float, float]  # their full range
    spacing: dict[str, float]  # quantiles of the mean distance to 3 neighbours: "q05" ... "q95", and "mean"
    median_depth: float  # camera to observed core point; NaN without observations
    init_scaling: float  # at which the two below are given
    initial_scale_training: dict[str, float]  # mean initial sigma by trainer, training units
    relative_size: dict[str, float]  # median of initial sigma over neighbour distance by trainer
    trainer: TrainerName  # whose Gaussians are counted below
    rungs: tuple[float, ...]
    visible: NDArray[np.int64]  # (rungs, cameras) initial Gaussians each training camera sees
    tiles: NDArray[np.int64]  # (cameras,) tile intersections at the first rung, at the size of the training images
    unit_area: NDArray[np.float64]  # (cameras,) sum of pi sigma_px^2 over the image's area, at init_scaling 1
    pixels: int  # of the largest training image
    seen_share: NDArray[np.float64]  # (N,) share of the training cameras that see each at the first rung

    @property
    def points(self) -> int:
        return self.core_points + self.buffer_points + self.background_points

    @property
    def extent(self) -> float:
        """The largest of the robust ranges: the number that chooses the first rung."""
        return max(self.extent_axes)

    @property
    def coverage_scaling(self) -> float | None:
        """The `init_scaling` at which the initial Gaussians cover the median image once; None if none is seen."""
        area = float(np.median(self.unit_area)) if len(self.unit_area) else 0.0
        return 1 / float(np.sqrt(area)) if area > 0 else None

    def to_json(self) -> dict[str, Any]:
        """Plain data; NaN becomes null, arrays their quantiles."""
        return {
            "cameras": self.cameras,
            "holdout": self.holdout,
            "points": {
                "core": self.core_points,
                "buffer": self.buffer_points,
                "background": self.background_points,
                "all": self.points,
            },
            "extent": self.extent,
            "extent_axes": list(self.extent_axes),
            "full_extent_axes": list(self.full_extent_axes),
            "spacing": self.spacing,
            "median_depth": self.median_depth if np.isfinite(self.median_depth) else None,
            "init_scaling": self.init_scaling,
            "initial_scale_training": self.initial_scale_training,
            "relative_size": self.relative_size,
            "trainer": self.trainer,
            "visible": {f"{rung:g}": counts.tolist() for rung, counts in zip(self.rungs, self.visible, strict=True)},
            "tiles": _quantiles(self.tiles),
            "coverage_scaling": self.coverage_scaling,
            "seen_share": _quantiles(self.seen_share),
        }


def patch_stats(
    scene: Scene,
    patch: Patch,
    similarity: Similarity,
    *,
    init_scaling: float = RUNGS[0],
    rungs: Sequence[float] = RUNGS,
    trainer: TrainerName = "gsplat",
    downscale: float = 1.0,
    max_width: int = 0,
) -> PatchStats:
    """Measure a patch. Initial sizes follow each trainer's own rule, in training coordinates.

    `downscale` and `max_width` (pixels, 0 for none) are those of the training, whose images decide what is seen.
    """
    extent, full = _extents(scene, patch)
    means = similarity.apply(scene.points[patch.point_index])
    order = spatial_order(means)
    neighbours = nearest_distances(means, order) if len(means) > FEW else neighbour_distances(means)
    distance = (neighbours[:, 0] + neighbours[:, 1] + neighbours[:, 2]) / 3
    unit_scales = {"gsplat": gsplat_sizes(neighbours), "lichtfeld": lichtfeld_sizes(neighbours)}
    cameras = patch.camera_index
    Ks, sizes = _training_size(scene.Ks[cameras], scene.sizes[cameras], downscale, max_width)
    viewmats = similarity.apply_viewmats(scene.viewmats[cameras])
    seen = footprints(means, unit_scales[trainer], viewmats, Ks, sizes, rungs, order)
    return PatchStats(
        patch_id=patch.id,
        cameras=len(cameras),
        holdout=len(patch.holdout_cameras),
        core_points=int((patch.point_role == Role.CORE).sum()),
        buffer_points=int((patch.point_role == Role.BUFFER).sum()),
        background_points=int((patch.point_role == Role.BACKGROUND).sum()),
        extent_axes=extent,
        full_extent_axes=full,
        spacing=_quantiles(distance / similarity.scale),
        median_depth=_median_depth(scene, patch),
        init_scaling=init_scaling,
        initial_scale_training={name: float(init_scaling * unit.mean()) for name, unit in unit_scales.items()},
        relative_size={name: _relative_size(init_scaling * unit, distance) for name, unit in unit_scales.items()},
        trainer=trainer,
        rungs=tuple(rungs),
        visible=seen.visible,
        tiles=seen.tiles,
        unit_area=seen.unit_area,
        pixels=int(sizes.prod(axis=1).max(initial=0)),
        seen_share=seen.seen_share,
    )


def _training_size(
    Ks: NDArray[np.float64], sizes: NDArray[np.int32], downscale: float, max_width: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Intrinsics and sizes of the images as they are trained."""
    shrink = np.full(len(sizes), 1 / downscale)
    if max_width:
        shrink = np.minimum(shrink, max_width / sizes[:, 0])
    Ks = Ks.copy()
    Ks[:, :2] *= shrink[:, None, None]
    return Ks, sizes * shrink[:, None]


def _extents(scene: Scene, patch: Patch) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Robust and full range of the core and buffer points along the frame's axes."""
    near = patch.points_with(Role.CORE, Role.BUFFER)
    positions = patch.frame.apply(scene.points[near if len(near) else patch.point_index])
    low, high = np.quantile(positions, ROBUST, axis=0, overwrite_input=True)  # reorders each axis; its range stays
    x, y, z = (float(value) for value in high - low)
    fx, fy, fz = (float(value) for value in np.ptp(positions, axis=0))
    return (x, y, z), (fx, fy, fz)


def _median_depth(scene: Scene, patch: Patch) -> float:
    distances = observed_distances(scene, patch, patch.points_with(Role.CORE))
    return float(np.median(distances)) if len(distances) else float("nan")


def _relative_size(scales: NDArray[np.float64], distance: NDArray[np.float64]) -> float:
    apart = distance > 0
    return float(np.median(scales[apart] / distance[apart])) if apart.any() else 0.0


def _quantiles(values: NDArray[Any]) -> dict[str, float]:
    found = np.quantile(values, QUANTILES)
    return {f"q{100 * q:02.0f}": float(v) for q, v in zip(QUANTILES, found, strict=True)} | {
        "mean": float(values.mean())
    }
