"""A patch on disk is a COLMAP data set in training coordinates, with links instead of copies."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scenes import scaled, synthetic_scene, write_scene

from splatpipe.errors import SceneError
from splatpipe.layout import PatchLayout, RunLayout
from splatpipe.patches.dataset import normalising_similarity, read_dataset, read_patch, write_dataset
from splatpipe.patches.partition import split
from splatpipe.patches.patch import Box, Patch, Role
from splatpipe.patches.preflight import preflight
from splatpipe.patches.settings import PatchingSettings
from splatpipe.patches.stats import patch_stats
from splatpipe.scene.arrays import Scene, Similarity

SETTINGS = PatchingSettings(max_cameras=8)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    made = synthetic_scene(20, 300, seed=5)
    names = tuple(f"flight {i % 2}/{i:03d}.jpg" for i in range(20))
    order = np.argsort(names)
    made = replace(made, names=tuple(names[i] for i in order))
    return write_scene(tmp_path / "scene", made)


def write(scene: Scene, patch: Patch, layout: PatchLayout) -> Similarity:
    similarity = normalising_similarity(scene, patch)
    stats = patch_stats(scene, patch, similarity)
    write_dataset(scene, patch, layout, stats, preflight(scene, patch, stats), similarity)
    return similarity


def test_a_patch_opens_in_pycolmap_with_scaled_poses_and_its_own_tracks(scene: Scene, tmp_path: Path) -> None:
    for patch in split(scene, SETTINGS).patches:
        layout = RunLayout(tmp_path / "run").patch(patch.id)
        similarity = write(scene, patch, layout)
        model = pycolmap.Reconstruction(layout.sparse)
        assert {image.name for image in model.images.values()} == {scene.names[i] for i in patch.camera_index}
        assert sorted(model.points3D) == scene.point_ids[patch.point_index].tolist()
        assert model.compute_num_observations() > 0
        for i in patch.camera_index:
            center = model.images[int(scene.image_ids[i])].projection_center()
            assert_allclose(similarity.invert(center), scene.centers[i], atol=1e-9)
            assert (layout.images / scene.names[i]).resolve() == (scene.image_dir / scene.names[i]).resolve()


def test_images_are_links_and_survive_moving_the_tree(scene: Scene, tmp_path: Path) -> None:
    """With the run below the scene, as by default, links are relative."""
    layout = RunLayout(tmp_path / "scene/splatpipe/first").patch("p000")
    patch = split(scene, SETTINGS).patches[0]
    write(scene, patch, layout)
    links = [path for path in layout.images.rglob("*") if not path.is_dir()]
    assert len(links) == len(patch.camera_index)
    assert all(path.is_symlink() and not path.readlink().is_absolute() for path in links)
    shutil.move(tmp_path / "scene", tmp_path / "elsewhere")
    moved = read_dataset(tmp_path / "elsewhere/splatpipe/first/patches/p000")
    assert all(path.is_file() for path in moved.image_paths)


def test_a_run_elsewhere_links_absolutely(scene: Scene, tmp_path: Path) -> None:
    layout = RunLayout(tmp_path / "runs/first").patch("p000")
    write(scene, split(scene, SETTINGS).patches[0], layout)
    shutil.move(tmp_path / "runs", tmp_path / "moved")
    assert all(path.is_file() for path in read_dataset(tmp_path / "moved/first/patches/p000").image_paths)


def test_the_training_side_reads_what_was_split(scene: Scene, tmp_path: Path) -> None:
    patch = split(scene, SETTINGS).patches[1]
    layout = RunLayout(tmp_path / "run").patch(patch.id)
    similarity = write(scene, patch, layout)
    data = read_dataset(layout.root)
    assert data.names == tuple(scene.names[i] for i in patch.camera_index)
    assert data.viewmats.dtype == np.float64
    assert_allclose(data.viewmats, similarity.apply_viewmats(scene.viewmats[patch.camera_index]), atol=1e-9)
    assert_allclose(data.Ks, scene.Ks[patch.camera_index])
    assert_array_equal(data.sizes, scene.sizes[patch.camera_index])
    assert_allclose(data.points, similarity.apply(scene.points[patch.point_index]), atol=1e-12)
    assert_array_equal(data.colors, scene.colors[patch.point_index])


def test_hold_out_views_have_a_data_set_of_their_own(scene: Scene, tmp_path: Path) -> None:
    patches = split(scene, SETTINGS).patches
    held = []
    for patch in patches:
        layout = RunLayout(tmp_path / "run").patch(patch.id)
        write(scene, patch, layout)
        assert layout.holdout.exists() == bool(len(patch.holdout_cameras))
        if layout.holdout.exists():
            names = read_dataset(layout.holdout).names
            assert not set(names) & set(read_dataset(layout.root).names)
            held += names
    assert sorted(held) == [scene.names[i] for i in (0, 8, 16)]


def test_patch_json_holds_the_whole_patch(scene: Scene, tmp_path: Path) -> None:
    for patch in split(scene, SETTINGS).patches:
        layout = RunLayout(tmp_path / "run").patch(patch.id)
        similarity = write(scene, patch, layout)
        again, same_similarity = read_patch(layout, scene)
        assert same_similarity == similarity
        assert again.to_json(scene) == patch.to_json(scene)
        for field in ("point_index", "point_role", "camera_index", "holdout_cameras"):
            assert_array_equal(getattr(again, field), getattr(patch, field))
        record = json.loads(layout.patch_json.read_text())
        assert record["stats"]["cameras"] == len(patch.camera_index)
        assert record["preflight"]["floor"] is not None
        assert all(camera["reason"] for camera in record["cameras"])


def test_writing_again_replaces_the_patch_whole(scene: Scene, tmp_path: Path) -> None:
    layout = RunLayout(tmp_path / "run").patch("p000")
    write(scene, split(scene, PatchingSettings(max_cameras=20)).patches[0], layout)
    small = split(scene, SETTINGS).patches[0]
    write(scene, small, layout)
    assert len([p for p in layout.images.rglob("*.jpg")]) == len(small.camera_index)
    assert [path.name for path in layout.root.parent.iterdir()] == ["p000"]


def test_a_failed_write_leaves_the_old_patch(scene: Scene, tmp_path: Path) -> None:
    layout = RunLayout(tmp_path / "run").patch("p000")
    patch = split(scene, SETTINGS).patches[0]
    write(scene, patch, layout)
    before = layout.patch_json.read_bytes()
    with pytest.raises(ValueError):
        write_dataset(scene, patch, layout, None, None, Similarity(float("nan"), (0.0, 0.0, 0.0)))
    assert layout.patch_json.read_bytes() == before
    assert [path.name for path in layout.root.parent.iterdir()] == ["p000"]


def test_a_folder_that_is_no_patch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SceneError, match="no patch data set"):
        read_dataset(tmp_path)


def test_training_coordinates_are_centred_and_of_unit_depth() -> None:
    scene = synthetic_scene(30, 500, seed=1)
    patch = split(scene, SETTINGS).patches[0]
    similarity = normalising_similarity(scene, patch)
    core = similarity.apply(scene.points[patch.points_with(Role.CORE)])
    assert_allclose(np.median(core, axis=0), 0, atol=1e-9)
    distances = np.linalg.norm(similarity.apply(scene.centers[patch.camera_index])[:, None] - core, axis=2)
    assert 0.5 < np.median(distances) < 2


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_a_scene_far_from_its_origin_in_other_units_trains_in_the_same_coordinates(factor: float) -> None:
    scene = synthetic_scene(20, 300, seed=1)
    shift = Similarity(1.0, (400.0, -700.0, 50.0))
    moved = replace(scene, points=shift.apply(scene.points), viewmats=shift.apply_viewmats(scene.viewmats))
    other = scaled(moved, factor)
    for a, b in zip(split(scene, SETTINGS).patches, split(other, SETTINGS).patches, strict=True):
        here, there = normalising_similarity(scene, a), normalising_similarity(other, b)
        assert_array_equal(a.camera_index, b.camera_index)
        assert_allclose(there.apply(other.points[b.point_index]), here.apply(scene.points[a.point_index]), atol=1e-6)


def test_a_box_keeps_its_infinities_through_json() -> None:
    box = Box(np.array([-np.inf, 0.1, -np.inf]), np.array([1 / 3, np.inf, np.inf]))
    again = Box.from_json(json.loads(json.dumps(box.to_json(), allow_nan=False)))
    assert_array_equal(again.lower, box.lower)
    assert_array_equal(again.upper, box.upper)
