"""A splat file against photographs that did not train it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from splatpipe.errors import EnvironmentProblem
from splatpipe.merge.rows import Rows, widest
from splatpipe.scene.arrays import Similarity
from splatpipe.splatting import raster
from splatpipe.splatting.images import load_image
from splatpipe.splatting.metrics import Evaluation, Perceptual, Picture, ViewMetrics, evaluate_views
from splatpipe.splatting.ply import (
    PlyHeader,
    Splats,
    from_rows,
    iter_rows,
    read_header,
    read_splats,
    sample_rows,
    to_training,
)
from splatpipe.splatting.views import Views

NORMALISED_EXTENT = 10.0
HELD_AT_ONCE = 8_000_000  # Gaussians; of a larger file each view reads what it sees, so that memory has a bound


def evaluate_splat(
    path: Path,
    views: Views,
    *,
    downscale: float = 1.0,
    max_width: int = 0,
    device: str = "cpu",
    threads: int = 0,
    on_view: Callable[[ViewMetrics, Picture, Picture], None] | None = None,
    perceptual: Perceptual | None = None,
    held_at_once: int = HELD_AT_ONCE,
) -> Evaluation:
    """Every metric for every view of `views` (original sizes and Ks), rendered from a splat in scene coordinates.

    Photographs and renders have the size of `training_size(width, height, downscale, max_width)`.
    `on_view(metrics, render, photograph)` is called for each view while both pictures are at hand. A file of more
    than `held_at_once` Gaussians is read anew for each view, keeping what lies in it.
    Raises SplatFileError and SceneError.
    """
    if threads and device == "cpu":
        raster.set_threads(threads)
    small, draw = views.resized(downscale, max_width), renderer_of(path, device, held_at_once)

    def render(i: int) -> Picture:
        width, height = (int(pixels) for pixels in small.sizes[i])
        return draw(small.viewmats[i], small.Ks[i], width, height)[:, :, :3]

    def photograph(i: int) -> Picture:
        width, height = (int(pixels) for pixels in small.sizes[i])
        return load_image(small.paths[i], width, height)

    return evaluate_views(render, photograph, small.names, on_view, perceptual, small.mask)


Draw = Callable[[NDArray[np.float64], NDArray[np.float64], int, int], Picture]
"""`Renderer.render_rgba` of some splat: viewmat, K, width, height."""


def renderer_of(path: Path, device: str = "cpu", held_at_once: int = HELD_AT_ONCE) -> Draw:
    """Draws views of a splat file: held whole, or, of more Gaussians than `held_at_once`, read anew for each view."""
    header = read_header(path)
    blur = header.antialiased
    if header.count <= held_at_once:
        return Renderer(read_splats(path), device, antialiased=blur).render_rgba
    similarity = normalising(sampled_means(header))

    def draw(viewmat: NDArray[np.float64], K: NDArray[np.float64], width: int, height: int) -> Picture:
        visible = _visible(path, viewmat, K, width, height)
        return Renderer(visible, device, similarity, blur).render_rgba(viewmat, K, width, height)

    return draw


class Renderer:
    """Splats in scene coordinates, held on `device` in a frame where float32 is accurate.

    The frame has its origin amid the Gaussians and an extent of 10, because kilometres from the origin, or in
    scenes a millimetre wide, single precision and the rasteriser's near plane (0.01) would show. `similarity`
    leads into another frame instead; `antialiased` is the blur of an antialiased splat (`PlyHeader.antialiased`).
    """

    def __init__(
        self,
        splats: Splats,
        device: str = "cpu",
        similarity: Similarity | None = None,
        antialiased: float | None = None,
    ) -> None:
        self._antialiased = antialiased
        self.sh_degree = splats.sh_degree
        self.similarity = similarity or normalising(splats.means)
        self._device = torch.device(device)
        local = to_training(splats, self.similarity)
        with _enough(device, len(splats.means)):
            self._means, self._quats, self._sh0, self._shN = (
                torch.from_numpy(array).to(self._device) for array in (local.means, local.quats, local.sh0, local.shN)
            )
            self._scales = torch.from_numpy(local.scales).to(self._device).exp()
            self._opacities = torch.from_numpy(local.opacities).to(self._device).sigmoid()

    def render(self, viewmat: NDArray[np.float64], K: NDArray[np.float64], width: int, height: int) -> Picture:
        """(height, width, 3) float32 in [0, 1] on black; `viewmat` (4, 4) world to camera, `K` (3, 3) in pixels."""
        return self.render_rgba(viewmat, K, width, height)[:, :, :3]

    @torch.no_grad()
    def render_rgba(self, viewmat: NDArray[np.float64], K: NDArray[np.float64], width: int, height: int) -> Picture:
        """The same, and as a fourth channel the share of the light that the Gaussians hold back."""
        viewmats = self.similarity.apply_viewmats(viewmat[None])
        with _enough(str(self._device), len(self._means)):
            images, alphas, _ = raster.rasterization(
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
                eps2d=raster.BLUR if self._antialiased is None else self._antialiased,
                rasterize_mode="classic" if self._antialiased is None else "antialiased",
            )
            return torch.cat([images[0], alphas[0]], -1).clamp(0, 1).cpu().numpy()


@contextlib.contextmanager
def _enough(device: str, count: int) -> Iterator[None]:
    """Turns too little GPU memory, which others may use too, into a sentence."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise EnvironmentProblem(
            f"{device}: not enough GPU memory to render {count} Gaussians; wait until others have left it, or set "
            "training.device=cpu"
        ) from error


def normalising(means: NDArray[np.float32]) -> Similarity:
    """From scene coordinates to a frame in which the 1 to 99 percentile box of `means` (N, 3) has extent 10 at 0.

    Means that are not finite, which no merged splat has but a patch's may, do not count.
    """
    means = means[np.isfinite(means).all(axis=1)]
    if not len(means):
        return Similarity(1.0, (0.0, 0.0, 0.0))
    low, high = np.percentile(means.astype(np.float64), [1, 99], axis=0)
    scale = NORMALISED_EXTENT / (float((high - low).max()) or 1.0)
    x, y, z = (float(value) for value in -scale * (low + high) / 2)
    return Similarity(scale, (x, y, z))


def sampled_means(header: PlyHeader) -> NDArray[np.float32]:
    """Positions (S, 3) of Gaussians spread evenly over a file."""
    return np.concatenate([rows[:, :3] for rows in sample_rows(header, 1 << 18)])


def _visible(path: Path, viewmat: NDArray[np.float64], K: NDArray[np.float64], width: int, height: int) -> Splats:
    """The Gaussians of a file that can reach into a view, chunk by chunk."""
    kept = [rows[in_view(rows, viewmat, K, width, height)] for rows in iter_rows(read_header(path))]
    return from_rows(np.concatenate(kept))


def in_view(
    rows: Rows, viewmat: NDArray[np.float64], K: NDArray[np.float64], width: int, height: int
) -> NDArray[np.bool_]:
    """(N,) which Gaussians have a part within four standard deviations inside the view's pyramid; never too few."""
    centers = rows[:, :3].astype(np.float64) @ viewmat[:3, :3].T + viewmat[:3, 3]
    reach = 4 * widest(rows)
    inside = centers[:, 2] > -reach
    corners = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]]) @ np.linalg.inv(K).T
    for i in range(4):
        # Each side of the pyramid is a plane through the camera; its normal points inwards.
        normal = np.cross(corners[i], corners[(i + 1) % 4])
        inside &= centers @ (normal / np.linalg.norm(normal)) > -reach
    return inside
