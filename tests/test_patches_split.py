"""Splitting keeps its promises on any scene."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scenes import look_at, scaled, scene_from, synthetic_scene
from scipy.spatial.transform import Rotation

from splatpipe.errors import SceneError
from splatpipe.patches.dataset import normalising_similarity
from splatpipe.patches.partition import Split, split
from splatpipe.patches.patch import Role
from splatpipe.patches.settings import PatchingSettings
from splatpipe.patches.visibility import visibility
from splatpipe.scene.arrays import Scene

KINDS = ("aerial", "object", "facade", "line", "clusters", "dense spot", "islands", "one place", "one point", "wild")


def random_scene(kind: str, n_cameras: int, n_points: int, seed: int) -> Scene:
    if kind in ("aerial", "object", "facade", "line"):
        return synthetic_scene(n_cameras, n_points, kind, seed)  # type: ignore[arg-type]
    rng = np.random.default_rng(seed)
    centres = {
        "clusters": rng.uniform(-20, 20, (5, 3)) * [1, 1, 0.1],
        "dense spot": np.zeros((1, 3)),
        "islands": np.array([[-500.0, 0, 0], [500, 20, 0]]),
    }.get(kind, np.zeros((1, 3)))
    spread = 0.0 if kind == "one point" else 1.0
    points = centres[rng.integers(len(centres), size=n_points)] + rng.normal(0, spread, (n_points, 3)) * [1, 1, 0.2]
    if kind == "dense spot":
        points[::3] = rng.uniform(-10, 10, points[::3].shape) * [1, 1, 0.02]
    where = np.zeros(3) if kind == "one place" else rng.normal(0, 1, (n_cameras, 3))
    targets = points[rng.integers(n_points, size=n_cameras)] + rng.normal(0, 0.3, (n_cameras, 3))
    eyes = np.broadcast_to(where + [0, 0, 6.0], (n_cameras, 3)) + (0 if kind == "one place" else targets * [1, 1, 0])
    if kind == "wild":
        targets = eyes + rng.normal(0, 1, (n_cameras, 3))  # many look at nothing
    viewmats = np.stack([look_at(e, t, up=(0, 1, 0.1)) for e, t in zip(eyes, targets, strict=True)])
    return scene_from(points, viewmats, share=0.7, seed=seed)


scenes = st.builds(
    random_scene, st.sampled_from(KINDS), st.integers(1, 60), st.integers(1, 300), st.integers(0, 1_000_000)
)
some_settings = st.builds(
    PatchingSettings,
    max_cameras=st.integers(1, 25),
    reserve=st.sampled_from([0.0, 0.1, 0.5]),
    buffer=st.sampled_from([0.0, 0.15, 1.0]),
    min_points=st.sampled_from([0, 20, 100]),
    external_share=st.sampled_from([0.0, 0.1, 0.9]),
    holdout_every=st.sampled_from([0, 2, 8]),
)
relaxed = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def split_or_assume_blind(scene: Scene, chosen: PatchingSettings) -> Split | None:
    """The split, or None for a scene none of whose training cameras sees a point."""
    try:
        return split(scene, chosen)
    except SceneError:
        held = np.arange(0, scene.n_cameras, chosen.holdout_every) if chosen.holdout_every else []
        held = held if scene.n_cameras >= 8 else []
        assert not np.delete(visibility(scene).counts(), np.asarray(held, int)).any()
        return None


@relaxed
@given(scenes, some_settings)
def test_the_promises_of_a_split(scene: Scene, chosen: PatchingSettings) -> None:
    result = split_or_assume_blind(scene, chosen)
    if result is None:
        return
    seen = visibility(scene)
    trained: set[int] = set()
    assert len(result.patches) >= 1
    for number, patch in enumerate(result.patches):
        cameras = patch.camera_index.tolist()
        assert patch.id == f"p{number:03d}"
        assert 1 <= len(cameras) <= chosen.max_cameras, "the cap holds and no patch is without cameras"
        assert len(patch.camera_reasons) == len(cameras) and cameras == sorted(set(cameras))
        assert not set(cameras) & set(result.holdout.tolist()), "hold-out views never train"
        core = set(patch.points_with(Role.CORE).tolist())
        assert core, "every patch owns points"
        for camera in cameras:
            sees = set(seen.points[seen.offsets[camera] : seen.offsets[camera + 1]].tolist())
            assert sees & core, "a camera of a patch sees part of its core"
        trained |= set(cameras)
    able = set(np.flatnonzero(seen.counts() > 0)) - set(result.holdout.tolist())
    assert trained == able - set(result.unused.tolist()), "every camera trains, or is reported"
    unplaced = able & set(result.unused.tolist())
    if unplaced:
        assert {finding.kind for finding in result.findings} >= {"unplaced_cameras"}


@relaxed
@given(scenes, some_settings)
def test_cameras_stay_unplaced_only_where_all_of_them_see_one_place(scene: Scene, chosen: PatchingSettings) -> None:
    result = split_or_assume_blind(scene, chosen)
    if result is None:
        return
    blind = set(np.flatnonzero(visibility(scene).counts() == 0))
    for camera in set(result.unused.tolist()) - blind:
        span = slice(*visibility(scene).offsets[camera : camera + 2])
        own = [p for p in result.patches if np.isin(visibility(scene).points[span], p.points_with(Role.CORE)).any()]
        assert any(len(patch.camera_index) == chosen.max_cameras for patch in own)


@relaxed
@given(scenes, some_settings, st.integers(0, 1000))
def test_cores_tile_the_ground(scene: Scene, chosen: PatchingSettings, seed: int) -> None:
    """Every point, camera and random place lies in exactly one core, and in its buffered box too."""
    result = split_or_assume_blind(scene, chosen)
    if result is None:
        return
    rng = np.random.default_rng(seed)
    places = np.concatenate([scene.points, scene.centers, rng.normal(0, 1e4, (50, 3)), rng.normal(0, 3, (50, 3))])
    positions = result.frame.apply(places)
    inside = np.stack([patch.core.contains(positions) for patch in result.patches])
    assert_array_equal(inside.sum(axis=0), 1)
    for patch, row in zip(result.patches, inside, strict=True):
        assert patch.buffered.contains(positions[row]).all()
        assert set(patch.points_with(Role.CORE)) == set(np.flatnonzero(row[: scene.n_points]))
    corners = np.concatenate([[p.core.lower, p.core.upper] for p in result.patches])
    corners = np.where(np.isfinite(corners), corners, 0.0)
    assert_array_equal(np.sum([patch.core.contains(corners) for patch in result.patches], axis=0), 1)


@relaxed
@given(scenes, some_settings, st.sampled_from([1e-3, 1e3]))
def test_the_units_of_a_scene_do_not_matter(scene: Scene, chosen: PatchingSettings, factor: float) -> None:
    result = split_or_assume_blind(scene, chosen)
    if result is None:
        return
    other_scene = scaled(scene, factor)
    other = split(other_scene, chosen)
    assert len(other.patches) == len(result.patches)
    for a, b in zip(result.patches, other.patches, strict=True):
        assert_array_equal(a.camera_index, b.camera_index)
        assert_array_equal(a.holdout_cameras, b.holdout_cameras)
        assert_array_equal(a.points_with(Role.CORE), b.points_with(Role.CORE))
        here, there = normalising_similarity(scene, a), normalising_similarity(other_scene, b)
        assert there.scale * factor == pytest.approx(here.scale, rel=1e-9)
        near, far = scene.points[a.point_index], other_scene.points[a.point_index]
        np.testing.assert_allclose(there.apply(far), here.apply(near), rtol=1e-7, atol=1e-7)


@relaxed
@given(scenes, some_settings)
def test_every_holdout_view_belongs_to_the_patch_whose_core_it_sees_most(
    scene: Scene, chosen: PatchingSettings
) -> None:
    result = split_or_assume_blind(scene, chosen)
    if result is None:
        return
    seen = visibility(scene)
    places = {int(c): p for p in result.patches for c in p.holdout_cameras}
    assert set(places) == {int(c) for c in result.holdout if seen.counts()[c]}
    for camera, patch in places.items():
        mine = seen.points[seen.offsets[camera] : seen.offsets[camera + 1]]
        counts = [np.isin(mine, p.points_with(Role.CORE)).sum() for p in result.patches]
        assert np.isin(mine, patch.points_with(Role.CORE)).sum() == max(counts)


def test_the_same_scene_gives_the_same_patches_again() -> None:
    scene = synthetic_scene(60, 500, "aerial", seed=3)
    one, two = (split(scene, PatchingSettings(max_cameras=12)) for _ in range(2))
    for a, b in zip(one.patches, two.patches, strict=True):
        assert a.to_json(scene) == b.to_json(scene)
        assert_array_equal(a.point_index, b.point_index)
        assert_array_equal(a.point_role, b.point_role)


def test_a_scene_below_the_cap_is_one_patch_with_all_its_cameras() -> None:
    scene = synthetic_scene(7, 200)
    result = split(scene, PatchingSettings())
    assert len(result.patches) == 1
    assert_array_equal(result.patches[0].camera_index, np.arange(7))
    assert_array_equal(result.patches[0].point_index, np.arange(200))
    assert not len(result.holdout), "fewer than 8 cameras all train"


def test_every_eighth_view_is_held_out_in_name_order() -> None:
    result = split(synthetic_scene(20, 300), PatchingSettings())
    assert_array_equal(result.holdout, [0, 8, 16])
    assert_array_equal(result.patches[0].holdout_cameras, [0, 8, 16])


@pytest.mark.parametrize(("cameras", "cap"), [(100, 20), (200, 20), (225, 50), (90, 90)])
def test_an_even_scene_needs_few_patches(cameras: int, cap: int) -> None:
    result = split(synthetic_scene(cameras, 1500, "aerial", seed=1), PatchingSettings(max_cameras=cap, holdout_every=0))
    lower_bound = -(-cameras // cap)
    assert len(result.patches) <= lower_bound + max(1, round(0.15 * lower_bound))


def test_two_islands_are_cut_between_them() -> None:
    scene = random_scene("islands", 50, 300, 5)
    result = split(scene, PatchingSettings(max_cameras=36, holdout_every=0))
    side = {patch.id: np.sign(scene.points[patch.points_with(Role.CORE), 0]) for patch in result.patches}
    assert len(result.patches) == 2
    assert all(len(set(signs)) == 1 for signs in side.values())


def test_neighbours_views_fill_the_reserve_and_say_why() -> None:
    scene = synthetic_scene(64, 900, "aerial", seed=2, share=1.0)
    result = split(scene, PatchingSettings(max_cameras=24, reserve=0.25, holdout_every=0))
    for patch in result.patches:
        kinds = {reason.split(":")[0] for reason in patch.camera_reasons}
        assert kinds == {"home", "neighbour"}
        homes = sum(reason.startswith("home") for reason in patch.camera_reasons)
        assert homes <= 18 < len(patch.camera_index) <= 24


def test_background_is_thinned_and_marked() -> None:
    scene = synthetic_scene(48, 1500, "aerial", seed=4)
    with_it = split(scene, PatchingSettings(max_cameras=12, background=0.2)).patches[0]
    without = split(scene, PatchingSettings(max_cameras=12, background=0.0)).patches[0]
    near = len(with_it.points_with(Role.CORE, Role.BUFFER))
    assert 0 < len(with_it.points_with(Role.BACKGROUND)) <= 0.2 * near
    assert len(without.points_with(Role.BACKGROUND)) == 0
    assert_array_equal(with_it.points_with(Role.CORE, Role.BUFFER), without.point_index)


def test_the_buffer_is_relative_to_the_core() -> None:
    scene = synthetic_scene(64, 2000, "aerial", seed=2)
    for buffer in (0.0, 0.1, 0.4):
        patches = split(scene, PatchingSettings(max_cameras=20, buffer=buffer)).patches
        for patch in patches:
            bounded = np.isfinite(patch.core.upper)
            margin = patch.buffered.upper[bounded] - patch.core.upper[bounded]
            edges = np.ptp(patch.frame.apply(scene.points[patch.points_with(Role.CORE)])[:, :2], axis=0)
            np.testing.assert_allclose(margin, buffer * edges.min(), rtol=0.08, atol=1e-12)


def test_cameras_without_tracks_are_judged_by_what_projects_into_them() -> None:
    scene = synthetic_scene(30, 400, "aerial", seed=6)
    bare = replace(
        scene,
        track_offsets=np.zeros(401, np.int64),
        track_cameras=np.empty(0, np.int32),
        track_xy=np.empty((0, 2), np.float32),
    )
    result = split(bare, PatchingSettings(max_cameras=10, holdout_every=0))
    assert len(result.patches) >= 3
    assert set(np.concatenate([p.camera_index for p in result.patches])) == set(range(30))


def test_a_camera_that_sees_nothing_is_left_out_and_named() -> None:
    scene = synthetic_scene(6, 100)
    away = look_at((0, 0, 5), (0, 0, 50))
    result = split(scene_from(scene.points, np.stack([*scene.viewmats, away])), PatchingSettings())
    assert_array_equal(result.unused, [6])
    assert "1 of 7 cameras see no point" in result.findings[0].message
    assert "view_0006.jpg" in result.findings[0].message


def test_a_camera_with_its_tracks_behind_its_back_is_not_believed() -> None:
    """An inverted pose: the tracks say that it sees the ground, but it would see no Gaussian."""
    scene = synthetic_scene(24, 600, "aerial", seed=1)
    viewmats = scene.viewmats.copy()
    viewmats[5, :3] = np.diag([-1.0, 1, -1]) @ viewmats[5, :3]
    result = split(replace(scene, viewmats=viewmats), PatchingSettings(max_cameras=10))
    assert result.unused.tolist() == [5]
    assert not any(5 in patch.camera_index for patch in result.patches)


def test_a_scene_whose_cameras_all_look_away_is_refused() -> None:
    scene = synthetic_scene(3, 50)
    away = np.stack([look_at((0, 0, 5), (0, 0, 50))] * 3)
    with pytest.raises(SceneError, match="none of the 3 training cameras"):
        split(scene_from(scene.points, away), PatchingSettings())


def test_more_cameras_than_the_cap_on_one_point_are_thinned_and_reported() -> None:
    scene = random_scene("one point", 30, 4, 1)
    result = split(scene, PatchingSettings(max_cameras=10, holdout_every=0))
    assert len(result.patches) == 1
    assert len(result.patches[0].camera_index) == 10
    assert any("max_cameras (10)" in finding.message for finding in result.findings)


@pytest.mark.parametrize("turn", [(0, 0, 0), (180, 0, 0), (90, 20, 5), (33, 71, -140)])
@pytest.mark.parametrize("layout", ["aerial", "facade", "line"])
def test_the_split_turns_with_the_scene(layout: str, turn: tuple[int, int, int]) -> None:
    """No axis of the model is special: y down, z up or any gauge gives cores of the same shape."""
    scene = synthetic_scene(40, 800, layout, seed=7)  # type: ignore[arg-type]
    rotation = Rotation.from_euler("xyz", turn, degrees=True).as_matrix()
    viewmats = scene.viewmats.copy()
    viewmats[:, :3, :3] = viewmats[:, :3, :3] @ rotation.T
    turned = replace(scene, points=scene.points @ rotation.T, viewmats=viewmats)
    sizes = [
        sorted(len(p.points_with(Role.CORE)) for p in split(s, PatchingSettings(max_cameras=12)).patches)
        for s in (scene, turned)
    ]
    assert len(sizes[0]) == len(sizes[1])
    np.testing.assert_allclose(sizes[0], sizes[1], rtol=0.25, atol=10)


@pytest.mark.parametrize("name", ["xy", "xz", "yz"])
def test_a_named_frame_cuts_along_its_axes(name: str) -> None:
    scene = synthetic_scene(40, 400, "line")
    result = split(scene, PatchingSettings(max_cameras=12, frame=name))  # type: ignore[arg-type]
    uncut = np.eye(3)["xyz".index(({"x", "y", "z"} - set(name)).pop())]
    assert_array_equal(np.abs(result.frame.rotation[2]), uncut)
    assert np.linalg.det(result.frame.rotation) == pytest.approx(1)
    assert all(np.isinf([p.core.lower[2], p.core.upper[2]]).all() for p in result.patches)


def test_up_follows_level_cameras_in_a_room_and_the_ground_under_drones() -> None:
    room = random_scene("one place", 1, 1, 0)
    rng = np.random.default_rng(0)
    points = rng.uniform([-3, -3, 0], [3, 3, 3], (600, 3))
    eyes = rng.uniform([-1, -1, 1.4], [1, 1, 1.6], (40, 3))
    angles = rng.uniform(0, 2 * np.pi, 40)
    views = [look_at(e, e + [np.cos(a), np.sin(a), 0.1]) for e, a in zip(eyes, angles, strict=True)]
    room = scene_from(points, np.stack(views))
    assert split(room, PatchingSettings()).frame.rotation[2] @ [0, 0, 1] > 0.99
    drones = synthetic_scene(49, 800, "aerial")
    assert split(drones, PatchingSettings()).frame.rotation[2] @ [0, 0, 1] > 0.99
    tilted = replace(drones, points=drones.points @ Rotation.from_euler("x", 40, degrees=True).as_matrix().T)
    frame = split(tilted, PatchingSettings()).frame
    assert frame.source == "points" and frame.rotation.shape == (3, 3)
