"""Scenes whose patches differ in extent: a city flown closely in one corner and loosely elsewhere, and unequal cuts.

Patches hold about as many cameras each, so that those of the loosely flown part are several times as large as the
others, and each of their points is seen from few places.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests")]

from scenes import scene_from  # noqa: E402
from synthetic_city import FOCAL, HEIGHT, WIDTH, make_city  # noqa: E402

from splatpipe.patches.frame import ground_frame  # noqa: E402
from splatpipe.scene.arrays import Scene  # noqa: E402
from splatpipe.scene.colmap import assemble  # noqa: E402

CAMERAS, POINTS, PIXELS = 1620, 12_000, 96  # of the closely flown city; width of its photographs
CLOSE, LOOSE = 0.25, 0.5  # of the city's side; up to the first all cameras are kept,
SHARES = (1.0, 0.2, 0.04)  # then this share of them, and beyond the second this
VIEWS = 3  # a point that fewer cameras observe is left out
# Cuts of the ground, each (left, right, near, far) as shares of the points' rectangle. On brighton_beach the extents of
# their patches are up to 2.2 (a) and 2.0 (b) times the median.
CUTS: dict[str, tuple[tuple[float, float, float, float], ...]] = {
    "a": (
        *((0, 0.25, 0, 0.19), (0, 0.25, 0.19, 0.35), (0.25, 0.58, 0, 0.07), (0.25, 0.58, 0.07, 0.23)),
        *((0.58, 1, 0, 0.23), (0.25, 1, 0.23, 0.35), (0, 0.7, 0.35, 1), (0.7, 1, 0.35, 1)),
    ),
    "b": (
        *((0, 0.14, 0, 0.46), (0.14, 0.49, 0, 0.32), (0.14, 0.49, 0.32, 0.46), (0.49, 1, 0, 0.46)),
        *((0, 0.48, 0.46, 1), (0.48, 1, 0.46, 1)),
    ),
}


def cells(scene: Scene, cuts: str) -> list[list[list[float]]]:
    """`patching.cells` for one of `CUTS`."""
    positions = ground_frame(scene, "auto").apply(scene.points)[:, :2]
    low, size = positions.min(axis=0), np.ptp(positions, axis=0)
    corners = ([(x0, y0), (x1, y0), (x1, y1), (x0, y1)] for x0, x1, y0, y1 in CUTS[cuts])
    return [(low + np.array(one) * size).tolist() for one in corners]


def uneven_city(seed: int = 0) -> Scene:
    """About 240 cameras, without photographs."""
    rng = np.random.default_rng(seed)
    city, _ = assemble(make_city(CAMERAS, POINTS, 1, seed), Path("memory/sparse/0"), Path("memory/images"))
    ground = city.centers[:, :2]
    away = ((ground - ground.min(axis=0)) / np.ptp(ground, axis=0)).max(axis=1)
    kept = rng.random(len(away)) < np.select([away < CLOSE, away < LOOSE], SHARES[:2], SHARES[2])
    camera = {"size": (PIXELS, PIXELS * HEIGHT // WIDTH), "focal": FOCAL * PIXELS / WIDTH, "share": 0.6, "seed": seed}
    every = scene_from(city.points, city.viewmats[kept], colors=city.colors, **camera)
    enough = np.diff(every.track_offsets) >= VIEWS
    return scene_from(city.points[enough], city.viewmats[kept], colors=city.colors[enough], **camera)
