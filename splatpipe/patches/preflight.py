"""What will fail in a patch, and why, before anything trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from splatpipe.patches.patch import Patch
from splatpipe.patches.stats import PatchStats
from splatpipe.scene.arrays import Scene
from splatpipe.scene.findings import Finding

WEAK = 50  # visible initial Gaussians; a view with fewer teaches little
MIN_TO_GROW = 20  # MCMC adds 5 % of the count, rounded down: fewer Gaussians stay as many for ever
RELATIVE_SIZE = (0.05, 15.0)  # sigma over neighbour distance; 14 trained, 48 exploded (trainers.md, A8)
SELDOM = 0.15  # share of cameras; a Gaussian seen less often may die of regularisation first (trainers.md, D)


@dataclass(frozen=True)
class Preflight:
    """Findings, and what follows from them for the first attempt."""

    findings: tuple[Finding, ...]
    blind: dict[float, tuple[str, ...]]  # by rung: images that see no initial Gaussian
    floor: float | None  # the smallest rung without a blind camera; None if no rung cures them

    def blind_at(self, init_scaling: float) -> tuple[str, ...]:
        """Images to leave out when starting at `init_scaling`: those blind at the largest rung not above it."""
        below = [rung for rung in sorted(self.blind) if rung <= init_scaling]
        return self.blind[below[-1]] if below else self.blind[min(self.blind)] if self.blind else ()

    def to_json(self) -> dict[str, Any]:
        return {
            "findings": [finding.to_json() for finding in self.findings],
            "blind": {f"{rung:g}": list(names) for rung, names in self.blind.items()},
            "floor": self.floor,
        }


def preflight(scene: Scene, patch: Patch, stats: PatchStats, rungs: Sequence[float] | None = None) -> Preflight:
    """Judge a patch by its statistics; `rungs` (default: those counted in `stats`) must be among the counted."""
    rows = {rung: row for rung, row in zip(stats.rungs, stats.visible, strict=True)}
    chosen = tuple(rungs) if rungs is not None else stats.rungs
    names = [scene.names[i] for i in patch.camera_index]
    blind = {rung: tuple(names[i] for i in np.flatnonzero(rows[rung] == 0)) for rung in chosen}
    floor = next((rung for rung in chosen if not blind[rung]), None)
    checks = (
        _blind(blind, floor, len(names)),
        _weak(rows[chosen[0]], names, chosen[0]),
        _few_points(stats),
        _relative_size(stats),
        _seldom_seen(stats),
    )
    return Preflight(tuple(finding for finding in checks if finding), blind, floor)


def _blind(blind: dict[float, tuple[str, ...]], floor: float | None, cameras: int) -> Finding | None:
    first = min(blind)
    if not blind[first]:
        return None
    counts = {f"{rung:g}": len(names) for rung, names in blind.items()}
    cure = f"none is at {floor:g}" if floor is not None else "no rung cures all, so they are left out"
    message = (
        f"{len(blind[first])} of {cameras} cameras see no initial Gaussian at init_scaling {first:g}, "
        f"first {blind[first][0]}; {cure}"
    )
    return Finding("blind_cameras", "warning", message, {"by_rung": counts, "first": list(blind[first][:5])})


def _weak(visible: np.ndarray, names: list[str], rung: float) -> Finding | None:
    weak = np.flatnonzero((visible > 0) & (visible < WEAK))
    if not len(weak):
        return None
    message = (
        f"{len(weak)} of {len(names)} cameras see fewer than {WEAK} initial Gaussians at init_scaling {rung:g}, "
        f"first {names[weak[0]]} with {visible[weak[0]]}"
    )
    return Finding("weak_cameras", "note", message, {"cameras": len(weak), "fewest": int(visible[weak].min())})


def _few_points(stats: PatchStats) -> Finding | None:
    if stats.points >= MIN_TO_GROW:
        return None
    message = f"{stats.points} points are too few to grow from (MCMC needs {MIN_TO_GROW}); the patch stays this coarse"
    return Finding("few_points", "warning", message, {"points": stats.points})


def _relative_size(stats: PatchStats) -> Finding | None:
    size = stats.relative_size[stats.trainer]
    low, high = RELATIVE_SIZE
    if low <= size <= high:
        return None
    verdict = "too small to touch each other" if size < low else "so large that training may explode"
    message = (
        f"initial Gaussians are {size:.3g} neighbour distances wide at init_scaling {stats.init_scaling:g}, {verdict} "
        f"(usual: {low:g} to {high:g})"
    )
    return Finding("relative_size", "warning", message, {"relative_size": size, "trainer": stats.trainer})


def _seldom_seen(stats: PatchStats) -> Finding | None:
    few = stats.cameras * SELDOM < 1  # cameras: whoever sees a Gaussian at all sees it often
    if few or not len(stats.seen_share) or float(np.median(stats.seen_share)) >= SELDOM:
        return None
    share = float((stats.seen_share < SELDOM).mean())
    message = (
        f"{share:.0%} of the initial Gaussians are seen by fewer than {SELDOM:.0%} of the {stats.cameras} cameras and "
        "may fade before they are trained; fewer cameras in a patch or training.visible_only help"
    )
    return Finding("seldom_seen", "warning", message, {"share": share, "median": float(np.median(stats.seen_share))})
