"""Does `splatpipe diagnose` rank a planted cause first? One real patch, one cause at a time, real trainings.

python benchmarks/diagnosis.py [--scene DIR] [--cameras N] [--width PX] [--budget 5m] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from splatpipe import pipeline
from splatpipe.diagnosing import diagnose_patch
from splatpipe.diagnosis.datasets import read_patch_scene
from splatpipe.layout import PatchLayout
from splatpipe.scene.arrays import Scene, Similarity
from splatpipe.scene.colmap import write_model

PATCH = "p000"


def blind_cameras(scene: Scene) -> Scene:
    """Two cameras turned about their own vertical axes, away from everything."""
    viewmats = scene.viewmats.copy()
    for i in (0, 3):
        viewmats[i] = np.diag([-1.0, 1.0, -1.0, 1.0]) @ viewmats[i]
    return replace(scene, viewmats=viewmats)


def other_units(scene: Scene) -> Scene:
    similarity = Similarity(1000.0, (0.0, 0.0, 0.0))
    return replace(scene, points=similarity.apply(scene.points), viewmats=similarity.apply_viewmats(scene.viewmats))


def far_points(scene: Scene) -> Scene:
    """Three in a hundred points, 200 to 900 times as far."""
    points = scene.points.copy()
    points[::33] *= np.linspace(200, 900, len(points[::33]))[:, None]
    return replace(scene, points=points)


def rewrite(patch: PatchLayout, change: Callable[[Scene], Scene]) -> None:
    scene = change(read_patch_scene(patch))
    write_model(scene, np.arange(scene.n_cameras), np.arange(scene.n_points), patch.sparse)


def half_an_image(patch: PatchLayout) -> None:
    name = read_patch_scene(patch).names[1]
    whole = (patch.images / name).read_bytes()
    (patch.images / name).unlink()
    (patch.images / name).write_bytes(whole[: len(whole) // 2])


PLANTS: dict[str, tuple[str, Callable[[PatchLayout], None]]] = {
    "two blind cameras": ("blind_cameras", lambda patch: rewrite(patch, blind_cameras)),
    "units x1000": ("scale", lambda patch: rewrite(patch, other_units)),
    "3 % far points": ("outlier_points", lambda patch: rewrite(patch, far_points)),
    "half an image": ("corrupt_image", half_an_image),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", type=Path, default=Path(__file__).parents[1] / "examples" / "brighton_beach")
    parser.add_argument("--cameras", type=int, default=8)
    parser.add_argument("--width", type=int, default=200)
    parser.add_argument("--budget", default="5m")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    settings = ["training.iterations=2000", "training.device=cpu", f"training.max_width={given.width}"]
    settings.append(f"patching.max_cameras={given.cameras}")
    rows: list[dict[str, Any]] = []
    for name, (kind, plant) in PLANTS.items():
        with tempfile.TemporaryDirectory() as folder:
            options = pipeline.RunOptions.resolve(given.scene, Path(folder) / "run", None, settings, None, None)
            pipeline.split(options, dry_run=False)
            plant(options.layout.patch(PATCH))
            began = time.monotonic()
            report = diagnose_patch(options, PATCH, None, given.budget, stop=threading.Event())
        first, second = report["causes"][:2]
        rows.append(
            {
                "planted": name,
                "first": first["kind"],
                "right": first["kind"] == kind,
                "verdict": first["verdict"],
                "score": first["score"],
                "next": f"{second['kind']} ({second['verdict']})",
                "experiments": len(report["experiments"]),
                "seconds": round(time.monotonic() - began, 1),
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    print("| planted | ranked first | verdict | next | experiments | seconds |\n|---|---|---|---|---|---|")
    for row in rows:
        mark = "" if row["right"] else " (WRONG)"
        cells = (row["planted"], row["first"] + mark, row["verdict"], row["next"], row["experiments"], row["seconds"])
        print("| " + " | ".join(map(str, cells)) + " |")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
