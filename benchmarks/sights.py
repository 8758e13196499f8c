"""Whether views by sight (`splatpipe/patches/sights.py`) are views: judged on a city whose surfaces are known.

    python benchmarks/sights.py --max-cameras 100

Makes a city as `synthetic_city.py` does and splits it. A point is truly shown by a camera that has it in its image and
faces its surface; houses hide nothing in this city. `unmatched` are the core points with fewer than three matched views
in their patch though the scene has them, `unseen` those that fewer than three of its cameras truly show, `short` what
the rule calls short; `false` are views of unmatched points by sight that look at the back of a surface.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import synthetic_city
from numpy.typing import NDArray
from synthetic_city import FACING, make_city, write_city

from splatpipe.patches.partition import split
from splatpipe.patches.patch import Patch, Role
from splatpipe.patches.settings import PatchingSettings
from splatpipe.patches.sights import Sights
from splatpipe.patches.visibility import projects_inside, visibility
from splatpipe.scene.arrays import Scene
from splatpipe.scene.colmap import read_scene

VIEWS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cameras", type=int, default=1_000)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--observations", type=int, default=600_000)
    parser.add_argument("--max-cameras", type=int, default=100)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_city(Path(folder), make_city(args.cameras, args.points, args.observations))
        scene = read_scene(Path(folder)).scene
    normals = normals_of(args.cameras, args.points)
    result = split(scene, PatchingSettings(max_cameras=args.max_cameras, min_views=VIEWS))
    told = next((f.numbers["points"] for f in result.findings if f.kind == "few_views"), {})
    counts = np.sum([judge(scene, patch, result.holdout, normals) for patch in result.patches], axis=0)
    unmatched, unseen, sights, false = counts
    print(f"{len(result.patches)} patches, {scene.n_points:,} points")
    print(f"unmatched {unmatched:,} ({unmatched / scene.n_points:.2%}), of these unseen {unseen:,}")
    print(f"short by the rule {sum(told.values()):,}; false {false:,} of {sights:,} ({false / sights:.2%})")


def normals_of(cameras: int, points: int) -> NDArray[np.float64]:
    """(P, 3) those that `make_city` gives its points."""
    rng = np.random.default_rng(0)
    stations = synthetic_city._stations(-(-cameras // 5))
    synthetic_city._cameras(stations, rng)
    margin = synthetic_city.ALTITUDE / 2
    return synthetic_city._surfaces(points, stations.min(axis=0) - margin, stations.max(axis=0) + margin, rng)[1]


def judge(scene: Scene, patch: Patch, holdout: NDArray[np.int64], normals: NDArray[np.float64]) -> NDArray[np.int64]:
    """(4,) unmatched points, how many of them are unseen, views of them by sight, and how many of these are false."""
    core, seen = patch.points_with(Role.CORE), visibility(scene)
    training = np.setdiff1d(np.arange(scene.n_cameras), holdout)
    wanted = np.minimum(seen.views(training, scene.n_points), np.int32(VIEWS))
    short = core[(seen.views(patch.camera_index, scene.n_points) < wanted)[core]]
    true, sights, false, finder = np.zeros(len(short), np.int64), 0, 0, Sights.of(scene)
    for camera in patch.camera_index:
        ways = scene.centers[camera] - scene.points[short]
        faces = (ways * normals[short]).sum(axis=1) > FACING * np.linalg.norm(ways, axis=1)
        true += projects_inside(scene, int(camera), short) & faces
        none = np.zeros(scene.n_points, np.int32)
        looks = finder.beside(none, none + 1, short, np.array([camera]))[short] > 0
        sights, false = sights + int(looks.sum()), false + int((looks & ~faces).sum())
    return np.array([len(short), (true < VIEWS).sum(), sights, false])


if __name__ == "__main__":
    main()
