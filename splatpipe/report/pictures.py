"""Hold-out photographs and renders as files in the report's folder, so that the folder can be moved as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splatpipe.files import atomic_path
from splatpipe.layout import RunLayout

WIDEST = 1400  # pixels; more than a page shows
QUALITY = 88
KINDS = ("render", "photograph")


def save_pair(layout: RunLayout, n: int, render: NDArray[np.floating], photograph: NDArray[np.floating]) -> None:
    """Keep both pictures, (H, W, 3) in [0, 1], of the merged splat's hold-out view number `n`."""
    for kind, picture in zip(KINDS, (render, photograph), strict=True):
        pixels = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
        image = Image.fromarray(pixels)
        image.thumbnail((WIDEST, WIDEST))
        with atomic_path(layout.report_picture(n, kind)) as temporary:
            image.save(temporary, format="JPEG", quality=QUALITY)


def pairs(layout: RunLayout, views: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each hold-out view with pictures: name, psnr, ssim, and both files relative to the page."""
    found = []
    for n, view in enumerate(views):
        files: dict[str, Path] = {kind: layout.report_picture(n, kind) for kind in KINDS}
        if all(path.is_file() for path in files.values()):
            links = {kind: path.relative_to(layout.report.parent).as_posix() for kind, path in files.items()}
            found.append({"name": view["image"], "psnr": view["psnr"], "ssim": view["ssim"], **links})
    return found
