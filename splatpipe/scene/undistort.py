"""Pinhole images of a scene whose cameras have lens distortion, made once and kept."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from splatpipe.errors import EnvironmentProblem, SceneError
from splatpipe.files import atomic_folder, read_json, write_json
from splatpipe.scene import photographs
from splatpipe.scene.arrays import Scene
from splatpipe.scene.colmap import assemble, read_model, write_model
from splatpipe.scene.intrinsics import PINHOLE_MODELS
from splatpipe.scene.library import load_pycolmap
from splatpipe.scene.masks import mask_paths, undistort_masks

FULL = 1 << 20  # bytes; a disk with less is full
KEY_FILE = "undistorted.json"
JPEG_QUALITY = 98
POLL_S = 0.2
VERSION = 1  # of what is written; part of the key


def needs_undistortion(scene: Scene) -> bool:
    """Whether any camera is more than a pinhole."""
    return any(one.model not in PINHOLE_MODELS for one in scene.intrinsics)


def undistort(
    scene: Scene,
    cache: Path,
    announce: Callable[[str], None] | None = None,
    check: Callable[[], None] = lambda: None,
) -> Scene:
    """The scene with pinhole cameras: itself if it has no others, else from `cache/images` and `cache/sparse`.

    `announce` is told when images have to be undistorted, which takes a while; what `check`, called now and then
    meanwhile, raises ends it.

    `cache` is filled when it does not hold this scene yet, and replaced whole or not at all. Raises `SceneError`
    naming an image that could not be undistorted.
    """
    if not needs_undistortion(scene):
        return scene
    key = _key(scene)
    if not _holds(cache, key):
        if announce:
            announce(f"undistorting {scene.n_cameras} images into {cache} (once)")
        with atomic_folder(cache) as temporary:
            _fill(scene, temporary, check)
            if scene.mask_dir is not None:
                undistort_masks(scene, temporary / "masks")
            write_json(temporary / KEY_FILE, {"key": key})
    images = cache / "images"
    undistorted = assemble(read_model(cache / "sparse"), cache / "sparse", images)[0]
    return replace(undistorted, mask_dir=cache / "masks" if scene.mask_dir else None, offset=scene.offset)


def _key(scene: Scene) -> str:
    """A hash of all that undistortion depends on: model, intrinsics, and each image's name, size and time."""
    digest = hashlib.sha256(f"{VERSION} {JPEG_QUALITY} {scene.image_dir.resolve()}".encode())
    for one in scene.intrinsics:
        digest.update(repr(one).encode())
    for name in scene.names:
        stat = (scene.image_dir / name).stat()
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    for mask in filter(None, mask_paths(scene.mask_dir, scene.names)):
        stat = mask.stat()
        digest.update(f"{mask}\0{stat.st_size}\0{stat.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    arrays: tuple[NDArray[Any], ...] = (
        scene.image_ids,
        scene.viewmats,
        scene.point_ids,
        scene.points,
        scene.colors,
        scene.errors,
    )
    arrays += (scene.track_offsets, scene.track_cameras, scene.track_xy)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _holds(cache: Path, key: str) -> bool:
    try:
        return bool(read_json(cache / KEY_FILE)["key"] == key)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _fill(scene: Scene, folder: Path, check: Callable[[], None]) -> None:
    """Write `images/` and `sparse/` into `folder` through pycolmap."""
    source, made = folder / "source", folder / "made"
    everything = np.arange(scene.n_cameras), np.arange(scene.n_points)
    write_model(scene, *everything, source, intrinsics={one.id: one for one in scene.intrinsics})
    _run_pycolmap(made, source, scene.image_dir, check)
    absent = photographs.missing_images(made / "images", scene.names)
    if absent.any():
        name = scene.names[int(np.argmax(absent))]
        raise SceneError(f"{scene.image_dir / name} could not be decoded for undistortion; replace it by a JPEG or PNG")
    _check_written(scene, made)
    (made / "images").rename(folder / "images")
    (made / "sparse").rename(folder / "sparse")
    for left in (source, made):
        shutil.rmtree(left)


def _run_pycolmap(made: Path, source: Path, image_dir: Path, check: Callable[[], None]) -> None:
    """Undistort in a child process: libjpeg ends the process that runs it when the disk is full."""
    command = [sys.executable, "-m", __name__, str(made), str(source), str(image_dir)]
    with tempfile.TemporaryFile() as said:
        status = _watched(command, said, check)
        said.seek(0)
        lines = said.read().decode("utf-8", "replace").strip().splitlines()
    if status == 0:
        return
    last = (lines or [f"exit status {status}"])[-1]
    if "disk space" in last or shutil.disk_usage(made.parent).free < FULL:
        raise _no_room(made.parent)
    raise SceneError(f"{image_dir}: the images could not be undistorted ({last})")


def _watched(command: Sequence[str], said: IO[bytes], check: Callable[[], None]) -> int:
    """Exit status of a child in a session of its own, so that Ctrl-C reaches it by way of `check` alone."""
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True
    )
    try:
        while True:
            check()
            with suppress(subprocess.TimeoutExpired):
                return child.wait(timeout=POLL_S)
    finally:
        child.kill()
        child.wait()


def _no_room(folder: Path) -> EnvironmentProblem:
    return EnvironmentProblem(f"the undistorted images do not fit on the disk of {folder.parent}; make room, run again")


def _child(made: str, source: str, image_dir: str) -> None:
    pycolmap = load_pycolmap()
    with quiet_pycolmap():
        pycolmap.undistort_images(
            made, source, image_dir, output_type="COLMAP", jpeg_quality=JPEG_QUALITY, num_threads=-1
        )


def _check_written(scene: Scene, made: Path) -> None:
    """pycolmap does not notice every full disk: it leaves files short. EnvironmentProblem when one is."""
    try:
        read_model(made / "sparse")
    except SceneError as error:
        raise _no_room(made.parent) from error
    if not all(_is_whole(made / "images" / name) for name in scene.names):
        raise _no_room(made.parent)


def _is_whole(path: Path) -> bool:
    """Whether a JPEG or PNG file has its end; other formats are believed."""
    with path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - 12))
        end = handle.read()
    match path.suffix.lower():
        case ".jpg" | ".jpeg":
            return end.endswith(b"\xff\xd9")
        case ".png":
            return b"IEND" in end
    return bool(end)


@contextmanager
def quiet_pycolmap() -> Iterator[None]:
    """pycolmap logs through glog to stderr; keep it to errors that end the process."""
    pycolmap = load_pycolmap()

    levels = pycolmap.logging.minloglevel, pycolmap.logging.stderrthreshold
    pycolmap.logging.minloglevel = pycolmap.logging.FATAL.value
    pycolmap.logging.stderrthreshold = pycolmap.logging.FATAL.value
    try:
        yield
    finally:
        pycolmap.logging.minloglevel, pycolmap.logging.stderrthreshold = levels


if __name__ == "__main__":
    _child(*sys.argv[1:])
