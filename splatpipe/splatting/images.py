"""Photographs at the size they are trained and evaluated at."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from splatpipe.errors import SceneError

SSIM_WINDOW = 11  # pixels; smaller images have no SSIM
WIDE_MODES = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})  # grey with 16 bits, as PIL names them


def training_size(width: int, height: int, downscale: float = 1.0, max_width: int = 0) -> tuple[int, int]:
    """Width and height in pixels after reduction by max(downscale, width / max_width); `max_width` 0: no limit."""
    factor = max(downscale, width / max_width if max_width else 1.0, 1.0)
    return max(round(width / factor), 1), max(round(height / factor), 1)


def scaled_K(K: NDArray[np.floating], original: Sequence[int], target: Sequence[int]) -> NDArray[np.float64]:
    """(3, 3) intrinsics for an image resized from `original` to `target` (width, height).

    Each axis has its own exact ratio, since rounded sizes do not keep the aspect. Pixel coordinates
    start at the corner of the first pixel (COLMAP, gsplat), so the principal point just scales.
    """
    ratio = np.array([target[0] / original[0], target[1] / original[1], 1.0])
    return np.asarray(K, np.float64) * ratio[:, None]


def load_pixels(path: Path, width: int, height: int) -> NDArray[np.uint8]:
    """(height, width, 3) uint8 RGB of a photograph, resized by area averaging.

    Grey, palette, CMYK and 16-bit grey images become RGB; alpha is dropped; EXIF orientation is not
    applied, because COLMAP does not apply it. Raises SceneError when the file cannot be decoded.
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # 100 Mpx cameras exist
            image.load()
            return _resized(image, width, height)
    except FileNotFoundError as error:
        raise SceneError(f"{path}: the image does not exist.") from error
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError, OSError) as error:
        raise SceneError(
            f"{path}: the image cannot be decoded ({error}); it is probably truncated. Copy it again, or leave it out."
        ) from error


def load_mask(path: Path, width: int, height: int) -> NDArray[np.bool_]:
    """(height, width) True where a pixel takes part: it and all that it is made of are white in the mask.

    Raises SceneError when the file cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            white = image.convert("L").point(lambda value: 255 if value >= 128 else 0)
            return np.array(_resize(white, width, height)) >= 253
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError, OSError) as error:
        raise SceneError(f"{path} is not a readable mask ({error}); replace it or remove it.") from error


def _resized(image: Image.Image, width: int, height: int) -> NDArray[np.uint8]:
    if image.mode in WIDE_MODES:
        grey = Image.fromarray(np.asarray(image, np.float32) * (255 / 65535))
        values = np.asarray(_resize(grey, width, height))
        return np.repeat(np.clip(np.rint(values), 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    return np.array(_resize(image.convert("RGB"), width, height))


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """Area averaging when reducing: each pixel is what the sensor of that resolution would have collected."""
    if image.size == (width, height):
        return image
    smaller = width <= image.width and height <= image.height
    return image.resize((width, height), Image.Resampling.BOX if smaller else Image.Resampling.BICUBIC)


def load_image(path: Path, width: int, height: int) -> NDArray[np.float32]:
    """(height, width, 3) float32 RGB in [0, 1]; otherwise as `load_pixels`."""
    return load_pixels(path, width, height).astype(np.float32) / np.float32(255)
