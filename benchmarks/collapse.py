"""How MCMC dies of Gaussians that are seldom seen, and which variant of the training does not.

    python benchmarks/collapse.py [--scene DIR] [--width PX] [--steps N] [--shares 0 0.95] [--json FILE]
                                  [--cells VARIANT:INIT_SCALING:SHARE ...]

With `--json` it may be stopped at any moment and started again: cells that are in the file are not run again, and a
cell that was cut off goes on from its last checkpoint.

The real training loop on one patch of a real scene. A share of all steps is drawn from decoy cameras: narrow
views away from the scene that see a handful of grey decoy points and nothing else, so that the scene's Gaussians
get the regularisers' gradient in those steps and no other (a camera that sees nothing at all would cost the
loop no step). Of `--steps` steps only 1 - share are useful, so PSNR falls for that reason alone; what counts
is whether the set of Gaussians dies. A cell is the PSNR of the hold-out views, or `dead at N`.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from patch_views import CACHE_BYTES, PatchViews
from PIL import Image

from splatpipe import pipeline
from splatpipe.files import read_json, write_json
from splatpipe.layout import RunLayout
from splatpipe.splatting import raster
from splatpipe.splatting.loop import Training, TrainingData, TrainingFailure, TrainingJob
from splatpipe.splatting.settings import TrainSettings
from splatpipe.splatting.views import Views

DECOY_POINTS = 30
DECOY_ZOOM = 8.0  # focal length over image width: a narrow view, lest the scene comes into it
VARIANTS: dict[str, dict[str, float | bool]] = {
    "preset": {},
    "visible_only": {"visible_only": True},
    "opacities_lr / 4": {"opacities_lr": 0.0125},
    "both reg / 10": {"opacity_reg": 0.001, "scale_reg": 0.001},
}


def load_patch(scene: Path, width: int, folder: Path) -> PatchViews:
    """The whole scene as one normalised patch."""
    options = pipeline.RunOptions.resolve(scene, folder / "run", None, ["patching.max_cameras=100000"], None, None)
    pipeline.split(options, dry_run=False)
    return PatchViews.read(RunLayout(options.layout.root).patch("p000"), width)


def with_decoys(data: TrainingData, share: float, folder: Path) -> TrainingData:
    """`data` with so many decoy views that `share` of all steps is drawn from them, and the points that they see."""
    real = len(data.views)
    count = round(real * share / (1 - share))
    if not count:
        return data
    width, height = data.views.sizes[0].tolist()
    picture = folder / "decoy.png"
    Image.new("RGB", (width, height), (128, 128, 128)).save(picture)
    viewmat, points = _decoy(data, width, height)
    focal = DECOY_ZOOM * width
    K = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    views = Views(
        (*data.views.names, *(f"decoy_{i:05d}" for i in range(count))),
        (*data.views.paths, *[picture] * count),
        np.concatenate([data.views.viewmats, np.tile(viewmat, (count, 1, 1))]),
        np.concatenate([data.views.Ks, np.tile(K, (count, 1, 1))]),
        np.concatenate([data.views.sizes, np.tile(data.views.sizes[:1], (count, 1))]),
    )
    grey = np.full((len(points), 3), 128, np.uint8)
    return TrainingData(views, np.concatenate([data.points, points]), np.concatenate([data.colors, grey]))


def _decoy(data: TrainingData, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """A camera amid the others, turned to where the scene is not, and points before it.

    At the mean of the camera centres it leaves the scene's scale as it is.
    """
    rotations, translations = data.views.viewmats[:, :3, :3], data.views.viewmats[:, :3, 3]
    center = -np.einsum("cji,cj->ci", rotations, translations).mean(axis=0)
    offsets = data.points - center
    away = -offsets.mean(axis=0) / np.linalg.norm(offsets.mean(axis=0))
    right = np.cross([0.3, 0.7, 0.5], away)
    right /= np.linalg.norm(right)
    viewmat = np.eye(4)
    viewmat[:3, :3] = np.stack([right, np.cross(away, right), away])
    viewmat[:3, 3] = -viewmat[:3, :3] @ center
    depth = float(np.median(np.linalg.norm(offsets, axis=1)))
    rng = np.random.default_rng(0)
    plane = rng.uniform(-0.4, 0.4, (DECOY_POINTS, 2)) * depth / DECOY_ZOOM * [1.0, height / width]
    camera_space = np.column_stack([plane, np.full(DECOY_POINTS, depth)])
    return viewmat, (camera_space - viewmat[:3, 3]) @ viewmat[:3, :3]


@dataclass(frozen=True)
class Cell:
    """One training: which variant, from which size of Gaussians, with which share of steps that see nothing."""

    variant: str
    init_scaling: float
    share: float

    @classmethod
    def parse(cls, text: str) -> Cell:
        """From `visible_only:0.1:0.98`."""
        variant, scaling, share = text.rsplit(":", 2)
        if variant not in VARIANTS:
            raise ValueError(f"no variant {variant!r}")
        return cls(variant, float(scaling), float(share))

    @property
    def name(self) -> str:
        """As a folder."""
        return f"{self.variant.replace(' ', '').replace('/', '_')}-{self.init_scaling:g}-{self.share:g}"


def train(patch: PatchViews, wanted: Cell, settings: TrainSettings, checkpoints: Path) -> dict[str, Any]:
    """One cell: hold-out PSNR or the step of death, with the relocated shares of every refinement."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        data = with_decoys(patch.data, wanted.share, Path(name))
        settings = replace(settings, **VARIANTS[wanted.variant])  # type: ignore[arg-type]
        job = TrainingJob(settings, wanted.init_scaling, "cpu", checkpoints, CACHE_BYTES)
        training = Training(data, job, lambda event, **values: None)
        cell: dict[str, Any] = {**asdict(wanted), "steps": settings.iterations, "dead_at": None}
        try:
            params = training.run(lambda: False)
            alive = torch.sigmoid(params["opacities"].detach()) > settings.min_opacity
            cell |= {"psnr": round(patch.psnr(params, settings.sh_degree), 2), "alive": float(alive.float().mean())}
        except TrainingFailure as failure:
            cell |= {"dead_at": failure.step, "failure": failure.failure, "message": str(failure)}
    shares = training.health.relocated_shares
    return cell | {"relocated": shares, "seconds": round(time.monotonic() - started, 1)}


def table(cells: Sequence[dict[str, Any]]) -> str:
    """Markdown: variants and init_scaling down, shares across."""
    shares = sorted({cell["share"] for cell in cells})
    rows = dict.fromkeys((cell["variant"], cell["init_scaling"]) for cell in cells)
    found = {(cell["variant"], cell["init_scaling"], cell["share"]): _text(cell) for cell in cells}
    lines = ["| variant, init_scaling | " + " | ".join(f"{share:g}" for share in shares) + " |"]
    lines.append("|---" * (len(shares) + 1) + "|")
    for variant, scaling in rows:
        shown = " | ".join(found.get((variant, scaling, share), "-") for share in shares)
        lines.append(f"| {variant}, {scaling:g} | {shown} |")
    return "\n".join(lines)


def _text(cell: dict[str, Any]) -> str:
    if cell["dead_at"] is not None:
        return f"{'dead' if cell['failure'] == 'mcmc_collapse' else cell['failure']} at {cell['dead_at']}"
    alive = f", alive {cell['alive']:.2f}" if cell["alive"] < 0.9 else ""
    return f"{cell['psnr']:.1f}{alive}"


def earlier(path: Path | None, what: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells of a run that was stopped; those of another scene, size or length are refused."""
    if path is None or not path.is_file():
        return []
    record = read_json(path)
    if record["what"] != what:
        raise SystemExit(f"{path} holds cells of {record['what']}, not of {what}; give another file")
    return list(record["cells"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--scene", type=Path, default=Path(__file__).parents[1] / "examples" / "brighton_beach")
    parser.add_argument("--width", type=int, default=400)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--cap", type=int, default=1_000_000, help="Gaussians at most")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.5, 0.8, 0.9, 0.95, 0.98])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--init-scaling", type=float, nargs="+", default=[0.1, 1.0])
    parser.add_argument("--cells", nargs="+", type=Cell.parse, help="just these, e.g. visible_only:0.1:0.98")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.threads:
        raster.set_threads(given.threads)
    raster.warm_up(print)
    settings = TrainSettings(iterations=given.steps, max_cap=given.cap, scale_schedule=False)
    wanted = given.cells or [
        Cell(variant, scaling, share)
        for share in given.shares
        for variant in given.variants
        for scaling in given.init_scaling
    ]
    what = {"scene": given.scene.resolve().name, "width": given.width, "steps": given.steps, "cap": given.cap}
    cells = earlier(given.json, what)
    done = {Cell(cell["variant"], cell["init_scaling"], cell["share"]) for cell in cells}
    with tempfile.TemporaryDirectory() as name:
        patch = load_patch(given.scene, given.width, Path(name))
        for cell in (one for one in wanted if one not in done):
            kept = given.json.with_suffix(".checkpoints") / cell.name if given.json else Path(name) / cell.name
            cells.append(train(patch, cell, settings, kept))
            shutil.rmtree(kept, ignore_errors=True)
            print(f"share {cell.share:g}, {cell.variant}, {cell.init_scaling:g}: {_text(cells[-1])} "
                  f"({cells[-1]['seconds']} s)", flush=True)  # fmt: skip
            if given.json:
                write_json(given.json, {"what": what, "cells": cells})
    print(table(cells))


if __name__ == "__main__":
    main()
