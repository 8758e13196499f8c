"""Where the photographs of a model are, whether all are there, and how large they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

import numpy as np
from numpy.typing import NDArray

from splatpipe.errors import SceneError

SAMPLE = 50  # names tried when looking for the folder
FRAME_HEADERS = (0xC0, 0xC1, 0xC2)  # JPEG segments that give the size: baseline, extended, progressive
FIRST_SEGMENT = 0xC0  # JPEG markers below it carry no length


def check_names(names: Sequence[str]) -> None:
    """Refuse names that would lead out of the image folder or collide."""
    seen = set()
    for name in names:
        if _leads_out(name):
            raise SceneError(
                f"image name {name!r} in the model leads out of the image folder; rename it to a path below that folder"
            )
        if name in seen:
            raise SceneError(f"two images of the model have the name {name!r}; names must differ")
        seen.add(name)


def _leads_out(name: str) -> bool:
    if not name or "\0" in name or name.startswith("/") or ".." in name.split("/"):
        return True
    return (":" in name or "\\" in name) and bool(PureWindowsPath(name).drive)


def check_links(root: Path, folder: Path, names: Sequence[str]) -> None:
    """Refuse images that are symbolic links, or lie behind one, to a place outside the scene and its image folder.

    The image folder itself may be a link: somebody has put it there or named it.
    """
    inside = (root.resolve(), folder.resolve())
    parents = {parent: (folder / parent).resolve() for parent in {name.rpartition("/")[0] for name in names}}
    outside = {parent: real for parent, real in parents.items() if not _is_in(real, inside)}
    for name in names:
        path = folder / name
        real = path.resolve() if path.is_symlink() else outside.get(name.rpartition("/")[0])
        if real is not None and not _is_in(real, inside):
            raise SceneError(
                f"{path} is a link that leads out of the scene, to {real}; copy the image there, or say that the links "
                "of this scene are to be trusted: scene.outside_links=follow"
            )


def _is_in(path: Path, places: Sequence[Path]) -> bool:
    return any(path.is_relative_to(place) for place in places)


def find_image_folder(root: Path, model_dir: Path, names: Sequence[str], images: str | None) -> Path:
    """The folder that holds the images called `names`: the one asked for, else the first usual place with any.

    Raises `SceneError` saying where was looked.
    """
    if images is not None:
        folder = next((p for p in (root / images, Path(images)) if p.is_dir()), None)
        if folder is None:
            raise SceneError(f"image folder {root / images} does not exist; name an existing one with --images")
        return folder
    places = _usual_places(root, model_dir)
    sample = names[:: max(len(names) // SAMPLE, 1)]
    for folder in places:
        if any((folder / name).is_file() for name in sample):
            return folder
    looked = ", ".join(str(place) for place in places)
    raise SceneError(
        f"none of the model's {len(names)} images was found, {names[0]!r} for one (looked in {looked}); "
        "name their folder with --images"
    )


def _usual_places(root: Path, model_dir: Path) -> list[Path]:
    parents = [p for p in (model_dir.parent, model_dir.parent.parent) if model_dir.name.isdigit() or p.name != "sparse"]
    places = [root / "images", *(p / "images" for p in parents), root / "input", root]
    return list(dict.fromkeys(places))


def missing_images(folder: Path, names: Sequence[str]) -> NDArray[np.bool_]:
    """(C,) True where the image file is not there."""
    return np.array([not (folder / name).is_file() for name in names], bool)


def image_sizes(folder: Path, names: Sequence[str]) -> NDArray[np.int32]:
    """(C, 2) width and height from the image headers, as stored (EXIF orientation is not applied, as in COLMAP).

    Raises `SceneError` for a file that is no readable image.
    """
    sizes = np.empty((len(names), 2), np.int32)
    for i, name in enumerate(names):
        sizes[i] = _jpeg_size(folder / name) or _size(folder / name)
    return sizes


def _size(path: Path) -> tuple[int, int]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return image.size
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SceneError(f"{path} is not a readable image ({error}); replace it or remove it from the model") from error


def _jpeg_size(path: Path) -> tuple[int, int] | None:
    """Width and height of a plain JPEG, ten times as fast as an image library; None for whatever is not so plain."""
    try:
        with path.open("rb", buffering=512) as file:
            if file.read(2) != b"\xff\xd8":
                return None
            while True:
                mark, kind, high, low = file.read(4)
                length = 256 * high + low
                if mark != 0xFF or kind < FIRST_SEGMENT or length < 2:
                    return None
                if kind in FRAME_HEADERS:
                    _, h1, h0, w1, w0 = file.read(5)
                    width, height = 256 * w1 + w0, 256 * h1 + h0
                    return (width, height) if width and height and file.read(1) in (b"\x01", b"\x03") else None
                file.seek(length - 2, 1)
    except (OSError, ValueError):  # too few bytes to unpack
        return None


def common_scale(names: Sequence[str], sizes: NDArray[np.int32], expected: NDArray[np.int32]) -> float:
    """How much smaller (or larger) all images are than their cameras say; 1.0 exactly when every size agrees.

    Raises `SceneError` naming the first image that does not follow the common scale.
    """
    if np.array_equal(sizes, expected):
        return 1.0
    scale = float(np.median(sizes / expected))
    wrong = np.abs(sizes - scale * expected).max(axis=1) > 1.5
    if scale > 0.999 and scale < 1.001:
        scale, wrong = 1.0, (sizes != expected).any(axis=1)
    if wrong.any():
        i = int(np.argmax(wrong))
        (w, h), (cw, ch) = sizes[i].tolist(), expected[i].tolist()
        raise SceneError(
            f"image {names[i]} is {w}x{h} pixels but its camera says {cw}x{ch} "
            f"({int(wrong.sum())} of {len(names)} images disagree); "
            "use the images the model was made from, or all of them resized by one factor"
        )
    return scale
