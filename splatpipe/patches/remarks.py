"""What is to be said of a split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from splatpipe.patches.cell import Cell, fits
from splatpipe.patches.frame import Frame
from splatpipe.patches.patch import Patch, Role
from splatpipe.patches.settings import PatchingSettings
from splatpipe.scene.arrays import Scene
from splatpipe.scene.findings import Finding


def remarks(
    scene: Scene, frame: Frame, blind: NDArray[np.int64], unplaced: NDArray[np.int64], settings: PatchingSettings
) -> list[Finding]:
    """About the frame, cameras that see nothing, and cameras for which there was no room."""
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


def over_limits(
    patches: tuple[Patch, ...], cells: Sequence[Cell], positions: NDArray[np.float64], settings: PatchingSettings
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


def degenerate(patches: Sequence[Patch], joined: int, settings: PatchingSettings) -> list[Finding]:
    """About pieces that joined a neighbour, and about patches that should have and found none with room."""
    findings = []
    few = (
        f"fewer than {settings.min_points} points or {settings.min_cameras} cameras (patching.min_points, min_cameras)"
    )
    if joined:
        message = f"{joined} piece{'s' * (joined > 1)} with {few} joined a neighbour"
        findings.append(Finding("joined", "note", message, {"pieces": joined}))
    small = [
        patch.id
        for patch in patches
        if len(patch.camera_index) < settings.min_cameras or _core_points(patch) < settings.min_points
    ]
    if small and len(patches) > 1:
        message = f"{len(small)} patches have {few}: no neighbour may take them, first {small[0]}"
        findings.append(Finding("degenerate", "warning", message, {"patches": small}))
    return findings


def _core_points(patch: Patch) -> int:
    return int((patch.point_role == Role.CORE).sum())


def few_views(patches: Sequence[Patch], short: Sequence[int], settings: PatchingSettings) -> list[Finding]:
    """Points with more matched views in the scene than they have, matched or by sight, in their patch: `short`."""
    counts = {patch.id: n for patch, n in zip(patches, short, strict=True) if n}
    if not counts:
        return []
    total = sum(_core_points(patch) for patch in patches)
    worst = max(counts, key=lambda patch: counts[patch])
    message = (
        f"{sum(counts.values()):,} of {total:,} points ({sum(counts.values()) / total:.2%}) have fewer than "
        f"patching.min_views ({settings.min_views}) views in their patch though the scene has more, most in {worst} "
        f"({counts[worst]:,}); a larger patching.max_extra gives them room in more patches"
    )
    return [Finding("few_views", "note", message, {"points": counts})]
