"""Outlines that somebody drew: how far a place is from them, and how they look on the map."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scenes import synthetic_scene

from splatpipe.patches.map import FINE, TINT, _Canvas, _color, draw_map
from splatpipe.patches.partition import split
from splatpipe.patches.region import distance_to_ring
from splatpipe.patches.settings import PatchingSettings

KITE = np.array([[0.0, 0], [4, 0], [4, 3], [0, 3]])


@pytest.mark.parametrize(
    ("place", "distance"),
    [
        ((2, 1), 1.0),  # inside, from the nearest of four edges
        ((2, -2), 2.0),
        ((7, 3), 3.0),
        ((7, 7), 5.0),  # beyond a corner, where an edge's line would be nearer
        ((-3, -4), 5.0),
        ((-2, 1.5), 2.0),  # from the edge that closes the ring
        ((4, 3), 0.0),
    ],
)
def test_the_distance_to_a_ring_is_that_to_its_nearest_edge_or_corner(
    place: tuple[float, float], distance: float
) -> None:
    for turn in range(4):
        assert distance_to_ring(np.roll(KITE, turn, axis=0), np.array([place])) == pytest.approx([distance])


def test_an_edge_without_length_is_a_corner() -> None:
    ring = np.array([[0.0, 0], [0, 0], [4, 0], [4, 3]])
    assert distance_to_ring(ring, np.array([[-3.0, -4]])) == pytest.approx([5.0])


def test_the_map_tints_each_patch_s_own_ground_up_to_its_outline_and_no_further(tmp_path: Path) -> None:
    scene = synthetic_scene(40, 3000, "aerial", seed=1)
    scene = replace(scene, colors=np.full_like(scene.colors, 255))
    ell = ((-4.0, -4.0), (4.0, -4.0), (4.0, -1.0), (-1.0, -1.0), (-1.0, 4.0), (-4.0, 4.0))
    other = ((4.0, -1.0), (4.0, 4.0), (-1.0, 4.0), (-1.0, -1.0))
    cut = split(scene, PatchingSettings(frame="xy", cells=(ell, other), holdout_every=0))
    colors = [_color(i) for i in range(len(cut.patches))]
    draw_map(scene, cut, tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as picture:
        pixels = np.asarray(picture.convert("RGB"), float)
    canvas = _Canvas(cut.frame.apply(scene.points), cut.frame.apply(scene.centers))
    steps = np.linspace(-3.9, 3.9, 120)
    places = np.stack([*(axis.ravel() for axis in np.meshgrid(steps, steps)), np.zeros(120**2)], axis=1)
    x, y = (canvas.at(places) / FINE).astype(int).T
    tints = 255 + (np.array(colors) - 255) * TINT / 255
    away = np.abs(pixels[y, x][:, None] - tints).max(axis=2)
    plain = away.min(axis=1) < 3  # neither a camera, nor a label, nor an edge
    owner = np.array([patch.core.contains(places) for patch in cut.patches]).argmax(axis=0)
    assert all(plain[owner == i].mean() > 0.5 for i in range(2))
    assert (away.argmin(axis=1) == owner)[plain].mean() > 0.995
    edges = np.abs(pixels[:, :, None] - colors).max(axis=3) < 30
    assert edges.any(axis=(0, 1)).all()
