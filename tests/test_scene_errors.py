"""What is wrong with a scene is said in one sentence that names the file and the way out."""

from __future__ import annotations

import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scenes import synthetic_scene, write_scene

from splatpipe.errors import SceneError
from splatpipe.scene.arrays import Intrinsics
from splatpipe.scene.binary import read_binary
from splatpipe.scene.colmap import read_scene
from splatpipe.scene.findings import Finding


def refused(root: Path, **options: str) -> str:
    """The sentence with which `root` is refused."""
    with pytest.raises(SceneError) as caught:
        read_scene(root, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


def small(folder: Path, **options: object) -> Path:
    write_scene(folder, synthetic_scene(5, 60), **options)  # type: ignore[arg-type]
    return folder


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    assert re.search(r"nowhere does not exist; name a folder", refused(tmp_path / "nowhere"))


def test_a_path_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "scene.zip").write_bytes(b"PK")
    assert "scene.zip is a file" in refused(tmp_path / "scene.zip")


def test_a_folder_without_a_model_lists_where_was_looked(tmp_path: Path) -> None:
    message = refused(tmp_path)
    assert "no COLMAP model" in message
    assert "sparse/0, sparse, colmap/sparse/0" in message


def test_the_folder_above_a_scene_s_model_is_no_scene_and_the_scene_is_named(tmp_path: Path) -> None:
    write_scene(tmp_path / "scene", synthetic_scene(5, 60))
    assert f"name {tmp_path / 'scene'} as the scene" in refused(tmp_path / "scene" / "sparse")


def test_a_model_deeper_down_is_named(tmp_path: Path) -> None:
    write_scene(tmp_path / "workspace/dense", synthetic_scene(5, 60), model="sparse")
    place = tmp_path / "workspace" / "dense"
    assert f"there is one in {place / 'sparse'}: name {place} as the scene" in refused(tmp_path / "workspace")
    assert read_scene(tmp_path / "workspace/dense/sparse").scene.n_cameras == 5


def test_a_model_without_points_file(tmp_path: Path) -> None:
    (small(tmp_path) / "sparse/0/points3D.bin").unlink()
    assert "cameras.bin but no points3D.bin" in refused(tmp_path)


@pytest.mark.parametrize("text", [False, True], ids=["bin", "txt"])
def test_a_model_without_images_or_points(tmp_path: Path, text: bool) -> None:
    small(tmp_path, text=text)
    for name, said in (("points3D", "no 3D point"), ("images", "no registered image")):
        path = tmp_path / "sparse/0" / (name + (".txt" if text else ".bin"))
        path.write_bytes(b"# nothing\n" if text else struct.pack("<Q", 0))
        assert said in refused(tmp_path)


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
def test_a_truncated_file_is_named(tmp_path: Path, name: str) -> None:
    path = small(tmp_path) / "sparse/0" / f"{name}.bin"
    whole = path.read_bytes()
    for length in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert re.search(rf"{name}\.bin is (truncated|empty)", refused(tmp_path))
    path.write_bytes(whole + b"\0" * 7)
    assert f"{name}.bin is damaged: 7 bytes follow" in refused(tmp_path)


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
def test_a_lying_count_takes_no_memory(tmp_path: Path, name: str) -> None:
    path = small(tmp_path) / "sparse/0" / f"{name}.bin"
    path.write_bytes(struct.pack("<Q", 2**61) + path.read_bytes()[8:])
    assert f"it announces {2**61:,}" in refused(tmp_path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["cameras", "images", "points3D"]), data=st.data())
def test_any_damage_is_a_scene_error_or_a_readable_model(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    folder = _pristine(tmp_path_factory)
    path = folder / f"{name}.bin"
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 8))
    try:
        path.write_bytes(whole[:at] + data.draw(st.binary(min_size=8, max_size=8)) + whole[at + 8 :])
        read_binary(folder)
    except SceneError as error:
        assert str(folder) in str(error)
    finally:
        path.write_bytes(whole)


def _pristine(factory: pytest.TempPathFactory) -> Path:
    folder = factory.getbasetemp() / "pristine"
    if not folder.exists():
        write_scene(folder, synthetic_scene(3, 20))
    return folder / "sparse/0"


BROKEN_LINES: list[tuple[str, Callable[[list[str]], None], int, str]] = [
    ("cameras.txt", lambda lines: lines.__setitem__(3, "1 PINHOLE 64 48 60.0 60.0"), 4, "4 parameters for PINHOLE"),
    ("cameras.txt", lambda lines: lines.__setitem__(3, "1 PINHOLE sixty 48 60 60 32 24"), 4, "CAMERA_ID MODEL"),
    ("cameras.txt", lambda lines: lines.__setitem__(3, "1 BOXBROWNIE 64 48 60"), 4, "unknown camera model"),
    ("images.txt", lambda lines: lines.__setitem__(6, "2 0.1 0.2 oops"), 7, "IMAGE_ID QW"),
    ("images.txt", lambda lines: lines.__setitem__(7, lines[7] + " 3.5"), 8, "X Y POINT3D_ID"),
    ("points3D.txt", lambda lines: lines.__setitem__(5, lines[5].replace(" ", ",")), 6, "POINT3D_ID X Y Z"),
    ("points3D.txt", lambda lines: lines.__setitem__(4, "7 1 2 3 300 0 0 0.5"), 5, "POINT3D_ID X Y Z"),
]


@pytest.mark.parametrize(("name", "damage", "number", "said"), BROKEN_LINES)
def test_a_broken_line_of_a_text_model_is_named_by_file_and_line(
    tmp_path: Path, name: str, damage: Callable[[list[str]], None], number: int, said: str
) -> None:
    path = small(tmp_path, text=True) / "sparse/0" / name
    lines = path.read_text().splitlines()
    damage(lines)
    path.write_text("\n".join(lines) + "\n")
    message = refused(tmp_path)
    assert f"{name}:{number}: " in message
    assert said in message


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("field", [0, 5], ids=["rotation", "position"])
def test_a_pose_that_is_not_finite_names_its_image(tmp_path: Path, value: float, field: int) -> None:
    small(tmp_path)
    _overwrite_pose(tmp_path / "sparse/0/images.bin", field, value)
    message = refused(tmp_path)
    assert "the pose of image view_000" in message
    assert "1 of 5 images" in message


def test_a_quaternion_of_zeros_names_its_image(tmp_path: Path) -> None:
    small(tmp_path)
    for field in range(4):
        _overwrite_pose(tmp_path / "sparse/0/images.bin", field, 0.0)
    assert "the pose of image view_000" in refused(tmp_path)


def _overwrite_pose(path: Path, field: int, value: float) -> None:
    data = bytearray(path.read_bytes())
    struct.pack_into("<d", data, 8 + 4 + 8 * field, value)
    path.write_bytes(data)


def test_missing_images_are_counted_and_the_way_out_named(tmp_path: Path) -> None:
    small(tmp_path)
    for i in (1, 3):
        (tmp_path / f"images/view_{i:04d}.jpg").unlink()
    message = refused(tmp_path)
    assert "2 of 5 images are missing" in message
    assert "first view_0001.jpg" in message
    assert "scene.missing_images: skip" in message


def test_images_that_are_elsewhere(tmp_path: Path) -> None:
    small(tmp_path, images="photographs")
    message = refused(tmp_path)
    assert "none of the model's 5 images was found" in message
    assert str(tmp_path / "images") in message
    assert "--images" in message
    assert read_scene(tmp_path, images="photographs").scene.n_cameras == 5


def test_a_named_image_folder_that_does_not_exist_or_is_empty(tmp_path: Path) -> None:
    small(tmp_path)
    assert "images_4 does not exist" in refused(tmp_path, images="images_4")
    (tmp_path / "images_8").mkdir()
    assert "5 of 5 images are missing" in refused(tmp_path, images="images_8")
    assert "5 of 5" in refused(tmp_path, images="images_8", missing_images="skip")


@pytest.mark.parametrize("size", [(48, 64), (64, 40), (32, 24)])
def test_an_image_whose_size_disagrees_with_its_camera(tmp_path: Path, size: tuple[int, int]) -> None:
    small(tmp_path)
    Image.new("RGB", size).save(tmp_path / "images/view_0002.jpg")
    message = refused(tmp_path)
    assert f"view_0002.jpg is {size[0]}x{size[1]} pixels but its camera says 64x48" in message
    assert "1 of 5" in message


@pytest.mark.parametrize("content", [b"", b"not a photograph", b"\xff\xd8\xff\xe0 half a header"])
def test_an_image_that_is_none(tmp_path: Path, content: bytes) -> None:
    small(tmp_path)
    (tmp_path / "images/view_0003.jpg").write_bytes(content)
    assert "view_0003.jpg is not a readable image" in refused(tmp_path)


@pytest.mark.parametrize("name", ["../outside.jpg", "a/../../outside.jpg", "/etc/outside.jpg", "C:\\outside.jpg"])
def test_an_image_name_that_leads_out_of_the_scene(tmp_path: Path, name: str) -> None:
    root = small(tmp_path / "scene")
    shutil.copy(root / "images/view_0000.jpg", tmp_path / "outside.jpg")
    _rename_in_text(root, "view_0000.jpg", name)
    message = refused(root)
    assert repr(name) in message
    assert "leads out of the image folder" in message


def test_two_images_of_one_name(tmp_path: Path) -> None:
    _rename_in_text(small(tmp_path), "view_0000.jpg", "view_0001.jpg")
    assert "two images of the model have the name 'view_0001.jpg'" in refused(tmp_path)


def _rename_in_text(root: Path, old: str, new: str) -> None:
    shutil.rmtree(root / "sparse")
    write_scene(root, synthetic_scene(5, 60), text=True)
    path = root / "sparse/0/images.txt"
    path.write_text(path.read_text().replace(old, new))


def test_an_image_of_an_unknown_camera(tmp_path: Path) -> None:
    path = small(tmp_path, text=True) / "sparse/0/cameras.txt"
    path.write_text(path.read_text().replace("\n1 PINHOLE", "\n9 PINHOLE"))
    assert re.search(r"image view_0000.jpg uses camera 1, which the model does not hold", refused(tmp_path))


def test_a_camera_without_a_focal_length(tmp_path: Path) -> None:
    scene = synthetic_scene(5, 60)
    intrinsics = Intrinsics(1, "PINHOLE", 64, 48, (0.0, 60.0, 32.0, 24.0))
    write_scene(tmp_path, replace(scene, intrinsics=(intrinsics,)))
    assert "focal length must be finite and positive" in refused(tmp_path)


def test_findings_are_plain_data() -> None:
    finding = Finding("kind", "note", "a sentence", {"n": 1})
    assert finding.to_json() == {"kind": "kind", "severity": "note", "message": "a sentence", "numbers": {"n": 1}}
