"""From trained patches to one splat, its hold-out quality, and pictures of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from splatpipe import __version__
from splatpipe.config import Config
from splatpipe.errors import RunFolderError
from splatpipe.files import write_json
from splatpipe.layout import RunLayout
from splatpipe.ledger import Ledger
from splatpipe.merge.clean import Cleaning
from splatpipe.merge.join import MergePart, MergeReport, merge_splats
from splatpipe.planning import Plan
from splatpipe.training import trained_splat


@dataclass(frozen=True)
class Merged:
    """The merged splat and how good it is. `psnr`, `ssim` None when the scene has no hold-out view."""

    report: MergeReport
    psnr: float | None
    ssim: float | None
    views: tuple[dict[str, Any], ...]
    pictures: tuple[Path, ...]


def join(plan: Plan, layout: RunLayout, ledger: Ledger, config: Config, device: str) -> Merged:
    """Merge every trained patch of the run, evaluate over all hold-out views, and record it.

    Raises `RunFolderError` when no patch is trained, `EnvironmentProblem` when the disk is full.
    """
    splats = {planned.id: trained_splat(ledger, planned.id) for planned in plan.patches}
    parts = [MergePart(patch_id, path) for patch_id, path in splats.items() if path is not None]
    if not parts:
        raise RunFolderError(f"{layout.root}: no patch is trained, so there is nothing to merge")
    report = merge_splats(
        parts,
        layout.merged_splat,
        [planned.patch for planned in plan.patches],
        plan.split.frame,
        _cleaning(plan, config),
        comments=(f"splatpipe {__version__}", f"{len(parts)} of {len(splats)} patches"),
    )
    merged = _evaluate(plan, layout, config, report, device)
    details = report.to_json() | {"views": merged.views, "pictures": [str(path) for path in merged.pictures]}
    ledger.set_merged(report.path, report.gaussians, merged.psnr, merged.ssim, details)
    write_json(layout.merged / "evaluation.json", {"psnr": merged.psnr, "ssim": merged.ssim, "views": merged.views})
    return merged


def _cleaning(plan: Plan, config: Config) -> Cleaning:
    low, high = np.quantile(plan.scene.points, (0.01, 0.99), axis=0)
    return Cleaning(config.merge, (low + high) / 2, float((high - low).max()))


def _evaluate(plan: Plan, layout: RunLayout, config: Config, report: MergeReport, device: str) -> Merged:
    scene, held = plan.scene, plan.split.holdout
    if not len(held):
        return Merged(report, None, None, (), ())
    from splatpipe.merge.evaluate import evaluate_splat
    from splatpipe.splatting.metrics import Picture, ViewMetrics, side_by_side
    from splatpipe.splatting.views import Views

    paths = tuple(scene.image_dir / name for name in scene.names)
    views = Views(scene.names, paths, scene.viewmats, scene.Ks, scene.sizes).take(held)
    pictures: list[Path] = []

    def draw(metrics: ViewMetrics, render: Picture, photograph: Picture) -> None:
        path = layout.holdout_picture(metrics.name)
        side_by_side(render, photograph, path, (f"render, {metrics.psnr:.2f} dB", f"photograph {metrics.name}"))
        pictures.append(path)

    result = evaluate_splat(
        report.path,
        views,
        downscale=config.training.downscale,
        max_width=config.training.max_width,
        device=device,
        threads=config.training.threads,
        on_view=draw,
    )
    rows = tuple({"image": v.name, "psnr": round(v.psnr, 4), "ssim": round(v.ssim, 5)} for v in result.views)
    return Merged(report, round(result.psnr, 4), round(result.ssim, 5), rows, tuple(pictures))
