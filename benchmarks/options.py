"""What the options of docs/training.md are worth on small scenes made for them.

    python benchmarks/options.py [--only masks|poses|colours|depth] [--json FILE]

Each case has a planted fault (garbage in photographs, cameras a little off, changing exposure, few views) and trains
through the real loop on the CPU with the option off and on. Hold-out photographs have no fault and do not train.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from scenes import scaled, synthetic_scene, write_scene  # noqa: E402
from test_masks import holdout_psnr, masked_scene  # noqa: E402
from test_training import never, training  # noqa: E402
from test_training_photographs import (  # noqa: E402
    CPU,
    HELD,
    KEPT,
    corrected_viewmat,
    data_of,
    photographed,
    pixels_off,
    quality,
    shaken,
    taken,
    with_tracks,
)

from splatpipe.files import write_json  # noqa: E402
from splatpipe.splatting.depth import PointDepths  # noqa: E402
from splatpipe.splatting.views import ViewLoader  # noqa: E402

SETTINGS: dict[str, Any] = {"iterations": 300, "refine_stop": 250, "max_cap": 400, "growth": 1.2}
Row = dict[str, Any]


def masks(folder: Path) -> Iterator[Row]:
    """A magenta rectangle over 23 % of each training photograph."""
    scene = masked_scene(folder / "scene", (255, 0, 255), cameras=25, every=1)
    clean = write_scene(folder / "clean", synthetic_scene(n_cameras=25, n_points=150))
    for name, photographs, used in (("off", scene, False), ("on", scene, True), ("no rectangle", clean, False)):
        yield {"option": name, "psnr": holdout_psnr(folder / name, photographs, clean, used)}


def poses(folder: Path) -> Iterator[Row]:
    """Cameras turned by about 1 degree and moved by 1.5 %; photographs are renders of the initial Gaussians."""
    data = photographed(data_of(_scene(folder)), folder)
    truth, wrong = data.views.viewmats[KEPT], shaken(taken(data, KEPT), degrees=1.0, shift=0.015)
    fixed: dict[str, Any] = {"iterations": 300, "refine_start": 1000, "init_opacity": 0.9}
    for rate in (0.0, 1e-3, 3e-3):
        run, _ = training(wrong, folder / f"{rate}", pose_lr=rate, **fixed)
        psnr, viewmats = quality(run.run(never), taken(data, HELD)), wrong.views.viewmats
        if run.extras.poses is not None:
            pairs = zip(viewmats, run.extras.poses.rows.values, strict=True)
            viewmats = np.stack([corrected_viewmat(torch.tensor(v), twist.double()).numpy() for v, twist in pairs])
        yield {"option": rate, "psnr": psnr, "pixels off": pixels_off(viewmats, truth, data)}


def colours(folder: Path) -> Iterator[Row]:
    """Exposures of 0.6 to 1.4 and channel gains of 0.9 to 1.1."""
    data, rng, paths = data_of(_scene(folder)), np.random.default_rng(3), []
    for name, path in zip(data.views.names, data.views.paths, strict=True):
        pixels = np.asarray(Image.open(path), float) * rng.uniform(0.6, 1.4) * rng.uniform(0.9, 1.1, 3)
        paths.append(folder / f"{name}.png")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1])
    jittered = replace(data, views=replace(data.views, paths=tuple(paths)))
    for rate in (0.0, 2e-2, 1e-1):
        run, _ = training(taken(jittered, KEPT), folder / f"{rate}", bilateral_lr=rate, **SETTINGS)
        params, held = run.run(never), taken(data, HELD)
        yield {"option": rate, "psnr": quality(params, held), "cc_psnr": quality(params, held, corrected=True)}


def depth(folder: Path) -> Iterator[Row]:
    """Three training views; disparity error at the points that four other cameras observe."""
    data = with_tracks(_scene(folder))
    few, others = taken(data, np.array([6, 8, 16])), taken(data, np.array([7, 11, 12, 13]))
    assert others.observed is not None
    for weight in (0.0, 0.01, 0.1, 1.0):
        run, _ = training(few, folder / f"{weight}", depth_weight=weight, means_lr=1e-3, **SETTINGS)
        params, loader = run.run(never), ViewLoader(others.views, CPU, 1 << 24)
        depths, errors = PointDepths(data.points, others.observed, CPU), []
        parts = params["means"], params["quats"], params["scales"].exp(), params["opacities"].sigmoid()
        with torch.no_grad():
            for i in range(len(others.views)):
                error = depths.loss(loader.get(i), *parts, None)
                errors += [] if error is None else [float(error)]
        loader.close()
        yield {"option": weight, "psnr": quality(params, others), "disparity error": float(np.mean(errors))}


CASES: dict[str, Callable[[Path], Iterator[Row]]] = {
    "masks": masks,
    "poses": poses,
    "colours": colours,
    "depth": depth,
}


def _scene(folder: Path) -> Any:
    return write_scene(folder / "scene", scaled(synthetic_scene(n_cameras=25, n_points=150), 1 / 6))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(CASES))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for name in [args.only] if args.only else CASES:
        with tempfile.TemporaryDirectory() as folder:
            for row in CASES[name](Path(folder)):
                rows.append({"case": name, **row})
                values = (f"{key} {v:.4g}" if isinstance(v, float) else f"{key} {v}" for key, v in rows[-1].items())
                print(", ".join(values), flush=True)
                if args.json:
                    write_json(args.json, {"rows": rows})


if __name__ == "__main__":
    main()
