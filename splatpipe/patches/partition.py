"""From one scene to patches: cores that tile the ground, buffers, points with roles, cameras with reasons."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splatpipe.errors import SceneError
from splatpipe.machine import usable_cores
from splatpipe.patches.box import Box
from splatpipe.patches.cameras import assign_holdout, choose_holdout
from splatpipe.patches.cell import Cell
from splatpipe.patches.cells import cut_further, cut_into_cells
from splatpipe.patches.choosing import Chosen, Ground, choose_for_all
from splatpipe.patches.drawn import Layout, drawn_rings, grid_layout, straight_cuts
from splatpipe.patches.frame import Frame, ground_frame
from splatpipe.patches.outliers import Outliers, find_outliers
from splatpipe.patches.patch import Patch, point_roles
from splatpipe.patches.region import Ring
from splatpipe.patches.remarks import degenerate, few_views, over_limits, remarks
from splatpipe.patches.settings import PatchingSettings
from splatpipe.patches.sharing import most_cells
from splatpipe.patches.visibility import visibility
from splatpipe.scene.arrays import Scene
from splatpipe.scene.findings import Finding

BOUNDS = (0.01, 0.99)  # quantiles of the points that stand for the outer edge of an unbounded core


@dataclass(frozen=True, eq=False)
class Split:
    """All patches of a scene and what was noticed while cutting."""

    patches: tuple[Patch, ...]
    frame: Frame
    holdout: NDArray[np.int64]  # scene camera indices that never train
    unused: NDArray[np.int64]  # cameras that train nowhere, each with a finding
    findings: tuple[Finding, ...]


@dataclass(frozen=True, eq=False)
class Survey:
    """What there is to cut, and how somebody wants it cut."""

    ground: Ground
    frame: Frame
    outliers: Outliers
    holdout: NDArray[np.int64]  # scene camera indices
    layout: Layout | list[Ring] | None


def survey(scene: Scene, settings: PatchingSettings) -> Survey:
    """The first part of `split`, and all of it that can fail, at a fraction of the cost.

    Raises `SceneError` if no camera sees a point, and `ConfigError` for polygons that cannot be used.
    """
    frame = ground_frame(scene, settings.frame)
    positions = frame.apply(scene.points)
    outliers = find_outliers(scene, settings.outliers)
    seen = visibility(scene).without(outliers.points)
    holdout = choose_holdout(scene.n_cameras, settings.holdout_every)
    holdout = holdout[~outliers.cameras[holdout]]
    training = np.setdiff1d(np.flatnonzero((seen.counts() > 0) & ~outliers.cameras), holdout)
    if not len(training):
        raise SceneError(
            f"none of the {scene.n_cameras - len(holdout)} training cameras of {scene.model_dir} sees any of its "
            f"{scene.n_points:,} points; check that model and points belong together"
        )
    ground = Ground(scene, positions, outliers.points, seen, training)
    return Survey(ground, frame, outliers, holdout, _layout(settings, positions, frame.ground(scene.offset)))


def split(scene: Scene, settings: PatchingSettings) -> Split:
    """At least one patch; never more than `max_cameras` training cameras in one; the same for the same input.

    Every camera that sees a point and is no hold-out view trains at least one patch, and sees part of its core.
    Cores tile the ground. A scene below the cap is one patch. Raises what `survey` raises.
    """
    found = survey(scene, settings)
    ground, frame, outliers, holdout = found.ground, found.frame, found.outliers, found.holdout
    cut = cut_into_cells(ground.positions, ground.seen, ground.training, settings, found.layout)
    chosen = _chosen(cut.cells, ground, settings)
    patches = _patches(chosen, ground, frame, holdout, settings)
    sees = ground.seen.counts() > 0
    blind = np.flatnonzero(~sees & ~outliers.cameras)
    unplaced = np.setdiff1d(cut.unplaced, np.concatenate(chosen.cameras))
    findings = [*outliers.findings, *remarks(scene, frame, blind, unplaced, settings)]
    findings += degenerate(patches, cut.joined, settings)
    findings += over_limits(patches, chosen.cells, ground.positions, settings)
    findings += few_views(patches, chosen.short, settings)
    unused = np.setdiff1d(np.union1d(np.flatnonzero(~sees | outliers.cameras), unplaced), holdout)
    return Split(patches, frame, holdout, unused, tuple(findings))


def _layout(
    settings: PatchingSettings, positions: NDArray[np.float64], offset: NDArray[np.float64]
) -> Layout | list[Ring] | None:
    """The cuts or polygons that the user has decided on, if any; polygons less the ground `offset` (2,)."""
    if settings.grid is not None:
        return grid_layout(*settings.grid, positions)
    if settings.cells is None:
        return None
    rings = drawn_rings(settings.cells, offset)
    return straight_cuts(rings) or rings


def _chosen(cells: tuple[Cell, ...], ground: Ground, settings: PatchingSettings) -> Chosen:
    """Cameras for all cells, which are cut further as long as too many points are short of views and that can help."""
    most = most_cells(len(ground.training), settings)
    chosen = choose_for_all(cells, ground, settings)
    while True:
        cells = chosen.cells
        further = cut_further(cells, chosen.short_shares, most - len(cells), ground.positions, settings)
        if len(further) == len(cells):
            return chosen
        chosen = choose_for_all(further, ground, settings)


def _patches(
    chosen: Chosen, ground: Ground, frame: Frame, holdout: NDArray[np.int64], settings: PatchingSettings
) -> tuple[Patch, ...]:
    positions, owner = ground.positions, chosen.owner
    held_in = assign_holdout(holdout, chosen.counts[holdout])
    bounds = np.quantile(positions[:, :2], BOUNDS, axis=0)
    spacing = camera_spacing(frame.apply(ground.scene.centers[ground.training])[:, :2])
    digits = max(3, len(str(len(chosen.cells) - 1)))

    def patch(i: int) -> Patch:
        core, cameras = chosen.cells[i].core, chosen.cameras[i]
        edge = _shorter_edge(core, positions[owner == i, :2], bounds)
        unit = {"patch": edge, "spacing": spacing, "units": 1.0}[settings.buffer_of]
        buffered = core.grown(settings.buffer * unit)
        near = np.flatnonzero(buffered.contains(positions) & (owner >= 0))
        views = ground.seen.views(cameras, len(positions))
        points, roles = _points(core, buffered, positions, near, views, settings.background)
        return Patch(
            id=f"p{i:0{digits}d}",
            core=core,
            buffered=buffered,
            frame=frame,
            point_index=points,
            point_role=roles,
            camera_index=cameras,
            camera_reasons=chosen.reasons[i],
            holdout_cameras=holdout[held_in == i],
        )

    with ThreadPoolExecutor(usable_cores()) as pool:
        return tuple(pool.map(patch, range(len(chosen.cells))))


def camera_spacing(centers: NDArray[np.float64]) -> float:
    """Median distance on the ground from a camera (N, 2) to the nearest one that stands elsewhere; 0 without one."""
    from scipy.spatial import cKDTree

    places = np.unique(centers, axis=0)
    return float(np.median(cKDTree(places).query(places, k=2)[0][:, 1])) if len(places) > 1 else 0.0


def _shorter_edge(core: Box, own: NDArray[np.float64], bounds: NDArray[np.float64]) -> float:
    """The core's shorter ground edge; an unbounded side ends at the scene's robust bounds, (2, 2) low and high.

    `own` are the core's points (N, 2), which limit an outer core that lies beyond those bounds.
    """
    low, high = bounds
    nearest, farthest = own.min(axis=0), own.max(axis=0)
    lower = np.where(np.isfinite(core.lower[:2]), core.lower[:2], np.clip(low, nearest, farthest))
    upper = np.where(np.isfinite(core.upper[:2]), core.upper[:2], np.clip(high, nearest, farthest))
    return float(np.abs(upper - lower).min())


def _points(
    core: Box,
    buffered: Box,
    positions: NDArray[np.float64],
    near: NDArray[np.int64],
    views: NDArray[np.int32],
    background: float,
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Point indices of a patch and their roles; of the far points that its cameras see, an even sample by distance.

    `views` (P,) is how many of the patch's cameras see each of the scene's points.
    """
    is_far = views > 0
    is_far[near] = False
    far = np.flatnonzero(is_far)
    quota = min(int(background * len(near)), len(far))
    if quota:
        away = np.maximum(np.maximum(core.lower - positions[far], positions[far] - core.upper), 0)
        order = np.argsort(np.linalg.norm(away, axis=1), kind="stable")
        far = far[order[np.arange(quota) * len(far) // quota]]
    else:
        far = far[:0]
    index = np.sort(np.concatenate([near, far]))
    return index, point_roles(positions[index], core, buffered)
