"""What is measured of a patch before it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from splatpipe.patches.footprints import visible_counts
from splatpipe.patches.patch import Patch, Role
from splatpipe.scene.arrays import Scene, Similarity
from splatpipe.scene.tracks import observations_of
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
    seen_share: NDArray[np.float64]  # (N,) share of the training cameras that see each at the first rung

    @property
    def points(self) -> int:
        return self.core_points + self.buffer_points + self.background_points

    @property
    def extent(self) -> float:
        """The largest of the robust ranges: the number that chooses the first rung."""
        return max(self.extent_axes)

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
) -> PatchStats:
    """Measure a patch. Initial sizes follow each trainer's own rule, in training coordinates."""
    extent, full = _extents(scene, patch)
    means = similarity.apply(scene.points[patch.point_index])
    neighbours = neighbour_distances(means)
    distance = neighbours.mean(axis=1)
    unit_scales = {"gsplat": gsplat_sizes(neighbours), "lichtfeld": lichtfeld_sizes(neighbours)}
    cameras = patch.camera_index
    visible, seen_share = visible_counts(
        means,
        unit_scales[trainer],
        similarity.apply_viewmats(scene.viewmats[cameras]),
        scene.Ks[cameras],
        scene.sizes[cameras],
        rungs,
    )
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
        visible=visible,
        seen_share=seen_share,
    )


def _extents(scene: Scene, patch: Patch) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Robust and full range of the core and buffer points along the frame's axes."""
    near = patch.points_with(Role.CORE, Role.BUFFER)
    positions = patch.frame.apply(scene.points[near if len(near) else patch.point_index])
    low, high = np.quantile(positions, ROBUST, axis=0)
    x, y, z = (float(value) for value in high - low)
    fx, fy, fz = (float(value) for value in np.ptp(positions, axis=0))
    return (x, y, z), (fx, fy, fz)


def _median_depth(scene: Scene, patch: Patch) -> float:
    core = patch.points_with(Role.CORE)
    seen = observations_of(scene, core)
    ours = np.isin(seen.cameras, patch.camera_index)
    if not ours.any():
        return float("nan")
    offsets = scene.points[core[seen.rows[ours]]] - scene.centers[seen.cameras[ours]]
    return float(np.median(np.linalg.norm(offsets, axis=1)))


def _relative_size(scales: NDArray[np.float64], distance: NDArray[np.float64]) -> float:
    apart = distance > 0
    return float(np.median(scales[apart] / distance[apart])) if apart.any() else 0.0


def _quantiles(values: NDArray[np.float64]) -> dict[str, float]:
    found = {f"q{100 * q:02.0f}": float(np.quantile(values, q)) for q in QUANTILES}
    return found | {"mean": float(values.mean())}
