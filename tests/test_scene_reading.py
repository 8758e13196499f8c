"""Any COLMAP folder as people have it becomes the same flat arrays that pycolmap holds as objects."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from scenes import EXAMPLE, look_at, scene_from, synthetic_scene, to_pycolmap, write_scene

from splatpipe.scene.arrays import Scene, Similarity
from splatpipe.scene.colmap import read_scene, write_model


def assert_same(ours: Scene, reconstruction: pycolmap.Reconstruction) -> None:
    """Our arrays say what pycolmap's objects say, observation by observation."""
    assert sorted(ours.names) == list(ours.names)
    images = {image.name: image for image in reconstruction.images.values()}
    assert set(images) == set(ours.names)
    for i, name in enumerate(ours.names):
        image = images[name]
        assert image.image_id == ours.image_ids[i]
        assert_allclose(ours.viewmats[i, :3], image.cam_from_world().matrix(), atol=1e-9)
        assert_allclose(ours.Ks[i], image.camera.calibration_matrix())
        assert tuple(ours.sizes[i]) == (image.camera.width, image.camera.height)
    assert_array_equal(ours.point_ids, sorted(reconstruction.points3D))
    names = {image.image_id: image.name for image in images.values()}
    for row, point_id in enumerate(ours.point_ids):
        point = reconstruction.points3D[int(point_id)]
        assert_allclose(ours.points[row], point.xyz)
        assert_array_equal(ours.colors[row], point.color)
        span = slice(ours.track_offsets[row], ours.track_offsets[row + 1])
        seen = {
            (ours.names[c], *np.round(xy, 3))
            for c, xy in zip(ours.track_cameras[span], ours.track_xy[span].astype(float), strict=True)
        }
        expected = {
            (
                names[e.image_id],
                *np.round(np.float32(images[names[e.image_id]].points2D[e.point2D_idx].xy).astype(float), 3),
            )
            for e in point.track.elements
        }
        assert seen == expected


def test_the_example_reads_as_pycolmap_reads_it() -> None:
    reading = read_scene(EXAMPLE)
    assert reading.findings == ()
    assert reading.scene.image_dir == EXAMPLE / "images"
    assert (reading.scene.n_cameras, reading.scene.n_points, len(reading.scene.track_cameras)) == (18, 6296, 25893)
    assert_same(reading.scene, pycolmap.Reconstruction(EXAMPLE / "sparse/0"))


@pytest.mark.parametrize("place", ["sparse/0", "sparse", ".", "colmap/sparse/0"])
@pytest.mark.parametrize("text", [False, True], ids=["bin", "txt"])
def test_every_usual_layout_reads_the_same(tmp_path: Path, place: str, text: bool) -> None:
    written = write_scene(tmp_path, synthetic_scene(6, 60), model=place, text=text)
    scene = read_scene(tmp_path).scene
    assert scene.image_dir == tmp_path / "images"
    assert_same(scene, to_pycolmap(written))


def test_the_model_folder_itself_may_be_named(tmp_path: Path) -> None:
    write_scene(tmp_path, synthetic_scene(4, 40))
    assert read_scene(tmp_path / "sparse/0").scene.image_dir == tmp_path / "images"


def test_a_model_of_colmap_3_without_rigs_and_frames_reads_the_same(tmp_path: Path) -> None:
    written = write_scene(tmp_path, synthetic_scene(5, 50))
    for name in ("rigs.bin", "frames.bin"):
        (tmp_path / "sparse/0" / name).unlink()
    assert_same(read_scene(tmp_path).scene, to_pycolmap(written))


def test_cameras_on_a_rig_get_their_own_poses(tmp_path: Path) -> None:
    """Two sensors a hand apart on one frame: the poses come from rig and frame together."""
    scene = synthetic_scene(2, 50)
    reconstruction = pycolmap.Reconstruction()
    rig = pycolmap.Rig(rig_id=1)
    for camera_id in (1, 2):
        camera = pycolmap.Camera(camera_id=camera_id, model="PINHOLE", width=64, height=48, params=[60, 60, 32, 24])
        reconstruction.add_camera(camera)
    rig.add_ref_sensor(reconstruction.cameras[1].sensor_id)
    offset = pycolmap.Rigid3d(
        pycolmap.Rotation3d(np.array([0.0, np.sin(0.1), 0.0, np.cos(0.1)])), np.array([0.3, 0.0, 0.0])
    )
    rig.add_sensor(reconstruction.cameras[2].sensor_id, offset)
    reconstruction.add_rig(rig)
    frame = pycolmap.Frame(frame_id=1, rig_id=1)
    frame.rig_from_world = pycolmap.Rigid3d(pycolmap.Rotation3d(scene.viewmats[0, :3, :3]), scene.viewmats[0, :3, 3])
    for image_id in (1, 2):
        frame.add_data_id(pycolmap.data_t(reconstruction.cameras[image_id].sensor_id, image_id))
    reconstruction.add_frame(frame)
    for image_id in (1, 2):
        image = pycolmap.Image(name=f"cam{image_id}/0.png", camera_id=image_id, image_id=image_id)
        image.frame_id = 1
        reconstruction.add_image(image)
        (tmp_path / f"images/cam{image_id}").mkdir(parents=True)
        Image.new("RGB", (64, 48)).save(tmp_path / f"images/cam{image_id}/0.png")
    reconstruction.register_frame(1)
    for xyz in scene.points:
        reconstruction.add_point3D(xyz, pycolmap.Track())
    (tmp_path / "sparse/0").mkdir(parents=True)
    reconstruction.write_binary(str(tmp_path / "sparse/0"))
    ours = read_scene(tmp_path).scene
    assert_same(ours, reconstruction)
    assert np.linalg.norm(ours.centers[0] - ours.centers[1]) == pytest.approx(0.3)


def test_models_that_colmap_could_not_join_are_named(tmp_path: Path) -> None:
    write_scene(tmp_path, synthetic_scene(8, 60))
    write_scene(tmp_path, synthetic_scene(12, 90), model="sparse/1")
    (found,) = read_scene(tmp_path).findings
    assert (found.kind, found.severity) == ("other_models", "warning")
    assert "also holds 1 (12 images); only 0 (8 images) is used; 1 is larger: to use it, name" in found.message
    larger = read_scene(tmp_path / "sparse/1")
    assert larger.scene.n_cameras == 12
    assert [finding.severity for finding in larger.findings] == ["note"]


def test_cameras_are_sorted_by_image_name_and_sub_folders_stay(tmp_path: Path) -> None:
    names = ["b/2.jpg", "a/1.jpg", "b/10.jpg", "a/deep/er/1.jpg"]
    written = write_scene(tmp_path, replace(synthetic_scene(4, 40), names=tuple(names)))
    scene = read_scene(tmp_path).scene
    assert scene.names == ("a/1.jpg", "a/deep/er/1.jpg", "b/10.jpg", "b/2.jpg")
    assert_same(scene, to_pycolmap(written))


def test_a_smaller_image_folder_scales_intrinsics_and_observations(tmp_path: Path) -> None:
    write_scene(tmp_path, synthetic_scene(4, 40))
    (tmp_path / "images_2").mkdir()
    for path in (tmp_path / "images").iterdir():
        Image.open(path).resize((32, 24)).save(tmp_path / "images_2" / path.name)
    full, half = read_scene(tmp_path).scene, read_scene(tmp_path, images="images_2")
    assert half.scene.image_dir == tmp_path / "images_2"
    assert_array_equal(half.scene.sizes, full.sizes // 2)
    assert_allclose(half.scene.Ks[:, :2], full.Ks[:, :2] / 2)
    assert_allclose(half.scene.track_xy, full.track_xy / 2)
    assert half.scene.intrinsics[0].params == pytest.approx([30, 30, 16, 12])
    assert [finding.kind for finding in half.findings] == ["rescaled_images"]
    assert "0.5 times" in half.findings[0].message


def test_missing_images_are_skipped_on_request_and_counted(tmp_path: Path) -> None:
    write_scene(tmp_path, synthetic_scene(6, 80))
    for name in ("view_0001.jpg", "view_0004.jpg"):
        (tmp_path / "images" / name).unlink()
    reading = read_scene(tmp_path, missing_images="skip")
    assert reading.scene.names == tuple(f"view_{i:04d}.jpg" for i in (0, 2, 3, 5))
    assert "2 of 6 images are missing" in reading.findings[0].message
    rest = to_pycolmap(synthetic_scene(6, 80))
    for point in range(80):
        kept = {e.image_id - 1 for e in rest.points3D[point + 1].track.elements} - {1, 4}
        span = slice(*reading.scene.track_offsets[point : point + 2])
        names = {reading.scene.names[c] for c in reading.scene.track_cameras[span]}
        assert names == {f"view_{i:04d}.jpg" for i in kept}


def test_points_that_are_not_finite_are_left_out_and_reported(tmp_path: Path) -> None:
    scene = synthetic_scene(4, 40)
    points = scene.points.copy()
    points[[3, 7], 1] = np.nan, np.inf
    write_scene(tmp_path, scene)
    to_pycolmap(replace(scene, points=points)).write_binary(str(tmp_path / "sparse/0"))
    reading = read_scene(tmp_path)
    assert reading.scene.n_points == 38
    assert np.isfinite(reading.scene.points).all()
    assert "2 of 40 points" in reading.findings[0].message
    assert reading.scene.track_offsets[-1] == len(reading.scene.track_cameras)


@pytest.mark.parametrize("similarity", [None, Similarity(0.25, (1.0, -2.0, 3.0))], ids=["as is", "moved"])
def test_a_written_subset_opens_in_pycolmap_with_its_ids_poses_and_tracks(
    tmp_path: Path, similarity: Similarity | None
) -> None:
    scene = synthetic_scene(9, 120)
    cameras, points = np.array([1, 3, 4, 7]), np.arange(10, 90)
    write_model(scene, cameras, points, tmp_path / "model", similarity)
    model = pycolmap.Reconstruction(tmp_path / "model")
    assert sorted(model.images) == [2, 4, 5, 8]
    assert sorted(model.points3D) == list(range(11, 91))
    for i in cameras:
        image = model.images[int(scene.image_ids[i])]
        assert image.name == scene.names[i]
        for index in range(image.num_points2D()):
            seen = image.point2D(index)
            local = image.cam_from_world() * model.points3D[seen.point3D_id].xyz
            assert_allclose(image.camera.img_from_cam(local), seen.xy, atol=1e-3)
    lengths = [np.isin(scene.track_cameras[slice(*scene.track_offsets[p : p + 2])], cameras).sum() for p in points]
    assert [model.points3D[int(i)].track.length() for i in scene.point_ids[points]] == lengths
    assert sum(lengths) > 40
    expected = scene.points[points] if similarity is None else similarity.apply(scene.points[points])
    assert_allclose([model.points3D[int(i)].xyz for i in scene.point_ids[points]], expected)
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"cameras.bin", "images.bin", "points3D.bin"}


def test_a_scene_survives_writing_and_reading(tmp_path: Path) -> None:
    scene = write_scene(tmp_path, synthetic_scene(6, 70))
    shutil.rmtree(tmp_path / "sparse")
    write_model(scene, np.arange(6), np.arange(70), tmp_path / "sparse/0")
    again = read_scene(tmp_path).scene
    for field in ("names", "sizes", "image_ids", "point_ids", "points", "colors", "track_offsets", "track_cameras"):
        assert_array_equal(getattr(again, field), getattr(scene, field))
    assert_allclose(again.viewmats, scene.viewmats, atol=1e-12)
    assert_allclose(again.track_xy, scene.track_xy)


def test_a_camera_that_observes_nothing_is_kept(tmp_path: Path) -> None:
    away = look_at((0, 0, 5), (0, 0, 50))
    scene = scene_from(synthetic_scene(4, 40).points, np.stack([*synthetic_scene(4, 40).viewmats, away]))
    write_scene(tmp_path, scene)
    read = read_scene(tmp_path).scene
    assert read.n_cameras == 5
    assert not (read.track_cameras == 4).any()
