"""A photograph of the scene, and what a splat shows from the same place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splatpipe.report.scenery import Cameras
from splatpipe.report.thinning import thinned
from splatpipe.splatting.ply import read_header

WIDTH = 480  # pixels of photograph and render
MOST_GAUSSIANS = 500_000  # rendered on the CPU

Picture = NDArray[np.uint8]  # (H, W, 3)


class Views:
    """Keeps the last splat in memory, as clicks tend to ask for the same one."""

    def __init__(self) -> None:
        self._loaded: tuple[Path, float] | None = None
        self._renderer: Any = None

    def pair(self, cameras: Cameras, i: int, splat: Path | None) -> tuple[Picture, Picture | None]:
        """Photograph and render of camera `i`; no render without a splat. Raises SceneError, SplatFileError."""
        from splatpipe.splatting.images import load_image

        width = min(WIDTH, int(cameras.sizes[i, 0]))
        shrink = width / int(cameras.sizes[i, 0])
        height = max(round(int(cameras.sizes[i, 1]) * shrink), 1)
        photograph = _pixels(load_image(cameras.paths[i], width, height))
        if splat is None or not splat.is_file():
            return photograph, None
        K = np.diag([shrink, shrink, 1.0]) @ cameras.Ks[i]
        return photograph, _pixels(self._of(splat).render(cameras.viewmats[i], K, width, height))

    def _of(self, splat: Path) -> Any:
        key = splat, splat.stat().st_mtime
        if key != self._loaded:
            from splatpipe.merge.evaluate import Renderer

            blur = read_header(splat).antialiased
            self._renderer, self._loaded = Renderer(thinned(splat, MOST_GAUSSIANS), antialiased=blur), key
        return self._renderer


def _pixels(picture: NDArray[np.floating]) -> Picture:
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
