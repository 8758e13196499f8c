"""How many cameras of a patch see no initial Gaussian: patches by camera centres in raw XY, and ours.

    python benchmarks/blind_cameras.py SCENE... --max-cameras 8,8 --json blind.json

A patch "by centre" is what tools did before visibility was looked at: the model's XY plane is halved at the median
camera until no box holds more than the cap; a box is widened by a tenth, gets the cameras whose centre is inside, and
the points inside that one of these observes. A trainer that dies of a blind camera wastes an attempt at every rung
at which a patch has one; `wasted` counts these, up to the first rung without.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splatpipe.patches.box import Box
from splatpipe.patches.dataset import normalising_similarity
from splatpipe.patches.frame import ground_frame
from splatpipe.patches.partition import split
from splatpipe.patches.patch import Patch, Role
from splatpipe.patches.settings import PatchingSettings
from splatpipe.patches.stats import RUNGS, patch_stats
from splatpipe.scene.arrays import Scene
from splatpipe.scene.colmap import read_scene

BUFFER = 0.1  # of the box's sides
COLUMNS = ("scene", "way", "patches", "empty", "cameras", "blind_0.1", "blind_0.4", "patches_hit", "wasted", "weak")
WEAK = 50  # Gaussians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path, nargs="+")
    parser.add_argument("--max-cameras", default="200", help="one for all scenes, or one for each, by commas")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    caps = [int(cap) for cap in args.max_cameras.split(",")]
    caps = caps * len(args.scenes) if len(caps) == 1 else caps
    rows = []
    for folder, cap in zip(args.scenes, caps, strict=True):
        scene = read_scene(folder).scene
        ours = split(scene, PatchingSettings(max_cameras=cap, holdout_every=0)).patches
        for trainer in ("gsplat", "lichtfeld"):
            for way, patches in (("by centre", by_centre(scene, cap)), ("splatpipe", ours)):
                row = {"scene": f"{folder.name} {trainer}", "way": way}
                rows.append(row | count(scene, patches, trainer))  # type: ignore[arg-type]
    print(" ".join(f"{name:>20}" if name == "scene" else f"{name:>11}" for name in COLUMNS))
    for row in rows:
        print(" ".join(f"{row[name]!s:>20}" if name == "scene" else f"{row[name]!s:>11}" for name in COLUMNS))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


def by_centre(scene: Scene, cap: int) -> list[Patch]:
    """Patches by camera centres in the model's XY plane."""
    frame = ground_frame(scene, "xy")
    boxes: list[Box] = []
    stack = [(Box.everything(), np.arange(scene.n_cameras))]
    while stack:
        box, inside = stack.pop()
        if len(inside) <= cap:
            boxes.append(box)
            continue
        xy = scene.centers[inside, :2]
        axis = int(np.argmax(np.ptp(xy, axis=0)))
        at = float(np.median(xy[:, axis]))
        below, above = box.cut(axis, at)
        is_below = scene.centers[inside, axis] < at
        stack += [(above, inside[~is_below]), (below, inside[is_below])]
    seen = np.repeat(np.arange(scene.n_points), np.diff(scene.track_offsets))
    return [_patch(scene, f"p{i:03d}", box, frame, seen) for i, box in enumerate(boxes)]


def _patch(scene: Scene, name: str, core: Box, frame: Any, point_of: NDArray[np.int64]) -> Patch:
    low, high = scene.centers.min(axis=0), scene.centers.max(axis=0)
    sides = np.minimum(core.upper, high) - np.maximum(core.lower, low)
    margin = np.append(BUFFER * sides[:2], 0.0)
    wide = Box(core.lower - margin, core.upper + margin)
    cameras = np.flatnonzero(wide.contains(scene.centers))
    chosen = np.zeros(scene.n_cameras, bool)
    chosen[cameras] = True
    observed = np.zeros(scene.n_points, bool)
    observed[point_of[chosen[scene.track_cameras]]] = True
    points = np.flatnonzero(wide.contains(scene.points) & observed)
    roles = np.full(len(points), Role.CORE, np.uint8)
    return Patch(name, core, wide, frame, points, roles, cameras, ("centre",) * len(cameras), np.empty(0, np.int64))


def count(scene: Scene, patches: Sequence[Patch], trainer: Any) -> dict[str, Any]:
    """Cameras, summed over patches, and attempts that a trainer which dies of a blind camera would waste."""

    def visible(patch: Patch) -> NDArray[np.int64]:
        if not len(patch.point_index):
            return np.zeros((len(RUNGS), len(patch.camera_index)), np.int64)
        return patch_stats(scene, patch, normalising_similarity(scene, patch), trainer=trainer).visible

    with ThreadPoolExecutor(2) as pool:
        tables = list(pool.map(visible, patches))
    blind = [(table == 0).sum(axis=1) for table in tables]
    return {
        "patches": len(patches),
        "empty": sum(not len(patch.point_index) for patch in patches),
        "cameras": sum(len(patch.camera_index) for patch in patches),
        "blind_0.1": int(sum(counts[0] for counts in blind)),
        "blind_0.4": int(sum(counts[-1] for counts in blind)),
        "patches_hit": sum(bool(counts[0]) for counts in blind),
        "wasted": sum(int(np.cumprod(counts > 0).sum()) for counts in blind),
        "weak": sum(int(((table[0] > 0) & (table[0] < WEAK)).sum()) for table in tables),
    }


if __name__ == "__main__":
    main()
