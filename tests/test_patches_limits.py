"""Limits, guaranteed views, partitions that people draw, and outliers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from scenes import EXAMPLE, look_at, scene_from, synthetic_scene
from test_patches_split import KINDS, random_scene, split_or_assume_blind

from splatpipe.errors import ConfigError
from splatpipe.patches.box import Box
from splatpipe.patches.map import draw_map
from splatpipe.patches.partition import Split, split
from splatpipe.patches.patch import Role
from splatpipe.patches.settings import PatchingSettings
from splatpipe.patches.sights import Sights
from splatpipe.patches.visibility import visibility
from splatpipe.scene.arrays import Scene
from splatpipe.scene.colmap import read_scene

relaxed = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
scenes = st.builds(
    random_scene, st.sampled_from(KINDS), st.integers(3, 60), st.integers(20, 300), st.integers(0, 1_000_000)
)
XY = PatchingSettings(max_cameras=200, frame="xy", holdout_every=0, min_points=0, min_cameras=0)


def kinds(result: Split) -> set[str]:
    return {finding.kind for finding in result.findings}


def views_of_points(scene: Scene) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(C, P) which camera is matched to which point, and which shows it: matched, or looking as a matched one does."""
    seen = visibility(scene)
    matched = np.zeros((scene.n_cameras, scene.n_points), bool)
    matched[np.repeat(np.arange(scene.n_cameras), seen.counts()), seen.points] = True
    local = np.einsum("cij,pj->cpi", scene.viewmats[:, :3, :3], scene.points) + scene.viewmats[:, None, :3, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        xy = local[..., :2] / local[..., 2:] * scene.Ks[:, None, [0, 1], [0, 1]] + scene.Ks[:, None, :2, 2]
    inside = (local[..., 2] > 0) & (xy >= 0).all(axis=2) & (xy < scene.sizes[:, None]).all(axis=2)
    ways = scene.centers[:, None] - scene.points
    away = np.linalg.norm(ways, axis=2)
    tracked = np.zeros_like(matched)
    tracked[scene.track_cameras, np.repeat(np.arange(scene.n_points), np.diff(scene.track_offsets))] = True
    tracked &= local[..., 2] > 0
    shown = matched.copy()
    for camera in np.flatnonzero(np.bincount(scene.track_cameras, minlength=scene.n_cameras) >= 20):
        close = (ways * ways[camera]).sum(axis=2) >= np.cos(np.radians(20)) * away * away[camera]
        close &= (away <= 1.5 * away[camera]) & (away[camera] <= 1.5 * away)
        shown[camera] |= inside[camera] & (close & tracked).any(axis=0)
    return matched, shown


def test_a_camera_that_looks_as_one_does_that_observed_a_point_is_a_view_of_it() -> None:
    """Of the cameras beside the one that observed it, not those that look elsewhere, stand far off or to the side."""
    scene = synthetic_scene(3, 400, "aerial", seed=1)
    target = scene.points[0]
    eyes = {"matched": (0, 0, 6), "beside": (1, 0, 6), "far off": (0, 0, 12), "aside": (4, 0, 4), "away": (0.5, 0, 6)}
    views = [
        look_at(target + eye, target if name != "away" else target + [9, 0, 0], (0, 1, 0)) for name, eye in eyes.items()
    ]
    scene = scene_from(scene.points, np.stack(views))
    observed_by = np.repeat(np.arange(scene.n_points), np.diff(scene.track_offsets))
    kept = (observed_by != 0) | (scene.track_cameras == 0)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(observed_by[kept], minlength=scene.n_points))])
    scene = replace(
        scene, track_offsets=offsets, track_cameras=scene.track_cameras[kept], track_xy=scene.track_xy[kept]
    )
    found = {}
    for camera, name in enumerate(eyes):
        matched = visibility(scene).views(np.array([camera]), scene.n_points)
        wanted = np.full(scene.n_points, 2, np.int32)
        found[name] = int(Sights.of(scene).beside(matched, wanted, np.array([0]), np.array([camera]))[0])
    assert found == {"matched": 0, "beside": 1, "far off": 0, "aside": 0, "away": 0}


@relaxed
@given(scenes, st.integers(3, 25), st.integers(0, 5))
def test_every_core_point_keeps_its_views_unless_the_cap_forbids_it(scene: Scene, cap: int, wanted: int) -> None:
    result = split_or_assume_blind(scene, PatchingSettings(max_cameras=cap, min_views=wanted))
    if result is None:
        return
    matched, shown = views_of_points(scene)
    training = np.setdiff1d(np.arange(scene.n_cameras), result.holdout)
    in_scene = matched[training].sum(axis=0)
    short = set()
    for patch in result.patches:
        core = patch.points_with(Role.CORE)
        views = shown[patch.camera_index].sum(axis=0)
        if (views[core] < np.minimum(in_scene[core], wanted)).any():
            assert len(patch.camera_index) == cap, "only a full patch may leave a point short of views"
            short.add(patch.id)
    told = [finding for finding in result.findings if finding.kind == "few_views"]
    assert set(told[0].numbers["points"] if told else ()) == short


def short_of_views(result: Split) -> int:
    return sum(sum(f.numbers["points"].values()) for f in result.findings if f.kind == "few_views")


@pytest.mark.parametrize("kind", ["aerial", "clusters", "dense spot"])
def test_cores_are_cut_further_until_their_points_keep_their_views(kind: str) -> None:
    """Where the cap leaves no room for neighbours' views, smaller cores with fewer home cameras make room."""
    scene = random_scene(kind, 150, 1500, 3)
    loose = PatchingSettings(max_cameras=25, reserve=0, min_views=6, holdout_every=0, max_short=1, max_extra=99)
    results = {share: split(scene, replace(loose, max_short=share)) for share in (1.0, 0.02, 0.0)}
    assert short_of_views(results[1.0]) > 0, "nothing to cure"
    points = [len(patch.points_with(Role.CORE)) for patch in results[0.02].patches]
    assert short_of_views(results[0.02]) <= 0.02 * sum(points)
    assert short_of_views(results[0.0]) == 0
    numbers = {share: len(result.patches) for share, result in results.items()}
    assert numbers[0.0] >= numbers[0.02] >= numbers[1.0] < numbers[0.0]
    assert all(len(patch.camera_index) <= 25 for result in results.values() for patch in result.patches)
    frugal = split(scene, replace(loose, max_short=0, max_extra=0))
    assert len(frugal.patches) == numbers[1.0], "no patch more than the cap needs"


@pytest.mark.parametrize("wanted", [2, 4, 9])
def test_as_many_patches_as_asked_for_of_the_example(wanted: int) -> None:
    scene = read_scene(EXAMPLE).scene
    patches = split(scene, PatchingSettings(patches=wanted)).patches
    assert len(patches) == wanted
    assert all(len(patch.camera_index) >= 5 and len(patch.points_with(Role.CORE)) > 400 for patch in patches)


def test_buffers_measured_in_camera_spacings_and_in_scene_units() -> None:
    scene = synthetic_scene(100, 2000, "aerial", seed=2)  # ten by ten stations, one unit apart
    for of, width in (("units", 0.7), ("spacing", 0.5)):
        chosen = PatchingSettings(max_cameras=30, buffer=width, buffer_of=of, frame="xy")  # type: ignore[arg-type]
        margins = []
        for patch in split(scene, chosen).patches:
            bounded = np.isfinite(patch.core.upper)
            margins += (patch.buffered.upper[bounded] - patch.core.upper[bounded]).tolist()
        assert margins
        np.testing.assert_allclose(margins, 0.7 if of == "units" else 0.5, rtol=1e-9 if of == "units" else 0.15)


@relaxed
@given(scenes, st.integers(5, 100), st.floats(0.5, 20))
def test_limits_of_points_and_extent_hold_or_are_reported(scene: Scene, points: int, extent: float) -> None:
    chosen = PatchingSettings(max_cameras=20, max_points=points, max_extent=extent, holdout_every=0)
    result = split_or_assume_blind(scene, chosen)
    if result is None:
        return
    over = set()
    for patch in result.patches:
        core = patch.points_with(Role.CORE)
        low, high = np.quantile(patch.frame.apply(scene.points[core])[:, :2], (0.01, 0.99), axis=0)
        if len(core) > points or (high - low).max() > extent:
            over.add(patch.id)
    told = [finding for finding in result.findings if finding.kind == "over_limits"]
    assert set(told[0].numbers["patches"] if told else ()) == over


def test_smaller_limits_give_more_patches() -> None:
    scene = synthetic_scene(64, 2000, "aerial", seed=1)
    assert len(split(scene, XY).patches) == 1
    by_points, by_extent = replace(XY, max_points=400), replace(XY, max_extent=4.0)
    assert len(split(scene, by_points).patches) >= 5
    assert len(split(scene, by_extent).patches) >= 9
    for patch in split(scene, by_extent).patches:
        assert np.ptp(scene.points[patch.points_with(Role.CORE), :2], axis=0).max() < 4.5


@pytest.mark.parametrize(("cameras", "cap"), [(1000, 100), (400, 50), (350, 100), (90, 30)])
def test_an_even_scene_needs_at_most_15_percent_more_patches_than_the_cap_does(cameras: int, cap: int) -> None:
    scene = synthetic_scene(cameras, 3000, "aerial", seed=1)
    result = split(scene, PatchingSettings(max_cameras=cap, holdout_every=0))
    assert len(result.patches) <= 1.15 * -(-cameras // cap)


def test_a_grid_gives_its_cells_and_the_cap_cuts_them_further() -> None:
    scene = synthetic_scene(64, 2000, "aerial", seed=1)
    patches = split(scene, replace(XY, grid=(3, 2))).patches
    assert len(patches) == 6
    edges = sorted({float(patch.core.upper[0]) for patch in patches})
    low, high = np.quantile(scene.points[:, 0], (0.01, 0.99))
    np.testing.assert_allclose(edges[:2], [low + (high - low) / 3, low + 2 * (high - low) / 3])
    finer = split(scene, replace(XY, grid=(3, 2), max_cameras=8)).patches
    assert len(finer) > 6 and all(len(patch.camera_index) <= 8 for patch in finer)


@relaxed
@given(scenes, st.integers(1, 5), st.integers(1, 5), st.integers(3, 25))
def test_cores_of_a_grid_tile_the_ground_and_hold_cameras(scene: Scene, columns: int, rows: int, cap: int) -> None:
    result = split_or_assume_blind(scene, PatchingSettings(max_cameras=cap, grid=(columns, rows)))
    if result is None:
        return
    positions = result.frame.apply(np.concatenate([scene.points, scene.centers]))
    assert_array_equal(np.sum([patch.core.contains(positions) for patch in result.patches], axis=0), 1)
    assert all(1 <= len(patch.camera_index) <= cap for patch in result.patches)


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


def test_drawn_cells_from_settings_and_from_a_geojson_file(tmp_path: Path) -> None:
    scene = synthetic_scene(64, 2000, "aerial", seed=1)
    cells = [rectangle(-5, -5, 1, 5), rectangle(1, -5, 5, -1), rectangle(1, -1, 5, 5)]
    file = tmp_path / "cells.geojson"
    features = [{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [cell]}} for cell in cells]
    file.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    drawn = tuple(tuple((x, y) for x, y in cell) for cell in cells)
    for chosen in (drawn, str(file)):
        patches = split(scene, replace(XY, cells=chosen)).patches
        corners = sorted((float(p.core.lower[0]), float(p.core.lower[1])) for p in patches)
        assert corners == [(-np.inf, -np.inf), (1, -np.inf), (1, -1)]


@pytest.mark.parametrize(
    ("cells", "complaint"),
    [
        ([rectangle(0, 0, 1, 1), rectangle(0.5, 0, 2, 1)], "overlap"),
        ([[[0, 0], [4, 0], [0, 4]], [[1, 1], [2, 1], [1, 2]]], "cells 0 and 1 overlap"),
        ([rectangle(0, 0, 3, 3), rectangle(0, 0, 3, 3)], "cells 0 and 1 overlap"),
        ([[[0, 0], [1, 1], [1, 0], [0, 1]]], "cell 0: crosses itself"),
        ([[[0, 0], [1, 1]]], "three corners"),
        ([[[0, 0], [1, 1], [2, 2]]], "cell 0: has no area"),
        ("missing.geojson", "cannot be read"),
    ],
)
def test_cells_that_cannot_be_used_are_explained(cells: object, complaint: str) -> None:
    scene = synthetic_scene(12, 200)
    with pytest.raises(ConfigError, match=complaint):
        split(scene, replace(XY, cells=cells))  # type: ignore[arg-type]


STAR = [[0.0, 4.0], [-1.0, 1.0], [-4.0, 0.0], [-1.0, -1.0], [0.0, -4.0], [1.0, -1.0], [4.0, 0.0], [1.0, 1.0]]


def test_polygons_of_any_outline_become_patches_and_the_rest_one_of_its_own(tmp_path: Path) -> None:
    """A star, a triangle that touches it, and what lies round them; no hole, no overlap, also after a round trip."""
    scene = synthetic_scene(64, 4000, "aerial", seed=1)
    file = tmp_path / "cells.json"
    triangle = [[4.0, 0.0], [1.0, 1.0], [4.5, 4.5]]
    shape = {"type": "MultiPolygon", "coordinates": [[STAR], [triangle]]}
    file.write_text(json.dumps({"type": "Feature", "geometry": shape}))
    result = split(scene, replace(XY, cells=str(file)))
    places = np.random.default_rng(0).uniform(-20, 20, (20_000, 3))
    corners = np.concatenate([np.array([[x, y, 0.0] for x, y in STAR + triangle]), places])
    cores = [Box.from_json(json.loads(json.dumps(patch.core.to_json()))) for patch in result.patches]
    owned = np.stack([core.contains(corners) for core in cores])
    assert_array_equal(owned.sum(axis=0), 1)
    assert len(result.patches) == 3
    assert owned[0].mean() == pytest.approx(16 / 1600, rel=0.2), "the star's area over that of the square"
    assert owned[1].mean() == pytest.approx(6 / 1600, rel=0.3)
    for patch in result.patches:
        inside, near = patch.core.contains(corners), patch.buffered.contains(corners)
        assert (near | ~inside).all() and near.sum() > inside.sum()
        assert set(patch.points_with(Role.CORE)) <= set(np.flatnonzero(patch.core.contains(scene.points)))
    assert sorted({int(c) for patch in result.patches for c in patch.camera_index}) == list(range(64))


def assert_each_place_has_one_owner(result: Split) -> None:
    places = np.random.default_rng(0).uniform(-8, 8, (20_000, 3))
    cores = [Box.from_json(json.loads(json.dumps(patch.core.to_json()))) for patch in result.patches]
    assert_array_equal(np.sum([core.contains(places) for core in cores], axis=0), 1)
    assert_array_equal(np.sum([patch.core.contains(places) for patch in result.patches], axis=0), 1)


def test_a_degenerate_piece_joins_the_neighbour_that_shares_most_views(tmp_path: Path) -> None:
    """A strip with few points lies along two cells, below them; the one on the left sees it much more often."""
    scene = synthetic_scene(64, 2000, "aerial", seed=1)
    x, y = scene.points[:, :2].T
    few = np.flatnonzero((y < -3) & (x < -1))[:12]
    scene = scene_from(np.concatenate([scene.points[y >= -3], scene.points[few]]), scene.viewmats)
    boxes = [rectangle(-5, -5, 5, -3), rectangle(-5, -3, 0.5, 5), rectangle(0.5, -3, 5, 5)]
    cells = tuple(tuple((x, y) for x, y in box) for box in boxes)
    result = split(scene, replace(XY, cells=cells, min_points=20))
    assert len(result.patches) == 2 and kinds(result) >= {"joined"}
    joined = next(patch for patch in result.patches if patch.core.contains(np.array([[-4.0, -4, 0]]))[0])
    assert_array_equal(joined.core.contains(np.array([[4.0, -4, 0], [-4, 4, 0], [4, 4, 0]])), [True, True, False])
    assert_each_place_has_one_owner(result)
    assert set(joined.points_with(Role.CORE)) == set(np.flatnonzero(joined.core.contains(scene.points)))
    draw_map(scene, result, tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 10_000


def test_a_drawn_polygon_that_is_degenerate_joins_a_neighbour_and_is_cut_with_it() -> None:
    scene = synthetic_scene(64, 2000, "aerial", seed=1)
    thin = ((-2.0, 0.0), (2.0, 0.02), (-2.0, 0.04))
    other = ((-2.0, 0.04), (2.0, 0.02), (2.0, 4.0), (-2.0, 4.0))
    result = split(scene, replace(XY, cells=(thin, other), min_points=20, max_cameras=20))
    assert kinds(result) >= {"joined"} and len(result.patches) >= 4
    assert_each_place_has_one_owner(result)


@relaxed
@given(scenes, st.integers(3, 25), st.integers(3, 9), st.integers(0, 1000))
def test_patches_of_a_polygon_tile_the_ground_within_the_cap(scene: Scene, cap: int, corners: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners)) + np.arange(corners) * 1e-3
    radii = rng.uniform(0.5, 12, corners)[:, None]
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii
    try:
        result = split_or_assume_blind(
            scene, PatchingSettings(max_cameras=cap, frame="xy", cells=(tuple((x, y) for x, y in ring.tolist()),))
        )
    except ConfigError:
        return  # too thin a polygon
    if result is None:
        return
    positions = np.concatenate([scene.points, scene.centers, rng.uniform(-15, 15, (500, 3))])
    assert_array_equal(np.sum([patch.core.contains(positions) for patch in result.patches], axis=0), 1)
    assert all(1 <= len(patch.camera_index) <= cap for patch in result.patches)


def test_a_frame_given_as_a_matrix_is_used_and_a_wrong_one_refused() -> None:
    scene = synthetic_scene(40, 400, "line")
    c, s = np.cos(0.3), np.sin(0.3)
    matrix = ((float(c), float(s), 0.0), (-float(s), float(c), 0.0), (0.0, 0.0, 1.0))
    assert_array_equal(split(scene, PatchingSettings(frame=matrix)).frame.rotation.round(12), np.round(matrix, 12))
    with pytest.raises(ValueError, match="right-handed"):
        PatchingSettings(frame=((1, 0, 0), (0, 1, 0), (0, 0, -1)))


def far_off(n_points: int, n_cameras: int) -> Scene:
    """A scene of 40 cameras and 800 points, with so many of each 10,000 units away, seeing each other."""
    scene = synthetic_scene(40, 800, "aerial", seed=1)
    points = np.concatenate([scene.points, np.random.default_rng(0).normal(0, 0.1, (n_points, 3)) + [1e4, 0, 0]])
    views = [look_at((1e4, 0.1 * i, 5), (1e4, 0, 0), up=(0, 1, 0)) for i in range(n_cameras)]
    return scene_from(points, np.stack([*scene.viewmats, *views]))


def test_a_few_cameras_and_points_far_from_everything_are_left_out_and_named() -> None:
    scene = far_off(5, 1)
    result = split(scene, PatchingSettings(outliers=0.05, holdout_every=0))
    used = np.concatenate([patch.point_index for patch in result.patches])
    assert not (scene.points[used, 0] > 1e3).any() and len(np.unique(used)) == 800
    assert_array_equal(result.unused, [40])
    assert kinds(result) >= {"outlier_cameras_left_out", "outlier_points_left_out"}


def test_outliers_stay_when_asked_for_and_when_they_are_too_many() -> None:
    scene = far_off(5, 1)
    kept = split(scene, PatchingSettings(outliers=0, holdout_every=0))
    assert len(kept.unused) == 0 and not kinds(kept) & {"outlier_cameras_left_out", "outlier_points_left_out"}
    island = split(far_off(200, 4), PatchingSettings(outliers=0.05, holdout_every=0))
    assert kinds(island) >= {"outlier_cameras_kept", "outlier_points_kept"}
    assert len(island.unused) == 0
