"""The photometric loss of 3D Gaussian splatting: (1 - l) L1 + l (1 - SSIM).

SSIM (Wang et al. 2004) as the fused-ssim package with padding="valid", which gsplat trains with: 11 by 11
Gaussian window of sigma 1.5, C1 = 0.01^2, C2 = 0.03^2, mean over the windows that lie wholly inside. On the
CPU one sweep over the image computes the value and the gradient: filtered rows wait in two rings of 11 that
stay in the cache.
"""

# Numba types the kernels, not mypy.
# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from typing import Any

import numpy as np
import torch

from splatpipe.splatting.images import SSIM_WINDOW
from splatpipe.splatting.raster import pool
from splatpipe.splatting.raster.compile import kernel
from splatpipe.splatting.raster.lanes import larger, load, peek, poke, ramp, select, splat, store, total
from splatpipe.splatting.raster.workspace import GradientBuffers

_SIGMA = 1.5
_C1, _C2 = np.float32(0.01**2), np.float32(0.03**2)
_STRIP = 256  # pixels across; the rings of wider strips would leave the cache

_weights = np.exp(-0.5 * ((np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2) / _SIGMA) ** 2)
_weights /= _weights.sum()
_G0, _G1, _G2, _G3, _G4, _G5 = (np.float32(w) for w in _weights[: SSIM_WINDOW // 2 + 1])


@kernel
def _across(row, out, count, step):
    """out[i] = sum_j g_j row[i + j step], for i below `count`, in eights."""
    for i in range(0, count, 8):
        total8 = _G5 * load(row, i + 5 * step)
        total8 = total8 + _G0 * (load(row, i) + load(row, i + 10 * step))
        total8 = total8 + _G1 * (load(row, i + step) + load(row, i + 9 * step))
        total8 = total8 + _G2 * (load(row, i + 2 * step) + load(row, i + 8 * step))
        total8 = total8 + _G3 * (load(row, i + 3 * step) + load(row, i + 7 * step))
        total8 = total8 + _G4 * (load(row, i + 4 * step) + load(row, i + 6 * step))
        store(out, i, total8)


@kernel
def _ring_places(start, size):
    """Where rows start to start + 10 lie in a ring of 11 rows of `size` floats."""
    return (
        (start % 11) * size, ((start + 1) % 11) * size, ((start + 2) % 11) * size, ((start + 3) % 11) * size,
        ((start + 4) % 11) * size, ((start + 5) % 11) * size, ((start + 6) % 11) * size, ((start + 7) % 11) * size,
        ((start + 8) % 11) * size, ((start + 9) % 11) * size, ((start + 10) % 11) * size,
    )  # fmt: skip


@kernel
def _down(ring, at, i):
    """Eight columns from `i` on, filtered over the ring's rows at places `at`."""
    total8 = _G5 * load(ring, at[5] + i)
    total8 = total8 + _G0 * (load(ring, at[0] + i) + load(ring, at[10] + i))
    total8 = total8 + _G1 * (load(ring, at[1] + i) + load(ring, at[9] + i))
    total8 = total8 + _G2 * (load(ring, at[2] + i) + load(ring, at[8] + i))
    total8 = total8 + _G3 * (load(ring, at[3] + i) + load(ring, at[7] + i))
    return total8 + _G4 * (load(ring, at[4] + i) + load(ring, at[6] + i))


@kernel
def _copy_row(source, source_at, count, target, target_at):
    whole = count // 8 * 8
    for i in range(0, whole, 8):
        store(target, target_at + i, load(source, source_at + i))
    for i in range(whole, count):
        poke(target, target_at + i, peek(source, source_at + i))


@kernel
def _filter_image_row(x, y, at, count, columns, stride, rows, ring, place):
    """Filter one image row of x, y, xx, yy, xy across; quantity q goes to ring[place + q stride :]."""
    padded = rows.size // 5
    _copy_row(x, at, count, rows, 0)
    _copy_row(y, at, count, rows, padded)
    for i in range(0, count, 8):
        a, b = load(rows, i), load(rows, padded + i)
        store(rows, 2 * padded + i, a * a)
        store(rows, 3 * padded + i, b * b)
        store(rows, 4 * padded + i, a * b)
    for q in range(5):
        _across(rows[q * padded : (q + 1) * padded], ring[place + q * stride :], columns, 3)


@kernel
def _map_row(ring, start, stride, columns, own_from, margin, slopes):
    """One row of the SSIM map: returns its sum from `own_from` on and fills `slopes` with its derivatives.

    Slopes: with respect to the filtered x, xx and xy, each `slopes.size // 3` long, behind a zero margin.
    """
    at = _ring_places(start, 5 * stride)
    width = slopes.size // 3
    sum8 = splat(0.0)
    zero = splat(0.0)
    for i in range(0, columns, 8):
        mx, my = _down(ring, at, i), _down(ring, at, i + stride)
        xx, yy, xy = (
            _down(ring, at, i + 2 * stride),
            _down(ring, at, i + 3 * stride),
            _down(ring, at, i + 4 * stride),
        )
        a = 2.0 * mx * my + _C1
        b = 2.0 * (xy - mx * my) + _C2
        c = mx * mx + my * my + _C1
        d = larger(xx - mx * mx + yy - my * my, 0.0) + _C2
        inverse = 1.0 / (c * d)
        value = a * b * inverse
        to_xx = -value * c * inverse
        to_xy = 2.0 * a * inverse
        to_x = 2.0 * my * b * inverse - 2.0 * mx * value * d * inverse - 2.0 * mx * to_xx - my * to_xy
        inside = ramp() < np.float32(columns - i)
        sum8 = sum8 + select(inside & (ramp() >= np.float32(own_from - i)), value, zero)
        store(slopes, margin + i, select(inside, to_x, zero))
        store(slopes, width + margin + i, select(inside, to_xx, zero))
        store(slopes, 2 * width + margin + i, select(inside, to_xy, zero))
    return total(sum8)


@kernel
def _gradient_row(x, y, at, count, rows, ring, start, stride, l1_scale, ssim_scale, gradient):
    """One finished row of the gradient, from both terms; returns the sum of |x - y|."""
    places = _ring_places(start, 3 * stride)
    padded = rows.size // 5
    _copy_row(x, at, count, rows, 0)
    _copy_row(y, at, count, rows, padded)
    store(rows, count, splat(0.0))
    store(rows, padded + count, splat(0.0))
    sum8 = splat(0.0)
    for i in range(0, count, 8):
        a, b = load(rows, i), load(rows, padded + i)
        difference = a - b
        sum8 = sum8 + larger(difference, -difference)
        sign = select(difference > 0.0, splat(1.0), select(difference < 0.0, splat(-1.0), splat(0.0)))
        slope = _down(ring, places, i) + 2.0 * a * _down(ring, places, i + stride)
        slope = slope + b * _down(ring, places, i + 2 * stride)
        store(rows, 2 * padded + i, l1_scale * sign + ssim_scale * slope)
    _copy_row(rows, 2 * padded, count, gradient, at)
    return total(sum8)


@kernel
def _sweep(x, y, width, height, left, right, top, bottom, l1_scale, ssim_scale, gradient, sums_l1, sums_ssim):
    """Gradient of pixels [left, right) x [top, bottom), and their rows' share of both sums.

    A map row m belongs to the image rows m to m + 10; it is counted where its first pixel is ours.
    """
    low, high = max(0, left - 10), min(width, right + 10)  # image columns needed; the map's begin there too
    columns, own = 3 * (high - 10 - low), 3 * (right - left)
    skip = 3 * (left - low)
    stride = (3 * (high - low) + 8 + 15) // 8 * 8
    rows = np.zeros(5 * (stride + 32), np.float32)
    image_ring = np.zeros(11 * 5 * stride, np.float32)
    slopes = np.zeros(3 * (stride + 96), np.float32)
    slope_ring = np.zeros(11 * 3 * stride, np.float32)
    slope_width = slopes.size // 3
    first = max(0, top - 10)
    for row in range(first, min(height, bottom + 10) + 10):
        if row < min(height, bottom + 10):
            at = 3 * (row * width + low)
            _filter_image_row(x, y, at, 3 * (high - low), columns, stride, rows, image_ring, (row % 11) * 5 * stride)
        m = row - 10  # the map row that is complete now, and the gradient row
        if m < first:
            continue
        place = (m % 11) * 3 * stride
        if m < height - 10:
            map_sum = _map_row(image_ring, m, stride, columns, skip, 30, slopes)
            if top <= m < bottom:
                sums_ssim[m] = map_sum
            for q in range(3):
                part = slopes[q * slope_width + skip : (q + 1) * slope_width]
                _across(part, slope_ring[place + q * stride :], own, 3)
        else:
            slope_ring[place : place + 3 * stride] = np.float32(0)
        if top <= m < bottom:
            at = 3 * (m * width + left)
            sums_l1[m] = _gradient_row(x, y, at, own, rows, slope_ring, m - 10, stride, l1_scale, ssim_scale, gradient)


def _parts(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """(left, right, top, bottom) of the pieces that threads take; a multiple of their number."""
    strips = pool.spans(width, -(-width // _STRIP))
    bands = pool.spans(height, -(-pool.threads() // len(strips)))
    return [(*strip, *band) for band in bands for strip in strips]


_gradients = GradientBuffers()


def _value_and_gradient(x: torch.Tensor, y: torch.Tensor, ssim_lambda: float) -> tuple[float, float, torch.Tensor]:
    """L1, SSIM and the gradient of the loss with respect to x, for CPU images of at least 11 by 11 pixels."""
    height, width = x.shape[:2]
    gradient, flat = _gradients.take((height, width, 3), 3 * width)
    windows = (height - SSIM_WINDOW + 1) * (width - SSIM_WINDOW + 1)
    l1_scale, ssim_scale = (1 - ssim_lambda) / x.numel(), -ssim_lambda / (3 * windows)
    flat_x, flat_y = x.detach().numpy().reshape(-1), y.numpy().reshape(-1)
    parts = _parts(width, height)
    sums = np.zeros((2, -(-width // _STRIP), height), np.float64)

    def task(chunk: int) -> None:
        part = parts[chunk]
        strip = chunk % sums.shape[1]
        _sweep(
            flat_x, flat_y, width, height, *part, np.float32(l1_scale), np.float32(ssim_scale), flat,
            sums[0, strip], sums[1, strip],
        )  # fmt: skip

    pool.run(task, len(parts))
    return sums[0].sum() / x.numel(), sums[1].sum() / (3 * windows), gradient


class _Photometric(torch.autograd.Function):
    """The gradient is made together with the value, and scaled in the backward pass."""

    @staticmethod
    def forward(ctx, render, target, ssim_lambda):
        l1, ssim_value, gradient = _value_and_gradient(render, target, ssim_lambda)
        ctx.gradient = gradient
        return torch.tensor((1 - ssim_lambda) * l1 + ssim_lambda * (1 - ssim_value), dtype=torch.float32)

    @staticmethod
    def backward(ctx, v_loss):
        return (ctx.gradient if v_loss.item() == 1 else ctx.gradient * v_loss), None, None


def _check(render: Any, target: Any) -> None:
    for name, image in (("render", render), ("target", target)):
        if not isinstance(image, torch.Tensor) or image.ndim != 3 or image.shape[-1] != 3:
            shape = tuple(image.shape) if isinstance(image, torch.Tensor) else type(image).__name__
            raise ValueError(f"{name} must be a tensor of shape (height, width, 3), not {shape}")
        if image.dtype != torch.float32:
            raise ValueError(f"{name} must be float32, not {image.dtype}")
    if render.shape != target.shape:
        raise ValueError(f"target has shape {tuple(target.shape)}, but render {tuple(render.shape)}")
    if render.device != target.device:
        raise ValueError(f"target is on {target.device}, but render on {render.device}")


def photometric_loss(
    render: torch.Tensor, target: torch.Tensor, ssim_lambda: float, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """(1 - ssim_lambda) L1 + ssim_lambda (1 - SSIM) of two (H, W, 3) float32 images in 0 to 1, a scalar.

    Differentiable with respect to `render`. An image less than 11 pixels wide or high has no SSIM window;
    its loss is L1 alone. Pixels outside `mask` (H, W) bool are taken to be black in both images; the means stay
    those over all pixels, so that a pixel weighs the same in every view. Raises ValueError for other shapes, dtypes
    or devices.
    """
    _check(render, target)
    if mask is not None:
        render, target = render * mask[..., None], target * mask[..., None]
    if min(render.shape[:2]) < SSIM_WINDOW:
        return (render - target).abs().mean()
    if render.device.type == "cpu":
        images = render.contiguous(), target.detach().contiguous()
        return _Photometric.apply(*images, float(ssim_lambda))  # type: ignore[no-untyped-call]
    l1 = (render - target).abs().mean()
    return (1 - ssim_lambda) * l1 + ssim_lambda * (1 - ssim_torch(render, target))


def ssim(render: torch.Tensor, target: torch.Tensor) -> float:
    """SSIM of two (H, W, 3) float32 images, as in `photometric_loss`.

    Raises ValueError for an image less than 11 pixels wide or high, which has no window.
    """
    _check(render, target)
    if min(render.shape[:2]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs at least {SSIM_WINDOW} pixels each way; render has shape {tuple(render.shape)}")
    if render.device.type == "cpu":
        return float(_value_and_gradient(render.contiguous(), target.detach().contiguous(), 1.0)[1])
    return float(ssim_torch(render, target))


def ssim_torch(render: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The same SSIM through torch's convolutions: any device and float type, differentiable, slower."""
    window = torch.tensor(_weights, dtype=render.dtype, device=render.device)
    x, y = (image.permute(2, 0, 1)[:, None] for image in (render, target))
    planes = torch.cat([x, y, x * x, y * y, x * y])
    planes = torch.nn.functional.conv2d(planes, window.view(1, 1, -1, 1))
    mx, my, xx, yy, xy = torch.nn.functional.conv2d(planes, window.view(1, 1, 1, -1)).chunk(5)
    numerator = (2 * mx * my + float(_C1)) * (2 * (xy - mx * my) + float(_C2))
    denominator = (mx**2 + my**2 + float(_C1)) * (xx - mx**2 + yy - my**2 + float(_C2))
    return (numerator / denominator).mean()
