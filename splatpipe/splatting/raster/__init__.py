"""One call for both devices: our rasteriser on the CPU, gsplat's kernels on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch

from splatpipe.splatting.raster.inputs import Colors, check_gaussians, check_views
from splatpipe.splatting.raster.pool import set_threads, threads

__all__ = ["BLUR", "rasterization", "set_threads", "threads", "warm_up"]


BLUR = 0.3  # square pixels added to the image of every Gaussian


def rasterization(
    means: torch.Tensor,  # (N, 3)
    quats: torch.Tensor,  # (N, 4) wxyz, any length
    scales: torch.Tensor,  # (N, 3) standard deviations
    opacities: torch.Tensor,  # (N,) 0 to 1
    colors: Colors,  # (N, 3); or SH coefficients (N, K, 3), or the pair (N, 1, 3), (N, K - 1, 3)
    viewmats: torch.Tensor,  # (C, 4, 4) world to camera
    Ks: torch.Tensor,  # (C, 3, 3) pixels
    width: int,
    height: int,
    *,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    eps2d: float = BLUR,
    sh_degree: int | None = None,
    backgrounds: torch.Tensor | None = None,  # (C, 3)
    rasterize_mode: Literal["classic", "antialiased"] = "classic",
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Images (C, height, width, 3), their opacities (C, height, width, 1), and what was seen.

    The same meaning as `gsplat.rasterization` (1.5.3). Differentiable with respect to the Gaussians; with
    `sh_degree` d only the first (d + 1)^2 coefficients are read, and the others' gradients are zero (of a
    pair at degree 0, the second has none). meta: "radii" (C, N, 2) int32 pixels, 0 where not visible;
    "means2d" (C, N, 2); "depths" (C, N); "n_isects", the number of Gaussian-tile intersections. A Gaussian
    with a NaN, an infinity or a zero quaternion is not drawn.

    Raises ValueError, naming the argument, for a wrong shape, dtype, device or memory layout, and
    TooManyIntersections (a MemoryError) when the Gaussians cover the image impossibly often.
    """
    base, rest = check_gaussians(means, quats, scales, opacities, colors, sh_degree)
    check_views(viewmats, Ks, backgrounds, width, height, means.device)
    if rasterize_mode not in ("classic", "antialiased"):
        raise ValueError(f"rasterize_mode must be 'classic' or 'antialiased', not {rasterize_mode!r}")
    if means.device.type == "cuda":
        from gsplat import rasterization as on_cuda

        renders, alphas, meta = on_cuda(
            means, quats, scales, opacities, base if rest is None else torch.cat([base, rest], 1),
            viewmats, Ks, width, height, near_plane=near_plane, far_plane=far_plane, eps2d=eps2d,
            sh_degree=sh_degree, backgrounds=backgrounds, rasterize_mode=rasterize_mode, packed=False,
        )  # fmt: skip
        meta["n_isects"] = int(meta["tiles_per_gauss"].sum(dtype=torch.int64))
        return renders, alphas, meta
    from splatpipe.splatting.raster.cpu import rasterize
    from splatpipe.splatting.raster.view import Frame

    degree = -1 if sh_degree is None else sh_degree
    antialiased = rasterize_mode == "antialiased"
    frame = Frame(int(width), int(height), degree, (near_plane, far_plane), eps2d, antialiased)
    return rasterize(frame, viewmats, Ks, backgrounds, (means, quats, scales, opacities, base, rest))


def warm_up(announce: Callable[[str], None] | None = None) -> bool:
    """Compile the CPU kernels if need be, after telling `announce`; True if they were not compiled before."""
    from splatpipe.splatting.raster.warmup import warm_up as compile_all

    return compile_all(announce)
