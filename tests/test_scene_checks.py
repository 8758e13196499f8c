"""`inspect` names what is odd about a scene, with numbers, and is silent about a sound one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scenes import EXAMPLE, scaled, synthetic_scene

from splatpipe.scene.arrays import Scene, Similarity
from splatpipe.scene.checks import check_scene
from splatpipe.scene.colmap import read_scene

SOUND = synthetic_scene(24, 1500, "object", seed=1)


def test_nothing_is_odd_about_a_sound_scene() -> None:
    assert check_scene(SOUND) == []


def test_the_only_oddity_of_the_example_is_points_that_sift_found_twice() -> None:
    (finding,) = check_scene(read_scene(EXAMPLE).scene)
    assert finding.severity == "note"
    assert finding.message == "390 points stand exactly where another one does"


def far_camera(scene: Scene) -> Scene:
    viewmats = scene.viewmats.copy()
    viewmats[5, :3, 3] += 900
    return replace(scene, viewmats=viewmats)


def turned_camera(scene: Scene) -> Scene:
    viewmats = scene.viewmats.copy()
    viewmats[7] = np.diag([-1.0, 1.0, -1.0, 1.0]) @ viewmats[7]
    return replace(scene, viewmats=viewmats)


def far_points(scene: Scene) -> Scene:
    points = scene.points.copy()
    points[:3] *= 1e4
    return replace(scene, points=points)


def same_points(scene: Scene) -> Scene:
    points = scene.points.copy()
    points[10:14] = points[9]
    return replace(scene, points=points)


def without_tracks(scene: Scene, keep: int) -> Scene:
    """Only the first `keep` views of each point."""
    rank = np.arange(len(scene.track_cameras)) - np.repeat(scene.track_offsets[:-1], np.diff(scene.track_offsets))
    kept = rank < keep
    lengths = np.minimum(np.diff(scene.track_offsets), keep)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return replace(scene, track_offsets=offsets, track_cameras=scene.track_cameras[kept], track_xy=scene.track_xy[kept])


def other_lens(scene: Scene) -> Scene:
    Ks = scene.Ks.copy()
    Ks[3, 0, 0] *= 2
    return replace(scene, Ks=Ks)


def odd_lens(scene: Scene) -> Scene:
    Ks = scene.Ks.copy()
    Ks[:, 0, 2] = 2.0
    return replace(scene, Ks=Ks)


def in_utm(scene: Scene) -> Scene:
    shift = Similarity(1.0, (512345.6, 5412345.6, 312.0))
    return replace(scene, points=shift.apply(scene.points), viewmats=shift.apply_viewmats(scene.viewmats))


CASES: list[tuple[str, Callable[[Scene], Scene], str]] = [
    ("outlier_cameras", far_camera, "1 camera stands more than 10 times"),
    ("facing_away", turned_camera, "first view_0007.jpg"),
    ("outlier_points", far_points, "3 points lie more than 10 times"),
    ("duplicate_points", same_points, "4 points stand exactly"),
    ("short_tracks", lambda scene: without_tracks(scene, 1), "1.00 views a point"),
    ("unobserving_cameras", lambda scene: without_tracks(scene, 0), "24 cameras observe no point"),
    ("few_points", lambda _: synthetic_scene(20, 300, "object"), "300 points are little"),
    ("mismatched_intrinsics", other_lens, "focal lengths from 60 to 120 px"),
    ("odd_intrinsics", odd_lens, "its centre at (2, 24)"),
    ("reprojection_error", lambda scene: replace(scene, errors=scene.errors * 10), "5.00 px"),
    ("units", lambda scene: scaled(scene, 1e-5), "scene units"),
    ("far_from_origin", in_utm, "lies 5,412,346 units from the origin"),
]


@pytest.mark.parametrize(("kind", "damage", "said"), CASES, ids=[case[0] for case in CASES])
def test_each_oddity_is_found_with_its_numbers(kind: str, damage: Callable[[Scene], Scene], said: str) -> None:
    found = {finding.kind: finding for finding in check_scene(damage(SOUND))}
    assert said in found[kind].message
    assert found[kind].numbers
