"""Statistics and preflight are numbers that can be checked by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scenes import look_at, scaled, scene_from, synthetic_scene

from splatpipe.patches.dataset import normalising_similarity
from splatpipe.patches.footprints import footprints
from splatpipe.patches.frame import ground_frame
from splatpipe.patches.neighbours import nearest_distances, spatial_order
from splatpipe.patches.partition import split
from splatpipe.patches.patch import Box, Patch, Role
from splatpipe.patches.preflight import preflight
from splatpipe.patches.settings import PatchingSettings
from splatpipe.patches.stats import PatchStats, patch_stats
from splatpipe.policy.init_scaling import InitScalingSettings, first_rung
from splatpipe.scene.arrays import Scene, Similarity
from splatpipe.splatting.spacing import initial_scales_gsplat, initial_scales_lfs, neighbour_distances

SAME = Similarity(1.0, (0.0, 0.0, 0.0))


def whole(scene: Scene) -> Patch:
    """The scene as one patch, all cameras training."""
    return Patch(
        id="p000",
        core=Box.everything(),
        buffered=Box.everything(),
        frame=ground_frame(scene, "xy"),
        point_index=np.arange(scene.n_points),
        point_role=np.zeros(scene.n_points, np.uint8),
        camera_index=np.arange(scene.n_cameras),
        camera_reasons=("test",) * scene.n_cameras,
        holdout_cameras=np.empty(0, np.int64),
    )


# ------------------------------------------------------------------ spacing


def test_neighbour_distances_on_a_line() -> None:
    points = np.array([[0.0, 0, 0], [1, 0, 0], [3, 0, 0], [7, 0, 0]])
    assert_allclose(neighbour_distances(points), [[1, 3, 7], [1, 2, 6], [2, 3, 4], [4, 6, 7]])


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_few_points_have_distances_too(n: int) -> None:
    points = np.array([[0.0, 0, 0], [2, 0, 0], [5, 0, 0]])[:n]
    found = neighbour_distances(points)
    expected = {0: np.empty((0, 3)), 1: [[0, 0, 0]], 2: [[2, 2, 2]] * 2, 3: [[2, 5, 5], [2, 3, 3], [3, 5, 5]]}[n]
    assert_allclose(found, expected)
    assert np.isfinite(np.log(initial_scales_gsplat(points, 0.1))).all()
    assert np.isfinite(np.log(initial_scales_lfs(points, 0.1))).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(5, 40))
def test_neighbour_distances_agree_with_brute_force_also_for_coincident_points(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.integers(0, 3, (n, 3)).astype(float)
    all_distances = np.linalg.norm(points[:, None] - points, axis=2)
    np.fill_diagonal(all_distances, np.inf)
    assert_allclose(neighbour_distances(points), np.sort(all_distances, axis=1)[:, :3])
    assert_allclose(nearest_distances(points, spatial_order(points)), np.sort(all_distances, axis=1)[:, :3])


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9, 3000])
def test_patches_and_trainings_measure_the_same_distances(n: int) -> None:
    """Patches with a search of their own, which is faster; also for walls, holes, lone and coincident points."""
    rng = np.random.default_rng(n)
    points = rng.normal(size=(n, 3)) * rng.choice([0.0, 0.01, 1.0, 100.0], (n, 1))
    assert_allclose(nearest_distances(points, spatial_order(points)), neighbour_distances(points), rtol=1e-12)


def test_each_trainer_has_its_own_initial_size() -> None:
    points = np.array([[0.0, 0, 0], [0.04, 0, 0], [0, 0.04, 0], [0, 0, 0.04]])
    assert_allclose(initial_scales_gsplat(points, 0.1)[0], 0.1 * 0.04)
    assert_allclose(initial_scales_lfs(points, 0.1)[0], 0.1 * np.sqrt(0.04))


def test_lichtfeld_skips_duplicates_and_knows_lonely_points() -> None:
    pair = np.array([[0.0, 0, 0], [0, 0, 0], [0.09, 0, 0], [0.5, 0, 0]])
    assert_allclose(initial_scales_lfs(pair, 1.0)[0], np.sqrt((0.09 + 0.5) / 2))
    assert_allclose(initial_scales_lfs(np.zeros((3, 3)), 0.1), 0.1 * np.sqrt(0.01))
    assert_allclose(initial_scales_lfs(np.zeros((1, 3)), 0.1), 0.1 * np.sqrt(0.01))
    assert_allclose(initial_scales_lfs(np.array([[0.0, 0, 0], [0.25, 0, 0]]), 1.0), 0.5)


# ------------------------------------------------------------------ statistics


def line_scene() -> Scene:
    """Four points on a line at depth 5 before two cameras, the second turned away by 90 degrees."""
    points = np.array([[-1.0, 0, 0], [0, 0, 0], [1, 0, 0], [2, 0, 0]])
    return scene_from(points, np.stack([look_at((0, -5, 0), (0, 0, 0)), look_at((0, -5, 0), (100, -5, 0))]))


def test_counts_extent_and_depth() -> None:
    scene = line_scene()
    stats = patch_stats(scene, whole(scene), SAME)
    assert (stats.cameras, stats.points, stats.core_points) == (2, 4, 4)
    assert stats.full_extent_axes == (3.0, 0.0, 0.0)
    assert stats.extent == pytest.approx(3 * 0.98)
    assert stats.spacing["mean"] == pytest.approx(np.mean([2, 4 / 3, 4 / 3, 2]))
    assert stats.median_depth == pytest.approx(np.median([np.hypot(5, 1), 5, np.hypot(5, 1), np.hypot(5, 2)]))


def test_an_outlier_does_not_change_the_extent_that_decides() -> None:
    scene = synthetic_scene(6, 1000, seed=2)
    points = scene.points.copy()
    points[0] = 1e5
    stats = patch_stats(replace(scene, points=points), whole(scene), SAME)
    assert stats.extent < 11
    assert max(stats.full_extent_axes) > 9e4


def test_visible_gaussians_by_hand() -> None:
    """A Gaussian outside the image is seen once 3 sigma_px reach the border; one behind, never."""
    means = np.array([[0.0, 0, 10], [8.0, 0, 10], [0, 0, -10], [0, 0, 0.005]])
    viewmats, sizes = np.eye(4)[None], np.array([[64, 48]])
    Ks = np.array([[[60.0, 0, 32], [0, 60, 24], [0, 0, 1]]])
    # mean2d.x = 8 / 10 * 60 + 32 = 80, which is 16 px outside; sigma_px must reach 16 / 3.
    needed = np.sqrt((16 / 3) ** 2 - 0.3) * 10 / 60
    found = footprints(means, np.ones(4), viewmats, Ks, sizes, [needed * 0.999, needed * 1.001])
    assert_array_equal(found.visible, [[1], [2]])
    assert_array_equal(found.seen_share, [1, 0, 0, 0])
    # In the middle, 3 sigma reach 15.98 px each way: columns 16.02 to 47.98, rows 8.02 to 39.98.
    assert_array_equal(found.tiles, [2 * 3])
    assert found.unit_area[0] == pytest.approx(np.pi * 36 / (64 * 48), rel=1e-5)


def test_visible_counts_never_fall_with_the_rung_and_agree_with_the_definition() -> None:
    scene = synthetic_scene(12, 300, seed=9)
    patch = whole(scene)
    stats = patch_stats(scene, patch, normalising_similarity(scene, patch))
    assert (np.diff(stats.visible, axis=0) >= 0).all()
    similarity = normalising_similarity(scene, patch)
    means = similarity.apply(scene.points)
    sigma = initial_scales_gsplat(means, 0.3)
    for camera in range(12):
        viewmat = similarity.apply_viewmats(scene.viewmats)[camera]
        local = means @ viewmat[:3, :3].T + viewmat[:3, 3]
        z = local[:, 2]
        xy = local[:, :2] / z[:, None] * 60 + [32, 24]
        radius = 3 * np.sqrt((60 * sigma / z) ** 2 + 0.3)[:, None]
        inside = ((xy + radius >= 0) & (xy - radius <= [64, 48])).all(axis=1) & (z > 0.01)
        assert abs(int(inside.sum()) - int(stats.visible[2, camera])) <= 1


def test_seen_share_is_the_share_of_cameras() -> None:
    scene = line_scene()
    stats = patch_stats(scene, whole(scene), SAME)
    assert_array_equal(stats.seen_share, [0.5] * 4)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_statistics_follow_the_units_and_decisions_do_not(factor: float) -> None:
    scene = synthetic_scene(40, 600, seed=4)
    choices = []
    for unit in (1.0, factor):
        here = scaled(scene, unit)
        stats = {}
        for patch in split(here, PatchingSettings(max_cameras=12)).patches:
            similarity = normalising_similarity(here, patch)
            stats[patch.id] = patch_stats(here, patch, similarity, trainer="lichtfeld")
        floors = [preflight(here, p, stats[p.id]).floor for p in split(here, PatchingSettings(max_cameras=12)).patches]
        choices.append((stats, first_rung({k: s.extent for k, s in stats.items()}, InitScalingSettings()), floors))
    (one, rungs, floors), (other, other_rungs, other_floors) = choices
    assert {k: c.init_scaling for k, c in rungs.items()} == {k: c.init_scaling for k, c in other_rungs.items()}
    assert floors == other_floors
    for key in one:
        assert other[key].extent == pytest.approx(one[key].extent * factor)
        assert other[key].median_depth == pytest.approx(one[key].median_depth * factor)
        assert other[key].initial_scale_training == pytest.approx(one[key].initial_scale_training)
        assert_allclose(other[key].visible, one[key].visible, atol=1)


def test_statistics_are_plain_json() -> None:
    scene = line_scene()
    stats = patch_stats(scene, whole(scene), SAME)
    data = json.loads(json.dumps(stats.to_json(), allow_nan=False))
    assert data["visible"]["0.1"] == [4, 0]
    blind = replace(
        scene, track_offsets=np.zeros(5, np.int64), track_cameras=np.empty(0, np.int32), track_xy=np.empty((0, 2))
    )
    assert patch_stats(blind, whole(scene), SAME).to_json()["median_depth"] is None


# ------------------------------------------------------------------ preflight


def judged(scene: Scene, **changes: object) -> tuple[PatchStats, dict[str, str], Patch]:
    patch = whole(scene)
    stats = replace(patch_stats(scene, patch, SAME), **changes)  # type: ignore[arg-type]
    return stats, {f.kind: f.message for f in preflight(scene, patch, stats).findings}, patch


def test_a_camera_that_looks_away_is_blind_at_every_rung() -> None:
    scene = line_scene()
    stats, said, patch = judged(scene)
    result = preflight(scene, patch, stats)
    assert result.blind == dict.fromkeys((0.1, 0.2, 0.3, 0.4), ("view_0001.jpg",))
    assert result.floor is None
    assert result.blind_at(0.25) == ("view_0001.jpg",)
    assert "1 of 2 cameras see no initial Gaussian at init_scaling 0.1, first view_0001.jpg" in said["blind_cameras"]
    assert json.loads(json.dumps(result.to_json()))["blind"]["0.3"] == ["view_0001.jpg"]


def test_the_floor_is_the_smallest_rung_without_a_blind_camera() -> None:
    """The p7 case: a border camera catches only the skirts of its neighbours' Gaussians, and only large ones."""
    scene = line_scene()
    patch = whole(scene)
    stats = replace(patch_stats(scene, patch, SAME), visible=np.array([[4, 0], [4, 0], [4, 3], [4, 9]]))
    result = preflight(scene, patch, stats)
    assert result.floor == 0.3
    assert result.blind_at(0.1) == ("view_0001.jpg",)
    assert result.blind_at(0.3) == ()


def test_few_points_weak_cameras_and_odd_sizes_are_found() -> None:
    _, said, _ = judged(line_scene(), cameras=20, relative_size={"gsplat": 20.0}, seen_share=np.full(4, 0.05))
    assert "4 points are too few to grow from" in said["few_points"]
    assert "1 of 2 cameras see fewer than 50" in said["weak_cameras"]
    assert "20 neighbour distances" in said["relative_size"] and "explode" in said["relative_size"]
    assert "100% of the initial Gaussians" in said["seldom_seen"]


def test_a_sound_patch_has_no_findings() -> None:
    scene = synthetic_scene(12, 1200, "object", seed=3)
    patch = split(scene, PatchingSettings()).patches[0]
    stats = patch_stats(scene, patch, normalising_similarity(scene, patch))
    result = preflight(scene, patch, stats)
    assert result.findings == ()
    assert result.floor == 0.1


def test_points_have_roles() -> None:
    scene = synthetic_scene(40, 600, seed=4)
    patch = split(scene, PatchingSettings(max_cameras=12)).patches[0]
    stats = patch_stats(scene, patch, normalising_similarity(scene, patch))
    assert stats.core_points == len(patch.points_with(Role.CORE))
    assert stats.buffer_points == len(patch.points_with(Role.BUFFER))
    assert stats.background_points == len(patch.points_with(Role.BACKGROUND)) > 0
    assert stats.points == len(patch.point_index)
