"""gsplat's compiled kernels, on a device double: gsplat's own Python calls these in the place of `gsplat_cuda.so`.

What gsplat has a torch function for (`gsplat.cuda._torch_impl`: projection, covariances, spherical harmonics) is
computed by that; binning and blending follow csrc/IntersectTile.cu and csrc/RasterizeToPixels3DGSFwd.cu of 1.5.3, for
every pixel and Gaussian at once, so that images must be small. As the kernels do, they refuse tensors that are not on
the GPU or not contiguous, and leave rows of Gaussians that no camera sees unwritten (here: NaN).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from doubles.cuda_double import CudaDouble, cuda_double
from torch.utils._python_dispatch import _disable_current_modes

ALPHA = 1 / 255
EXTENT = 3.33  # standard deviations
LEAST_LIGHT = 1e-4
NAN = float("nan")
BACKEND = "gsplat.cuda._backend"


@contextmanager
def gsplat_double() -> Iterator[None]:
    """Within, torch has a GPU (`cuda_double`) and gsplat its kernels."""
    names = (
        *("projection_ewa_3dgs_fused_fwd", "projection_ewa_3dgs_fused_bwd", "spherical_harmonics_fwd"),
        *("spherical_harmonics_bwd", "intersect_tile", "intersect_offset"),
        *("rasterize_to_pixels_3dgs_fwd", "rasterize_to_pixels_3dgs_bwd"),
    )
    backend = ModuleType(BACKEND)
    backend._C = SimpleNamespace(  # type: ignore[attr-defined]
        **{name: _kernel(globals()[f"_{name}"]) for name in names}, CameraModelType="pinhole", PINHOLE="pinhole"
    )
    before = sys.modules.get(BACKEND)
    sys.modules[BACKEND] = backend
    try:
        with cuda_double():
            yield
    finally:
        del sys.modules[BACKEND]
        if before is not None:
            sys.modules[BACKEND] = before


def _kernel(function: Any) -> Any:
    """`function` of plain tensors as a kernel: CHECK_INPUT on every tensor, results on the GPU."""

    def call(*args: Any) -> Any:
        for i, one in enumerate(args):
            if isinstance(one, torch.Tensor) and not isinstance(one, CudaDouble):
                raise RuntimeError(f"argument {i} of {function.__name__} must be a CUDA tensor")
            if isinstance(one, torch.Tensor) and not one.is_contiguous():
                raise RuntimeError(f"argument {i} of {function.__name__} must be contiguous")
        with _disable_current_modes():
            plain = [one.host.detach() if isinstance(one, CudaDouble) else one for one in args]
            found = function(*plain)
            results = found if isinstance(found, tuple) else (found,)
            doubles = tuple(CudaDouble(one.contiguous()) if isinstance(one, torch.Tensor) else one for one in results)
        return doubles if isinstance(found, tuple) else doubles[0]

    return call


def _project(
    means: Any, quats: Any, scales: Any, viewmats: Any, Ks: Any, width: int, height: int, eps2d: float, near: float,
    far: float,
) -> Any:  # fmt: skip
    from gsplat.cuda import _torch_impl

    covars, _ = _torch_impl._quat_scale_to_covar_preci(quats, scales, True, False)
    return _torch_impl._fully_fused_projection(
        means, covars, viewmats, Ks, width, height, eps2d, near, far, calc_compensations=True
    )


def _projection_ewa_3dgs_fused_fwd(
    means: Any, covars: Any, quats: Any, scales: Any, opacities: Any, viewmats: Any, Ks: Any, width: int, height: int,
    eps2d: float, near: float, far: float, radius_clip: float, compensated: bool, model: Any,
) -> Any:  # fmt: skip
    assert covars is None and radius_clip == 0 and model == "pinhole", "splatpipe asks for nothing else"
    _, means2d, depths, conics, share = _project(means, quats, scales, viewmats, Ks, width, height, eps2d, near, far)
    a, b, c = conics.unbind(-1)
    variances = torch.stack([c, a], -1) / (a * c - b * b)[..., None]
    shown = opacities[None] * share if compensated else opacities[None].expand_as(depths)
    extent = torch.sqrt(2 * torch.log(shown / ALPHA)).clamp_max(EXTENT)
    radii = torch.ceil(extent[..., None] * torch.sqrt(variances))
    size = torch.tensor([width, height])
    inside = ((means2d + radii > 0) & (means2d - radii < size)).all(-1)
    seen = inside & (shown >= ALPHA) & (depths >= near) & (depths <= far) & (radii > 0).any(-1)
    radii = torch.where(seen[..., None], radii, 0).to(torch.int32)
    for unwritten in (means2d, depths, conics):
        unwritten[~seen] = NAN
    share[~seen] = 0
    return radii, means2d, depths, conics, share if compensated else torch.empty(0)


def _projection_ewa_3dgs_fused_bwd(
    means: Any, covars: Any, quats: Any, scales: Any, viewmats: Any, Ks: Any, width: int, height: int, eps2d: float,
    model: Any, radii: Any, conics: Any, share: Any, v_means2d: Any, v_depths: Any, v_conics: Any, v_share: Any,
    to_viewmats: bool,
) -> Any:  # fmt: skip
    assert not to_viewmats
    totals = [torch.zeros_like(one) for one in (means, quats, scales)]
    for camera in range(len(viewmats)):
        seen = (radii[camera] > 0).all(-1)
        with torch.enable_grad():
            leaves = [one[seen].clone().requires_grad_(True) for one in (means, quats, scales)]
            one = slice(camera, camera + 1)
            outputs = _project(*leaves, viewmats[one], Ks[one], width, height, eps2d, 0.0, 1e30)[1:]
            given = [v_means2d, v_depths, v_conics, *([] if v_share is None else [v_share])]
            loss = sum((a[0] * v[camera][seen]).sum() for a, v in zip(outputs, given, strict=False))
        for total, gradient in zip(totals, torch.autograd.grad(loss, leaves), strict=True):  # type: ignore[arg-type]
            total[seen] += gradient
    v_means, v_quats, v_scales = totals
    return v_means, None, v_quats, v_scales, None


def _spherical_harmonics_fwd(degree: int, dirs: Any, coeffs: Any, masks: Any) -> Any:
    from gsplat.cuda import _torch_impl

    return torch.where(masks[..., None], _torch_impl._spherical_harmonics(degree, dirs, coeffs), NAN)


def _spherical_harmonics_bwd(
    bases: int, degree: int, dirs: Any, coeffs: Any, masks: Any, v_colors: Any, to_dirs: bool
) -> Any:
    from gsplat.cuda import _torch_impl

    totals = torch.zeros_like(coeffs), torch.zeros_like(dirs)
    with torch.enable_grad():
        leaves = [one[masks].clone().requires_grad_(True) for one in (coeffs, dirs)]
        colors = _torch_impl._spherical_harmonics(degree, leaves[1], leaves[0])
    found = torch.autograd.grad(colors, leaves, v_colors[masks], allow_unused=True)
    for total, gradient in zip(totals, found, strict=True):
        if gradient is not None:
            total[masks] = gradient
    return totals[0], totals[1] if to_dirs else None


def _intersect_tile(
    means2d: Any, radii: Any, depths: Any, image_ids: Any, gaussian_ids: Any, images: int, size: int, across: int,
    down: int, sort: bool, segmented: bool,
) -> Any:  # fmt: skip
    assert image_ids is None and sort and not segmented and means2d.dim() == 3
    seen = (radii > 0).all(-1)
    limits = torch.tensor([across, down])
    centers = torch.where(seen[..., None], means2d, 0) / size
    low = torch.minimum(torch.floor(centers - radii / size).clamp_min(0), limits).long()
    high = torch.minimum(torch.ceil(centers + radii / size).clamp_min(0), limits).long()
    counts = torch.where(seen, (high - low).prod(-1), 0)
    rows = torch.repeat_interleave(counts.flatten())
    first = counts.flatten().cumsum(0) - counts.flatten()
    place = torch.arange(len(rows)) - first[rows]
    low, high = low.reshape(-1, 2)[rows], high.reshape(-1, 2)[rows]
    wide = (high - low)[:, 0]
    tiles = (low[:, 1] + place // wide) * across + low[:, 0] + place % wide
    bits = int(across * down).bit_length()
    image = rows // means2d.shape[1]
    keys = (((image << bits) | tiles) << 32) | depths.flatten()[rows].view(torch.int32).long()
    keys, order = torch.sort(keys, stable=True)
    return counts.to(torch.int32), keys, rows[order].to(torch.int32)


def _intersect_offset(keys: Any, images: int, across: int, down: int) -> Any:
    bits = int(across * down).bit_length()
    tiles = torch.arange(images)[:, None] << bits | torch.arange(across * down)[None]
    return torch.searchsorted(keys >> 32, tiles).to(torch.int32).view(images, down, across)


def _blend(tile: Any, background: Any, left: int, top: int, right: int, bottom: int) -> Any:
    """Pixels (h, w, D) of one tile, and their opacity, from its Gaussians, front to back."""
    means2d, conics, colors, opacities = tile
    y, x = torch.meshgrid(torch.arange(top, bottom) + 0.5, torch.arange(left, right) + 0.5, indexing="ij")
    dx, dy = (means2d - torch.stack([x, y], -1).view(-1, 1, 2)).unbind(-1)
    a, b, c = conics.unbind(-1)
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    alpha = (opacities * torch.exp(-sigma)).clamp_max(0.999)
    alpha = torch.where((sigma >= 0) & (alpha >= ALPHA), alpha, 0)
    alpha = torch.where(torch.cumprod(1 - alpha, 1) > LEAST_LIGHT, alpha, 0)
    light = torch.cumprod(torch.cat([torch.ones(len(dx), 1), 1 - alpha], 1), 1)
    image = (alpha * light[:, :-1]) @ colors
    if background is not None:
        image = image + light[:, -1:] * background
    shape = bottom - top, right - left, -1
    return image.view(shape), (1 - light[:, -1:]).view(shape)


def _images(gaussians: Any, backgrounds: Any, width: int, height: int, size: int, offsets: Any, rows: Any) -> Any:
    """(C, H, W, D) and (C, H, W, 1), tile by tile, of means2d, conics, colors and opacities, each (C, N, ...)."""
    flat = [one.flatten(0, 1) for one in gaussians]
    ends = [*offsets.flatten().tolist()[1:], len(rows)]
    pictures, begin, tile = [], 0, 0
    for image in range(len(offsets)):
        background, lines = None if backgrounds is None else backgrounds[image], []
        for top in range(0, height, size):
            line = []
            for left in range(0, width, size):
                mine = rows[begin : ends[tile]].long()
                begin, tile = ends[tile], tile + 1
                box = left, top, min(left + size, width), min(top + size, height)
                line.append(_blend([one[mine] for one in flat], background, *box))
            lines.append([torch.cat(parts, 1) for parts in zip(*line, strict=True)])
        pictures.append([torch.cat(parts, 0) for parts in zip(*lines, strict=True)])
    colors, alphas = (torch.stack(parts) for parts in zip(*pictures, strict=True))
    return colors, alphas


def _rasterize_to_pixels_3dgs_fwd(
    means2d: Any, conics: Any, colors: Any, opacities: Any, backgrounds: Any, masks: Any, width: int, height: int,
    size: int, offsets: Any, rows: Any,
) -> Any:  # fmt: skip
    assert masks is None
    pictures, alphas = _images([means2d, conics, colors, opacities], backgrounds, width, height, size, offsets, rows)
    return pictures, alphas, torch.zeros(pictures.shape[:3], dtype=torch.int32)


def _rasterize_to_pixels_3dgs_bwd(
    means2d: Any, conics: Any, colors: Any, opacities: Any, backgrounds: Any, masks: Any, width: int, height: int,
    size: int, offsets: Any, rows: Any, alphas: Any, last_ids: Any, v_colors: Any, v_alphas: Any, absolute: bool,
) -> Any:  # fmt: skip
    with torch.enable_grad():
        leaves = [one.clone().requires_grad_(True) for one in (means2d, conics, colors, opacities)]
        pictures, covered = _images(leaves, backgrounds, width, height, size, offsets, rows)
    return (None, *torch.autograd.grad([pictures, covered], leaves, [v_colors, v_alphas]))
