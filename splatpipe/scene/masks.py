"""Masks beside the photographs: black pixels take no part, neither in training nor in evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splatpipe.errors import SceneError
from splatpipe.machine import usable_cores
from splatpipe.scene.arrays import Scene
from splatpipe.scene.findings import Finding

USUAL = "masks"
SUFFIXES = (".png", ".PNG", ".jpg", ".jpeg", ".JPG")


def mask_name(folder: Path, image: str) -> str | None:
    """The mask of the image called `image`, relative to `folder`; None when it has none.

    Tried in turn: the image's own name; that name with `.png` behind it (COLMAP's convention); its stem with the
    suffix of an image.
    """
    stem = str(PurePosixPath(image).with_suffix(""))
    names = dict.fromkeys([image, f"{image}.png", *(stem + suffix for suffix in SUFFIXES)])
    return next((name for name in names if (folder / name).is_file()), None)


def mask_paths(folder: Path | None, images: Sequence[str]) -> tuple[Path | None, ...]:
    """The mask file of each image, None without one."""
    if folder is None:
        return (None,) * len(images)
    names = [mask_name(folder, image) for image in images]
    return tuple(folder / name if name is not None else None for name in names)


def with_masks(
    scene: Scene, root: Path, masks: str | None, model_sizes: NDArray[np.int32]
) -> tuple[Scene, list[Finding]]:
    """The scene with the mask folder `masks` of the scene folder `root`; without any when that is None.

    `model_sizes` (C, 2) are the sizes in pixels that the model gave before intrinsics were scaled to the images: a
    mask may have either. Raises `SceneError` for a folder that is not there or holds no mask of this scene, and for
    a mask that has another size or masks everything.
    """
    if masks is None:
        beside = scene.image_dir.parent / USUAL
        if not any(mask_paths(beside if beside.is_dir() else None, scene.names)):
            return scene, []
        message = f"{beside} holds masks, which are not used (scene.masks: {USUAL} uses them)"
        return scene, [Finding("unused_masks", "note", message, {})]
    folder = next((place for place in (root / masks, Path(masks)) if place.is_dir()), None)
    if folder is None:
        raise SceneError(f"scene.masks: the folder {root / masks} does not exist; name an existing one, or null")
    paths = mask_paths(folder, scene.names)
    count = sum(path is not None for path in paths)
    if not count:
        raise SceneError(
            f"scene.masks: {folder} holds no mask of any image; the mask of {scene.names[0]} would be "
            f"{scene.names[0]}.png there, or have the image's own name"
        )
    with ThreadPoolExecutor(usable_cores()) as pool:
        sizes = zip(scene.sizes.tolist(), model_sizes.tolist(), strict=True)
        list(pool.map(_check, paths, sizes))
    message = f"{count} of {scene.n_cameras} images have a mask in {folder}; what is black there takes no part"
    return replace(scene, mask_dir=folder), [Finding("masks", "note", message, {"masks": count})]


def _check(path: Path | None, sizes: tuple[list[int], list[int]]) -> None:
    from PIL import Image

    if path is None:
        return
    try:
        with Image.open(path) as image:
            size, brightest = list(image.size), int(np.asarray(image.convert("L")).max())
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SceneError(f"{path} is not a readable mask ({error}); replace it or remove it") from error
    if size not in sizes:
        (w, h), (iw, ih) = size, sizes[0]
        raise SceneError(f"{path} is {w}x{h} pixels, but its image {iw}x{ih}; a mask has the size of its image")
    if brightest < 128:
        raise SceneError(
            f"{path} is black all over, so that nothing of its image would be left; remove the mask or the image "
            "(white pixels take part, black ones do not)"
        )


def undistort_masks(scene: Scene, folder: Path) -> None:
    """Write to `folder`, as `NAME.png`, each image's mask as its undistorted image needs it.

    What lies outside the distorted image is masked, and so are pixels to which a masked one contributes.
    """
    from PIL import Image

    from splatpipe.scene.library import load_pycolmap
    from splatpipe.splatting.images import load_mask

    pycolmap = load_pycolmap()
    folder.mkdir()
    for i, path in enumerate(mask_paths(scene.mask_dir, scene.names)):
        if path is None:
            continue
        one = scene.intrinsics[scene.intrinsics_index[i]]
        camera = pycolmap.Camera(model=one.model, width=one.width, height=one.height, params=list(one.params))
        mask = load_mask(path, one.width, one.height).astype(np.uint8) * 255
        bitmap, _ = pycolmap.undistort_image(
            pycolmap.UndistortCameraOptions(), pycolmap.Bitmap.from_array(mask, False), camera
        )
        target = folder / f"{scene.names[i]}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_grey(bitmap.to_array()) >= 250).save(target)


def _grey(pixels: NDArray[Any]) -> NDArray[Any]:
    return pixels.reshape(*pixels.shape[:2], -1)[..., 0]
