"""What borders cost where they are: a run's merged splat against its patches, along the borders and away from them.

python benchmarks/borders.py RUN [--thin-owner 0.5] [--no-share-wide] [--json OUT]   merged anew, borders not trained
python benchmarks/borders.py RUN --finished                                          the run's merged splat as it is

Every pixel of every view belongs to the patch in whose core its ray meets the ground (a plane at the points' median
height, so the scene must be flat). Along borders, within half a buffer of one, the merged splat's error is held
against that of the owner's own, unclipped splat: what is lost there is lost by joining. Hold-out and training views
are counted apart; of the latter an owner has trained on some, which favours it.
Of each hold-out view across a border also the seam cost, as `splatpipe eval` has it but over the ground alone that at
least two training cameras look at: what nobody has seen is anybody's guess.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splatpipe import pipeline
from splatpipe.files import write_json
from splatpipe.joining import trained_parts
from splatpipe.layout import RunLayout
from splatpipe.ledger import Ledger
from splatpipe.merge.evaluate import Renderer
from splatpipe.merge.join import Borders, MergePart, merge_splats
from splatpipe.merge.ownership import reach
from splatpipe.planning import Plan, make_plan
from splatpipe.scene.colmap import read_scene
from splatpipe.scene.undistort import undistort
from splatpipe.splatting.images import load_image
from splatpipe.splatting.ply import read_splats
from splatpipe.splatting.views import Views


@dataclass(frozen=True, eq=False)
class Pixels:
    """Sums over pixels of one kind: squared errors of the merged splat and of the owners' own, and how many."""

    merged: float = 0.0
    owner: float = 0.0
    count: int = 0

    def plus(self, merged: NDArray[np.float64], owner: NDArray[np.float64]) -> Pixels:
        return Pixels(self.merged + merged.sum(), self.owner + owner.sum(), self.count + merged.size)

    def to_json(self) -> dict[str, float]:
        n = max(self.count, 1)
        return {"pixels": self.count, "merged_db": _db(self.merged / n), "owner_alone_db": _db(self.owner / n)}


def _db(error: float) -> float:
    return round(float(-10 * np.log10(max(error, 1e-10))), 3)


STRADDLES = 0.1  # share of a view's ground that must lie in a second core
KNOWN = 2  # training cameras that look at a place


def grounds(plan: Plan, viewmat: NDArray[np.float64], K: NDArray[np.float64], width: int, height: int) -> Any:
    """Per pixel the owner, whether the ray meets the ground within half a buffer of a border, and where it does."""
    frame, patches = plan.split.frame, [planned.patch for planned in plan.patches]
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    rays = np.stack([x, y, np.ones_like(x)], -1).reshape(-1, 3) @ np.linalg.inv(K).T @ viewmat[:3, :3]
    eye, rays = frame.apply(-(viewmat[:3, :3].T @ viewmat[:3, 3])[None])[0], rays @ frame.rotation.T
    away = (np.median(frame.apply(plan.scene.points)[:, 2]) - eye[2]) / rays[:, 2]
    ground = eye + away[:, None] * rays
    owner, near, half = np.zeros(len(ground), np.int64), np.zeros(len(ground), bool), reach(patches) / 2
    for i, patch in enumerate(patches):
        inside = patch.core.contains(ground)
        owner[inside] = i
        edges = [(axis, edge[axis]) for edge in (patch.core.lower, patch.core.upper) for axis in (0, 1)]
        for axis, edge in edges:
            near |= inside & (np.abs(ground[:, axis] - edge) < half)
    return owner, near & (away > 0), ground @ frame.rotation


def looking(views: Views, cameras: NDArray[np.integer], ground: NDArray[np.float64]) -> NDArray[np.int64]:
    """(N,) how many of the cameras have a place of the ground (N, 3) in their picture."""
    count = np.zeros(len(ground), np.int64)
    for i in cameras:
        seen = ground @ views.viewmats[i, :3, :3].T + views.viewmats[i, :3, 3]
        pixels = seen @ views.Ks[i].T
        inside = (pixels[:, :2] >= 0).all(axis=1) & (pixels[:, :2] < pixels[:, 2:] * views.sizes[i]).all(axis=1)
        count += inside & (seen[:, 2] > 0)
    return count


def seam_cost(errors: list[NDArray[np.float64]], owner: NDArray[np.int64], known: NDArray[np.bool_]) -> float | None:
    """Best single patch minus merged (the first of `errors`) over the known pixels, in dB; None across no border."""
    shares = np.bincount(owner, minlength=len(errors) - 1) / len(owner)
    among = np.flatnonzero(shares >= STRADDLES)
    if len(among) < 2 or not known.any():
        return None
    return max(_db(errors[1 + k][known].mean()) for k in among) - _db(errors[0][known].mean())


def compare(plan: Plan, parts: dict[str, Path], merged: Path, max_width: int) -> dict[str, Any]:
    """Pixels along borders and elsewhere, of hold-out and of training views."""
    scene = plan.scene
    paths = tuple(scene.image_dir / name for name in scene.names)
    views = Views(scene.names, paths, scene.viewmats, scene.Ks, scene.sizes).resized(1.0, max_width)
    renderers = [Renderer(read_splats(parts[planned.id])) for planned in plan.patches]
    whole, sums, costs = Renderer(read_splats(merged)), {}, {}
    trained = np.setdiff1d(np.arange(scene.n_cameras), plan.split.holdout)
    for i, (width, height) in enumerate(views.sizes.tolist()):
        photograph = load_image(views.paths[i], width, height)
        shape = (views.viewmats[i], views.Ks[i], width, height)
        errors = [((one.render(*shape) - photograph) ** 2).mean(axis=2).ravel() for one in (whole, *renderers)]
        owner, near, ground = grounds(plan, *shape)
        alone = np.stack(errors[1:])[owner, np.arange(len(owner))]
        kind = "hold-out" if i in plan.split.holdout else "training"
        if kind == "hold-out":
            known = looking(views, trained, ground) >= KNOWN
            costs[views.names[i]] = {"known": float(known.mean()), "seam_cost_db": seam_cost(errors, owner, known)}
        for place, mask in (("border", near), ("elsewhere", ~near)):
            sums[kind, place] = sums.get((kind, place), Pixels()).plus(errors[0][mask], alone[mask])
    table = {f"{kind}, {place}": pixels.to_json() for (kind, place), pixels in sorted(sums.items())}
    return {"places": table, "views": costs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--thin-owner", type=float, default=0.5)
    parser.add_argument("--no-share-wide", action="store_true", help="by centre only")
    parser.add_argument("--finished", action="store_true", help="the run's merged splat as it is")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    layout = RunLayout(args.run.resolve())
    options = pipeline.RunOptions.of_run(args.run, None)
    scene = undistort(read_scene(options.scene, options.config.scene.images).scene, layout.scene)
    plan = make_plan(scene, options.config, options.profile_folders)
    with Ledger(layout.ledger) as ledger:
        parts = trained_parts(plan, ledger)
    with tempfile.TemporaryDirectory() as folder:
        report = merge_splats(
            [MergePart(name, path) for name, path in parts.items()],
            Path(folder) / "merged.ply",
            [planned.patch for planned in plan.patches],
            plan.split.frame,
            borders=Borders(args.thin_owner, not args.no_share_wide),
        )
        splat = layout.merged_splat if args.finished else report.path
        table = compare(plan, parts, splat, options.config.training.max_width)
        table["gaussians"], table["holes"] = report.gaussians, int(report.coverage.holes.sum())
    print(f"{args.run.name}: {len(parts)} patches, {table['gaussians']} Gaussians, {table['holes']} holes")
    for name, row in table["places"].items():
        print(f"{name:22} merged {row['merged_db']:.2f} dB, owner alone {row['owner_alone_db']:.2f} dB")
    for name, view in table["views"].items():
        if view["seam_cost_db"] is not None:
            print(f"{name:22} seam cost {view['seam_cost_db']:+.2f} dB over known ground, {view['known']:.0%} of it")
    if args.json:
        write_json(args.json, json.loads(json.dumps(table)))


if __name__ == "__main__":
    main()
