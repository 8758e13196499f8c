"""How good a run's splats are: merged and patch by patch, on hold-out views, and what the borders cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from splatpipe.config import Config
from splatpipe.patches.visibility import visibility
from splatpipe.planning import Plan, PlannedPatch
from splatpipe.scene.masks import mask_paths

if TYPE_CHECKING:
    from splatpipe.splatting.views import Views

STRADDLES = 0.1  # share of the points that a view sees which must lie in a second core
METRICS = ("psnr", "ssim", "cc_psnr", "cc_ssim", "lpips", "cc_lpips")
NO_LPIPS = "not computed: evaluation.lpips_weights names no folder with its weights"


class Judge:
    """Holds what every evaluation of one run has in common. Raises `ConfigError` for LPIPS weights that are none."""

    def __init__(self, plan: Plan, config: Config, device: str) -> None:
        from splatpipe.splatting.lpips import Lpips

        self._views = views_of(plan)
        self._holdout = plan.split.holdout
        self._plan, self._config, self._device = plan, config, device
        folder = config.evaluation.lpips_weights
        self._perceptual = Lpips(Path(folder).expanduser()) if folder else None
        self.shares = _shares(plan)

    @property
    def straddling(self) -> tuple[str, ...]:
        """Hold-out views that look at two cores or more."""
        return tuple(name for name, seen in self.shares.items() if sum(s >= STRADDLES for s in seen.values()) > 1)

    def evaluate(self, splat: Path, names: tuple[str, ...] | None = None, on_view: Callable[..., None] | None = None):  # type: ignore[no-untyped-def]
        """An `Evaluation` of a splat file in scene coordinates over hold-out views (default all)."""
        from splatpipe.merge.evaluate import evaluate_splat

        held = [i for i in self._holdout if names is None or self._views.names[i] in names]
        training = self._config.training
        return evaluate_splat(
            splat,
            self._views.take(np.array(held, np.int64)),
            downscale=training.downscale,
            max_width=training.max_width,
            device=self._device,
            threads=training.threads,
            on_view=on_view,
            perceptual=self._perceptual,
        )

    def renders(self, parts: Collection[str]) -> int:
        """How many pictures `judge` renders."""
        return len(self._holdout) + sum(len(self._views_of_patch(planned)[0]) for planned in self._among(parts))

    def judge(self, merged: Path, parts: Mapping[str, Path], tick: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Everything, as JSON data: the merged splat, each patch on its own views, and the cost of the borders.

        A straddling view is also rendered from each single patch that owns a good part of it, unclipped; the seam
        cost is the PSNR of the best of them minus that of the merged splat, in dB: negative when merging helps.
        `tick` is called after each render, and may raise.
        """

        def on_view(*view: object) -> None:
            tick()

        whole = self.evaluate(merged, on_view=on_view)
        straddling = self.straddling
        best: dict[str, float] = {}
        patches = []
        for planned in self._among(parts):
            names, own = self._views_of_patch(planned)
            result = self.evaluate(parts[planned.id], names, on_view)
            patches.append({"id": planned.id, **summary(result.of(own))})
            for view in result.of([name for name in straddling if self._owns(planned, name)]).views:
                best[view.name] = max(best.get(view.name, -math.inf), view.psnr)
        costs = {view.name: best[view.name] - view.psnr for view in whole.views if view.name in best}
        return {
            **summary(whole),
            "lpips_note": None if self._perceptual else NO_LPIPS,
            "straddling": summary(whole.of(straddling)),
            "seam_cost_db": round(float(np.mean(list(costs.values()))), 4) if costs else None,
            "seam_cost_of_views_db": {name: round(cost, 4) for name, cost in costs.items()},
            "patches": patches,
        }

    def _among(self, parts: Collection[str]) -> list[PlannedPatch]:
        return [planned for planned in self._plan.patches if planned.id in parts]

    def _owns(self, planned: PlannedPatch, name: str) -> bool:
        return self.shares[name].get(planned.id, 0) >= STRADDLES

    def _views_of_patch(self, planned: PlannedPatch) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """All hold-out views that a patch is rendered for, and those among them that are its own."""
        own = {self._plan.scene.names[i] for i in planned.patch.holdout_cameras}
        across = {name for name in self.straddling if self._owns(planned, name)}
        return tuple(sorted(own | across)), tuple(sorted(own))


def views_of(plan: Plan) -> Views:
    """Every photograph of the scene at its own size, in the order of the scene's names."""
    from splatpipe.splatting.views import Views

    scene = plan.scene
    paths = tuple(scene.image_dir / name for name in scene.names)
    masks = mask_paths(scene.mask_dir, scene.names)
    return Views(scene.names, paths, scene.viewmats, scene.Ks, scene.sizes, masks)


def summary(evaluation: Any) -> dict[str, Any]:
    """Means and views of an `Evaluation` as JSON data; None where there is nothing to average."""
    means = {name: _rounded(evaluation.mean(name)) for name in METRICS}
    rows = [{"image": v.name, **{name: _rounded(getattr(v, name)) for name in METRICS}} for v in evaluation.views]
    return {**means, "views": rows}


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 5)


def _shares(plan: Plan) -> dict[str, dict[str, float]]:
    """For each hold-out view, by patch, the share of the points it sees that lie in the core."""
    scene, seen = plan.scene, visibility(plan.scene)
    shares: dict[str, dict[str, float]] = {}
    for camera in plan.split.holdout:
        points = plan.split.frame.apply(scene.points[seen.of(np.array([camera])).points])
        inside = {planned.id: int(planned.patch.core.contains(points).sum()) for planned in plan.patches}
        shares[scene.names[camera]] = {name: count / max(len(points), 1) for name, count in inside.items() if count}
    return shares
