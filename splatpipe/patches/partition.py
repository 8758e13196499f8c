"""From one scene to patches: cores that tile the ground, buffers, points with roles, cameras with reasons."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splatpipe.errors import SceneError
from splatpipe.machine import usable_cores
from splatpipe.patches.box import Box
from splatpipe.patches.cameras import assign_holdout, choose_cameras, choose_holdout, short_of_views
from splatpipe.patches.cell import Cell, fits, owners, view_counts
from splatpipe.patches.cells import cut_into_cells
from splatpipe.patches.drawn import Layout, drawn_layout, grid_layout
from splatpipe.patches.frame import Frame, ground_frame
from splatpipe.patches.outliers import find_outliers
from splatpipe.patches.patch import Patch, point_roles
from splatpipe.patches.settings import PatchingSettings
from splatpipe.patches.visibility import Visibility, visibility
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


def split(scene: Scene, settings: PatchingSettings) -> Split:
    """At least one patch; never more than `max_cameras` training cameras in one; the same for the same input.

    Every camera that sees a point and is no hold-out view trains at least one patch, and sees part of its core.
    Cores tile the ground. A scene below the cap is one patch. Raises `SceneError` if no camera sees a point.
    """
    frame = ground_frame(scene, settings.frame)
    positions = frame.apply(scene.points)
    outliers = find_outliers(scene, settings.outliers)
    seen = visibility(scene).without(outliers.points)
    holdout = choose_holdout(scene.n_cameras, settings.holdout_every)
    holdout = holdout[~outliers.cameras[holdout]]
    sees = seen.counts() > 0
    training = np.setdiff1d(np.flatnonzero(sees & ~outliers.cameras), holdout)
    if not len(training):
        raise SceneError(
            f"none of the {scene.n_cameras - len(holdout)} training cameras of {scene.model_dir} sees any of its "
            f"{scene.n_points:,} points; check that model and points belong together"
        )
    cells = cut_into_cells(positions, seen, training, settings, _layout(settings, positions))
    owner = np.where(outliers.points, np.int32(-1), owners(cells.cells, positions))
    patches = _patches(cells.cells, scene, frame, positions, owner, seen, training, holdout, settings)
    blind = np.flatnonzero(~sees & ~outliers.cameras)
    placed = np.unique(np.concatenate([patch.camera_index for patch in patches]))
    unplaced = np.setdiff1d(cells.unplaced, placed)
    findings = [*outliers.findings, *_findings(scene, frame, blind, unplaced, settings)]
    findings += _over_limits(patches, cells.cells, positions, settings)
    findings += _few_views(patches, owner, seen, training, settings)
    unused = np.setdiff1d(np.union1d(np.flatnonzero(~sees | outliers.cameras), unplaced), holdout)
    return Split(patches, frame, holdout, unused, tuple(findings))


def _layout(settings: PatchingSettings, positions: NDArray[np.float64]) -> Layout | None:
    """The cuts that the user has decided on, if any."""
    if settings.grid is not None:
        return grid_layout(*settings.grid, positions)
    return drawn_layout(settings.cells) if settings.cells is not None else None


def _patches(
    cells: tuple[Cell, ...],
    scene: Scene,
    frame: Frame,
    positions: NDArray[np.float64],
    owner: NDArray[np.int32],
    seen: Visibility,
    training: NDArray[np.int64],
    holdout: NDArray[np.int64],
    settings: PatchingSettings,
) -> tuple[Patch, ...]:
    counts = view_counts(owner, len(cells), seen, np.arange(scene.n_cameras))
    held_in = assign_holdout(holdout, counts[holdout])
    may_train = np.zeros((scene.n_cameras, 1), np.int64)
    may_train[training] = 1
    bounds = np.quantile(positions[:, :2], BOUNDS, axis=0)
    counts = counts * may_train
    digits = max(3, len(str(len(cells) - 1)))

    def patch(i: int) -> Patch:
        core = cells[i].core
        cameras, reasons = choose_cameras(i, cells[i].cameras, counts, owner, seen, settings)
        buffered = core.grown(settings.buffer * _shorter_edge(core, positions[owner == i, :2], bounds))
        near = np.flatnonzero(buffered.contains(positions) & (owner >= 0))
        views = seen.views(cameras, scene.n_points)
        points, roles = _points(core, buffered, positions, near, views, settings.background)
        return Patch(
            id=f"p{i:0{digits}d}",
            core=core,
            buffered=buffered,
            frame=frame,
            point_index=points,
            point_role=roles,
            camera_index=cameras,
            camera_reasons=reasons,
            holdout_cameras=holdout[held_in == i],
        )

    with ThreadPoolExecutor(usable_cores()) as pool:
        return tuple(pool.map(patch, range(len(cells))))


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


def _findings(
    scene: Scene, frame: Frame, blind: NDArray[np.int64], unplaced: NDArray[np.int64], settings: PatchingSettings
) -> list[Finding]:
    findings = []
    if not frame.agrees:
        findings.append(Finding("frame", "note", frame.message, {"degrees": frame.disagreement_degrees}))
    if len(blind):
        names = [scene.names[i] for i in blind[:5]]
        message = f"{len(blind)} of {scene.n_cameras} cameras see no point and train nothing, first {names[0]}"
        findings.append(Finding("blind_cameras", "warning", message, {"cameras": len(blind), "first": names}))
    if len(unplaced):
        names = [scene.names[i] for i in unplaced[:5]]
        message = (
            f"{len(unplaced)} cameras train nothing, first {names[0]}: they and others see only one place, "
            f"and a patch takes at most patching.max_cameras ({settings.max_cameras})"
        )
        findings.append(Finding("unplaced_cameras", "warning", message, {"cameras": len(unplaced), "first": names}))
    return findings


def _over_limits(
    patches: tuple[Patch, ...], cells: tuple[Cell, ...], positions: NDArray[np.float64], settings: PatchingSettings
) -> list[Finding]:
    """A patch with one home camera, or whose cameras see one place, cannot be cut further."""
    over = [
        patch.id
        for patch, cell in zip(patches, cells, strict=True)
        if not fits(cell.core, len(cell.cameras), positions, settings)
    ]
    if not over:
        return []
    message = (
        f"{len(over)} patches exceed patching.max_points or max_extent, first {over[0]}: their cameras cannot be "
        "parted further"
    )
    return [Finding("over_limits", "warning", message, {"patches": over})]


def _few_views(
    patches: tuple[Patch, ...],
    owner: NDArray[np.int32],
    seen: Visibility,
    training: NDArray[np.int64],
    settings: PatchingSettings,
) -> list[Finding]:
    """Points that have more views in the scene than the cap leaves room for."""
    wanted = np.minimum(seen.views(training, len(owner)), settings.min_views)
    short = {patch.id: short_of_views(i, patch.camera_index, owner, seen, wanted) for i, patch in enumerate(patches)}
    short = {patch: n for patch, n in short.items() if n}
    if not short:
        return []
    worst = max(short, key=lambda patch: short[patch])
    message = (
        f"{sum(short.values()):,} points have fewer than patching.min_views ({settings.min_views}) views in their "
        f"patch though the scene has more, most in {worst} ({short[worst]:,}); a larger patching.reserve makes room"
    )
    return [Finding("few_views", "note", message, {"points": short})]
