"""A splat file against photographs that did not train it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from splatpipe.scene.arrays import Similarity
from splatpipe.splatting import raster
from splatpipe.splatting.images import load_image
from splatpipe.splatting.metrics import Evaluation, Picture, ViewMetrics, evaluate_views
from splatpipe.splatting.ply import Splats, read_splats, to_training
from splatpipe.splatting.views import Views

NORMALISED_EXTENT = 10.0


def evaluate_splat(
    path: Path,
    views: Views,
    *,
    downscale: float = 1.0,
    max_width: int = 0,
    device: str = "cpu",
    threads: int = 0,
    on_view: Callable[[ViewMetrics, Picture, Picture], None] | None = None,
) -> Evaluation:
    """PSNR and SSIM of every view of `views` (original sizes and Ks), rendered from a splat in scene coordinates.

    Photographs and renders have the size of `training_size(width, height, downscale, max_width)`.
    `on_view(metrics, render, photograph)` is called for each view while both pictures are at hand.
    Raises SplatFileError and SceneError.
    """
    if threads and device == "cpu":
        raster.set_threads(threads)
    renderer = Renderer(read_splats(path), device)
    small = views.resized(downscale, max_width)

    def render(i: int) -> Picture:
        width, height = (int(pixels) for pixels in small.sizes[i])
        return renderer.render(small.viewmats[i], small.Ks[i], width, height)

    def photograph(i: int) -> Picture:
        width, height = (int(pixels) for pixels in small.sizes[i])
        return load_image(small.paths[i], width, height)

    return evaluate_views(render, photograph, small.names, on_view)


class Renderer:
    """Splats in scene coordinates, held on `device` in a frame where float32 is accurate.

    The frame has its origin amid the Gaussians and an extent of 10, because kilometres from the origin, or in
    scenes a millimetre wide, single precision and the rasteriser's near plane (0.01) would show.
    """

    def __init__(self, splats: Splats, device: str = "cpu") -> None:
        self.sh_degree = splats.sh_degree
        self._device = torch.device(device)
        self._similarity = normalising(splats.means)
        local = to_training(splats, self._similarity)
        self._means, self._quats, self._sh0, self._shN = (
            torch.from_numpy(array).to(self._device) for array in (local.means, local.quats, local.sh0, local.shN)
        )
        self._scales = torch.from_numpy(local.scales).to(self._device).exp()
        self._opacities = torch.from_numpy(local.opacities).to(self._device).sigmoid()

    @torch.no_grad()
    def render(self, viewmat: NDArray[np.float64], K: NDArray[np.float64], width: int, height: int) -> Picture:
        """(height, width, 3) float32 in [0, 1] on black; `viewmat` (4, 4) world to camera, `K` (3, 3) in pixels."""
        viewmats = self._similarity.apply_viewmats(viewmat[None])
        images, _, _ = raster.rasterization(
            self._means,
            self._quats,
            self._scales,
            self._opacities,
            (self._sh0, self._shN),
            torch.from_numpy(viewmats).to(self._device, torch.float32),
            torch.from_numpy(np.asarray(K, np.float64)[None]).to(self._device, torch.float32),
            width,
            height,
            sh_degree=self.sh_degree,
        )
        return images[0].clamp(0, 1).cpu().numpy()


def normalising(means: NDArray[np.float32]) -> Similarity:
    """From scene coordinates to a frame in which the 1 to 99 percentile box of `means` (N, 3) has extent 10 at 0."""
    if not len(means):
        return Similarity(1.0, (0.0, 0.0, 0.0))
    low, high = np.percentile(means.astype(np.float64), [1, 99], axis=0)
    scale = NORMALISED_EXTENT / (float((high - low).max()) or 1.0)
    x, y, z = (float(value) for value in -scale * (low + high) / 2)
    return Similarity(scale, (x, y, z))
