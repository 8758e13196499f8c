"""Distorted scenes train on pinhole images that are made once; pinhole scenes are used as they are."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from scenes import EXAMPLE, synthetic_scene, write_scene

from splatpipe.errors import ConfigError, RunFolderError, SceneError
from splatpipe.pipeline import RunOptions, split
from splatpipe.scene.arrays import Scene
from splatpipe.scene.colmap import read_scene
from splatpipe.scene.tracks import point_of_observation
from splatpipe.scene.undistort import undistort


def reprojection(scene: Scene) -> float:
    """Mean distance in pixels between observations and their points seen through K."""
    viewmats, K = scene.viewmats[scene.track_cameras], scene.Ks[scene.track_cameras]
    local = np.einsum("tij,tj->ti", viewmats[:, :3, :3], scene.points[point_of_observation(scene)])
    local += viewmats[:, :3, 3]
    xy = local[:, :2] / local[:, 2:] * K[:, [0, 1], [0, 1]] + K[:, :2, 2]
    return float(np.linalg.norm(xy - scene.track_xy, axis=1).mean())


def files(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_example_becomes_a_pinhole_scene_with_the_same_cameras_and_points(tmp_path: Path) -> None:
    distorted = read_scene(EXAMPLE).scene
    scene = undistort(distorted, tmp_path / "scene")
    assert {one.model for one in scene.intrinsics} == {"PINHOLE"}
    assert scene.names == distorted.names
    np.testing.assert_array_equal(scene.point_ids, distorted.point_ids)
    np.testing.assert_allclose(scene.viewmats, distorted.viewmats, atol=1e-9)
    assert reprojection(scene) < 0.3 < reprojection(distorted)
    assert read_scene(tmp_path / "scene").scene.n_cameras == 18, "images have the size the cameras say"


def test_settings_that_cannot_be_used_are_refused_before_anything_is_undistorted(tmp_path: Path) -> None:
    write_scene(tmp_path / "scene", synthetic_scene(12, 200), camera_model="SIMPLE_RADIAL")
    cells = "patching.cells=[[[0, 0], [1, 1], [1, 0], [0, 1]]]"
    options = RunOptions.resolve(tmp_path / "scene", tmp_path / "run", None, [cells], None, None)
    with pytest.raises(ConfigError, match="crosses itself"):
        split(options, dry_run=False)
    assert not (tmp_path / "run").exists()


def test_the_second_call_takes_the_cache_and_a_change_makes_it_anew(tmp_path: Path) -> None:
    write_scene(tmp_path, synthetic_scene(4, 50), camera_model="SIMPLE_RADIAL")
    cache = tmp_path / "run/scene"
    scene = read_scene(tmp_path).scene
    undistort(scene, cache)
    first = files(cache)
    undistort(read_scene(tmp_path).scene, cache)
    assert files(cache) == first
    photograph = tmp_path / "images/view_0002.jpg"
    os.utime(photograph, ns=(1, 1))
    undistort(scene, cache)
    assert files(cache) != first


def test_a_half_written_cache_is_not_used(tmp_path: Path) -> None:
    write_scene(tmp_path, synthetic_scene(4, 50), camera_model="SIMPLE_RADIAL")
    scene, cache = read_scene(tmp_path).scene, tmp_path / "run/scene"
    (cache / "images").mkdir(parents=True)
    (cache / "undistorted.json").write_text('{"key": ')
    assert all((undistort(scene, cache).image_dir / name).is_file() for name in scene.names)
    assert [path.name for path in cache.parent.iterdir()] == ["scene"]


def test_pinhole_scenes_are_used_in_place(tmp_path: Path) -> None:
    write_scene(tmp_path, synthetic_scene(4, 50))
    scene = read_scene(tmp_path).scene
    assert undistort(scene, tmp_path / "run/scene") is scene
    assert not (tmp_path / "run").exists()


def test_skipped_images_and_smaller_images_undistort_too(tmp_path: Path) -> None:
    from PIL import Image

    write_scene(tmp_path, synthetic_scene(5, 80), camera_model="SIMPLE_RADIAL")
    (tmp_path / "images_2").mkdir()
    for path in sorted((tmp_path / "images").iterdir())[1:]:
        Image.open(path).resize((32, 24)).save(tmp_path / "images_2" / path.name)
    reading = read_scene(tmp_path, images="images_2", missing_images="skip")
    scene = undistort(reading.scene, tmp_path / "cache")
    assert scene.names == tuple(f"view_{i:04d}.jpg" for i in range(1, 5))
    assert (np.abs(scene.sizes - [32, 24]) <= 4).all()
    assert sorted(path.name for path in (tmp_path / "cache/images").iterdir()) == list(scene.names)


def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    write_scene(tmp_path, synthetic_scene(4, 50), camera_model="SIMPLE_RADIAL", noise=True)
    photograph = tmp_path / "images/view_0001.jpg"
    scene = read_scene(tmp_path).scene
    photograph.write_bytes(b"\xff\xd8\xff not an image any more")
    with pytest.raises(SceneError, match="view_0001.jpg"):
        undistort(scene, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_undistortion_is_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_scene(tmp_path, synthetic_scene(3, 50), camera_model="SIMPLE_RADIAL")
    capfd.readouterr()
    undistort(read_scene(tmp_path).scene, tmp_path / "cache")
    assert capfd.readouterr() == ("", "")


def test_a_folder_whose_images_could_not_be_undistorted_takes_the_mended_model_and_other_settings(
    tmp_path: Path,
) -> None:
    scene = synthetic_scene(6, 60)
    write_scene(tmp_path / "scene", scene, camera_model="SIMPLE_RADIAL", noise=True)
    photograph = tmp_path / "scene/images/view_0001.jpg"
    whole = photograph.read_bytes()
    photograph.write_bytes(b"\xff\xd8\xff not an image any more")
    options = RunOptions.resolve(tmp_path / "scene", tmp_path / "run", None, [], None, None)
    with pytest.raises(SceneError, match="view_0001.jpg"):
        split(options, dry_run=False)
    photograph.write_bytes(whole)
    write_scene(tmp_path / "scene", synthetic_scene(5, 60), camera_model="SIMPLE_RADIAL", noise=True)
    again = RunOptions.resolve(tmp_path / "scene", tmp_path / "run", None, ["patching.holdout_every=0"], None, None)
    (patch,) = split(again, dry_run=False)["patches"]
    assert (patch["cameras"], patch["holdout"]) == (5, 0)
    with pytest.raises(RunFolderError, match="made with other settings"):
        split(options, dry_run=False)
