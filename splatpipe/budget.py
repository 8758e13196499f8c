"""What a run will take of GPU memory and disk, and the caps that follow from what there is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from splatpipe.errors import ConfigError
from splatpipe.patches.settings import PatchingSettings
from splatpipe.patches.stats import PatchStats
from splatpipe.policy.vram import MOST_INTERSECTIONS, Prediction, gaussians_within, predict
from splatpipe.scene.arrays import Scene
from splatpipe.scene.findings import Finding
from splatpipe.splatting.settings import TrainSettings

SPLAT_BYTES = 248  # of one Gaussian in a PLY file with SH of degree 3
CHECKPOINT_BYTES = 3 * 236  # of one Gaussian: parameters and two moments
CPU_BYTES = 600_000_000  # torch, numba and the rasteriser's workspaces
CPU_GAUSSIAN_BYTES = 4 * 236  # of one Gaussian: parameters, gradient, two moments
POINT_BYTES = 100  # of one point with its track and observations in a patch's model


def within_budget(
    scene: Scene, patching: PatchingSettings, hyper: TrainSettings
) -> tuple[PatchingSettings, TrainSettings, tuple[Finding, ...]]:
    """The settings with caps for Gaussians and, in the same proportion, cameras that fit patching.vram_gb.

    Raises `ConfigError` when not even a thousand Gaussians fit.
    """
    budget, most = patching.vram_gb, hyper.max_cap
    if not budget:
        return patching, hyper, ()
    shrink = np.full(scene.n_cameras, 1 / hyper.downscale)
    if hyper.max_width:
        shrink = np.minimum(shrink, hyper.max_width / scene.sizes[:, 0])
    pixels = int((scene.sizes.prod(axis=1) * shrink**2).max())
    cap = min(gaussians_within(budget * 1e9, pixels), most)
    if cap < 1:
        raise ConfigError(
            f"patching.vram_gb: {budget:g} GB are too few to train images of {pixels / 1e6:.1f} megapixels; "
            "raise it, or lower training.max_width"
        )
    if cap == most:
        return patching, hyper, ()
    cameras = max(patching.max_cameras * cap // most, 1)
    message = f"within {budget:g} GB of GPU memory a patch gets at most {cap:,} Gaussians and {cameras} cameras"
    finding = Finding("vram_budget", "note", message, {"max_cap": cap, "max_cameras": cameras})
    return replace(patching, max_cameras=cameras), replace(hyper, max_cap=cap), (finding,)


def predicted(stats: PatchStats, max_cap: int) -> Prediction:
    """For the patch's most demanding image at its cap."""
    share = float(stats.visible[-1].max(initial=0)) / max(stats.points, 1)
    return predict(max_cap, share, stats.pixels, int(stats.tiles.max(initial=0)))


def host_bytes(stats: PatchStats, settings: TrainSettings) -> int:
    """Main memory of a training on the CPU: parameters, moments and gradients, the decoded photographs, the rest."""
    images = settings.image_cache_gb * 1e9 or 3 * stats.pixels * len(stats.visible[-1])
    return int(CPU_BYTES + CPU_GAUSSIAN_BYTES * settings.max_cap + images)


def too_many_intersections(expected: Prediction) -> tuple[Finding, ...]:
    """A finding where rasterisers would lose count."""
    if expected.intersections <= MOST_INTERSECTIONS:
        return ()
    message = (
        f"an image is expected to have {expected.intersections:,} tile intersections, more than rasterisers can "
        "number; lower training.max_cap or training.max_width"
    )
    return (Finding("intersections", "warning", message, {"intersections": expected.intersections}),)


def disk_bytes(points: int, max_cap: int) -> int:
    """About what a patch takes: its data set, one attempt with two checkpoints, and its part of the merged splat."""
    return POINT_BYTES * points + max_cap * (2 * SPLAT_BYTES + 2 * CHECKPOINT_BYTES)


def disk_finding(needed: int, free: int) -> tuple[Finding, ...]:
    """A finding where the disk will be full before the run ends."""
    if needed <= free:
        return ()
    message = f"the run needs about {needed / 1e9:.1f} GB of disk space, and {free / 1e9:.1f} GB are free"
    return (Finding("disk_space", "warning", message, {"needed": needed, "free": free}),)
