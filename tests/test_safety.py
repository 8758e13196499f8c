"""Input that means harm: names that lead out, counts that lie, settings and checkpoints that would run code."""

from __future__ import annotations

import pickle
import re
import resource
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from scenes import synthetic_scene, write_scene

from splatpipe import pipeline
from splatpipe.errors import ConfigError, SceneError
from splatpipe.scene.colmap import read_scene
from splatpipe.splatting import checkpoint as checkpoints
from splatpipe.splatting.ply import SplatFileError, read_header
from splatpipe.yamltext import YamlProblem, load_yaml


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    write_scene(tmp_path / "scene", synthetic_scene(n_cameras=4, n_points=30))
    return tmp_path / "scene"


def rename_first_image(scene: Path, name: bytes) -> None:
    model = scene / "sparse" / "0" / "images.bin"
    model.write_bytes(model.read_bytes().replace(b"view_0000.jpg", name, 1))


@pytest.mark.parametrize("name", [b"../../secret.jpg", b"/etc/passwd", b"a/../../b.jpg", b"C:\\secret.jpg", b""])
def test_a_name_that_leads_out_of_the_scene_is_refused(scene: Path, name: bytes) -> None:
    rename_first_image(scene, name)
    with pytest.raises(SceneError, match="leads out of the image folder"):
        read_scene(scene)


@pytest.mark.parametrize("behind", ["file", "folder"])
def test_a_link_that_leads_out_of_the_scene_is_refused_until_it_is_trusted(
    scene: Path, tmp_path: Path, behind: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    first = scene / "images" / "view_0000.jpg"
    if behind == "file":
        first.rename(outside / "secret.jpg")
        first.symlink_to(outside / "secret.jpg")
    else:
        rename_first_image(scene, b"sub/view_0000.jpg")
        first.rename(outside / "view_0000.jpg")
        (scene / "images" / "sub").symlink_to(outside)
    options = pipeline.RunOptions.resolve(scene, None, None, [], None, None)
    with pytest.raises(SceneError, match="leads out of the scene.*scene.outside_links=follow"):
        pipeline.inspect(options)
    trusting = pipeline.RunOptions.resolve(scene, None, None, ["scene.outside_links=follow"], None, None)
    assert pipeline.inspect(trusting)["facts"]["cameras"] == 4


def test_links_inside_the_scene_and_an_image_folder_that_is_a_link_are_fine(scene: Path, tmp_path: Path) -> None:
    images = scene / "images"
    images.rename(tmp_path / "photographs")
    images.symlink_to(tmp_path / "photographs")
    first = images / "view_0000.jpg"
    first.rename(scene / "first.jpg")
    first.symlink_to(scene / "first.jpg")
    assert read_scene(scene).scene.n_cameras == 4


COUNTS = {
    "cameras.bin": 0,
    "images.bin": 0,
    "points3D.bin": 0,
    "points3D.bin track": 8 + 43,
    "images.bin observations": 8 + 64 + len("view_0000.jpg") + 1,
}


@pytest.mark.parametrize("count", [2**32, 2**40, 2**62, 2**64 - 1])
@pytest.mark.parametrize("what", COUNTS)
def test_a_count_that_lies_takes_no_memory(scene: Path, what: str, count: int) -> None:
    model = scene / "sparse" / "0" / what.split(" ")[0]
    data = bytearray(model.read_bytes())
    struct.pack_into("<Q", data, COUNTS[what], count)
    model.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SceneError, match=f"{model.name} is truncated or damaged"):
        read_scene(scene)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize("count", ["4294967296", "99999999999999999999", "9" * 5000])
def test_a_ply_that_announces_more_than_it_holds_takes_no_memory(tmp_path: Path, count: str) -> None:
    names = ("x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2")
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {count}"]
    lines += [f"property float {name}" for name in (*names, "rot_0", "rot_1", "rot_2", "rot_3")]
    path = tmp_path / "splat.ply"
    path.write_bytes("\n".join([*lines, "end_header\n"]).encode() + bytes(560))
    with pytest.raises(SplatFileError, match=r"announces|no valid count"):
        read_header(path)


def test_settings_make_plain_data_only(tmp_path: Path) -> None:
    target = tmp_path / "made"
    path = tmp_path / "splat_config.yml"
    path.write_text(f"training: !!python/object/apply:os.mkdir ['{target}']\n")
    with pytest.raises(ConfigError, match=r"splat_config.yml:1:11: not valid YAML"):
        pipeline.RunOptions.resolve(tmp_path, None, path, [], None, None)
    with pytest.raises(YamlProblem, match="line 1, column 9: aliases"):
        load_yaml("a: &a [ *a]")
    assert not target.exists()


class Runs:
    """Its pickle makes a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.mkdir, (Path(self.path),)  # type: ignore[return-value]


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    made = tmp_path / "made"
    torch.save({"step": 7, "key": "k", "params": Runs(made), "adam": {}, "health": {}}, tmp_path / "step_0000007.pt")
    with zipfile.ZipFile(tmp_path / "step_0000007.pt") as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        assert b"mkdir" in archive.read(name)
    assert checkpoints.load_latest(tmp_path, "k", torch.device("cpu")) is None
    (tmp_path / "step_0000008.pt").write_bytes(pickle.dumps(Runs(made)))
    assert checkpoints.load_latest(tmp_path, "k", torch.device("cpu")) is None
    assert not made.exists()


def test_no_shell_is_started_anywhere(repository: Path) -> None:
    shells = re.compile(r"shell\s*=\s*True|os\.system|os\.popen|getoutput|commands\.|\beval\(|\bexec\(")
    unsafe = re.compile(r"yaml\.(unsafe_|full_)?load\((?!text, Loader=_Loader)|pickle\.loads?|weights_only\s*=\s*False")
    found = []
    for path in sorted((repository / "splatpipe").rglob("*.py")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if shells.search(line) or unsafe.search(line):
                found.append(f"{path.name}:{number}: {line.strip()}")
    assert not found


def test_a_scene_whose_name_is_a_command_is_a_folder_like_any_other(tmp_path: Path) -> None:
    folder = tmp_path / "$(touch hacked); `touch hacked` && touch hacked #"
    write_scene(folder, synthetic_scene(n_cameras=4, n_points=30), camera_model="SIMPLE_RADIAL")
    command = [
        sys.executable,
        "-m",
        "splatpipe.cli",
        "split",
        str(folder),
        "--out",
        str(tmp_path / "run; touch hacked"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("hacked"))
