"""Which initial Gaussians each camera would see, and how much of its image they cover, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splatpipe.compiled import compiled
from splatpipe.patches.neighbours import spatial_order

NEAR = 0.01  # training units; trainers cull Gaussians nearer to the camera
SIGMAS = 3.0  # a Gaussian's footprint reaches this many standard deviations
BLUR = 0.3  # px^2 that trainers add to the projected variance
TILE = 16  # pixels; rasterisers sort Gaussians by tiles of this edge
BLOCK = 64  # Gaussians that are tested against an image's borders together


@dataclass(frozen=True, eq=False)
class Footprints:
    """N initial Gaussians seen by C cameras at R rungs of `init_scaling`."""

    visible: NDArray[np.int64]  # (R, C) Gaussians whose footprint touches the image
    tiles: NDArray[np.int64]  # (C,) intersections at the first rung: tiles that the boxes round footprints touch
    unit_area: NDArray[np.float64]  # (C,) sum of pi sigma_px^2 at init_scaling 1 over the image's area, blur left out
    seen_share: NDArray[np.float64]  # (N,) share of the cameras that see each at the first rung


def footprints(
    means: NDArray[np.floating],
    unit_scales: NDArray[np.floating],
    viewmats: NDArray[np.floating],
    Ks: NDArray[np.floating],
    sizes: NDArray[Any],
    rungs: Sequence[float],
    order: NDArray[np.integer] | None = None,
) -> Footprints:
    """All arguments in training coordinates: (N, 3), (N,), (C, 4, 4), (C, 3, 3), (C, 2), R ascending rungs.

    `order` is the `spatial_order` of the means, if that is known already.

    `unit_scales` are the initial sigmas at init_scaling 1. A footprint is mean2d +- 3 sigma_px with
    sigma_px^2 = (f sigma / z)^2 + 0.3 on each axis (trainers.md, A12).
    """
    visible, tiles = np.zeros((len(rungs), len(viewmats)), np.int64), np.zeros(len(viewmats), np.int64)
    seen_by, area = np.zeros(len(means), np.int64), np.zeros(len(viewmats))
    order = spatial_order(means) if order is None else order
    means, unit_scales = means[order].astype(np.float32), unit_scales[order].astype(np.float32)
    compiled(_project, fused=True)(
        means,
        unit_scales,
        *_blocks(means, unit_scales),
        np.ascontiguousarray(viewmats, np.float32),
        np.ascontiguousarray(Ks, np.float32),
        np.ascontiguousarray(sizes, np.float32),
        np.asarray(rungs, np.float32),
        visible,
        tiles,
        area,
        seen_by,
    )
    seen_share = np.empty(len(means))
    seen_share[order] = seen_by / max(len(viewmats), 1)
    return Footprints(visible.cumsum(axis=0), tiles, area, seen_share)


def _blocks(means: NDArray[np.float32], unit_scales: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
    """Centre (B, 3), radius (B,) and largest sigma (B,) of every `BLOCK` Gaussians in a row."""
    starts = np.arange(0, len(means), BLOCK)
    low, high = np.minimum.reduceat(means, starts), np.maximum.reduceat(means, starts)
    centers, radii = (low + high) / 2, np.linalg.norm(high - low, axis=1) / 2
    return (
        centers.astype(np.float32),
        (radii * 1.0001 + 1e-6).astype(np.float32),
        np.maximum.reduceat(unit_scales, starts),
    )


def _project(  # type: ignore[no-untyped-def]
    means, unit_scales, centers, radii, largest, viewmats, Ks, sizes, rungs, visible, tiles, area, seen_by
):
    """Compiled. Blocks of Gaussians wholly beside the image or behind the camera are passed over.

    `visible` counts each Gaussian once, at the first rung that shows it.
    """
    near, blur, sigmas = np.float32(NEAR), np.float32(BLUR), np.float32(SIGMAS)
    zero, one, tile = np.float32(0), np.float32(1), np.float32(TILE)
    blurred = sigmas * np.sqrt(blur) + one  # pixels that the blur adds to any footprint, and one for rounding
    last = rungs[-1]
    for c in range(len(viewmats)):
        view = viewmats[c]
        fx, fy, cx, cy = Ks[c, 0, 0], Ks[c, 1, 1], Ks[c, 0, 2], Ks[c, 1, 2]
        width, height = sizes[c, 0], sizes[c, 1]
        left, right, top, bottom = cx + blurred, width - cx + blurred, cy + blurred, height - cy + blurred
        total = 0.0
        for block in range(len(centers)):
            x, y, z, radius = centers[block, 0], centers[block, 1], centers[block, 2], radii[block]
            depth = view[2, 0] * x + view[2, 1] * y + view[2, 2] * z + view[2, 3]
            if depth + radius < near:
                continue
            across = (view[0, 0] * x + view[0, 1] * y + view[0, 2] * z + view[0, 3]) * fx
            along = (view[1, 0] * x + view[1, 1] * y + view[1, 2] * z + view[1, 3]) * fy
            reach_x, reach_y = sigmas * fx * last * largest[block], sigmas * fy * last * largest[block]
            # signed distances to the image's four planes, each widened by the block's radius and footprints
            if across + left * depth + radius * np.sqrt(fx * fx + left * left) + reach_x < zero:
                continue
            if right * depth - across + radius * np.sqrt(fx * fx + right * right) + reach_x < zero:
                continue
            if along + top * depth + radius * np.sqrt(fy * fy + top * top) + reach_y < zero:
                continue
            if bottom * depth - along + radius * np.sqrt(fy * fy + bottom * bottom) + reach_y < zero:
                continue
            for i in range(block * BLOCK, min((block + 1) * BLOCK, len(means))):
                x, y, z = means[i, 0], means[i, 1], means[i, 2]
                depth = view[2, 0] * x + view[2, 1] * y + view[2, 2] * z + view[2, 3]
                if not depth > near:
                    continue
                shrink = one / depth
                u = (view[0, 0] * x + view[0, 1] * y + view[0, 2] * z + view[0, 3]) * shrink * fx + cx
                v = (view[1, 0] * x + view[1, 1] * y + view[1, 2] * z + view[1, 3]) * shrink * fy + cy
                unit_x, unit_y = fx * unit_scales[i] * shrink, fy * unit_scales[i] * shrink
                out_x, out_y = max(max(-u, u - width), zero) / sigmas, max(max(-v, v - height), zero) / sigmas
                if out_x * out_x > (last * unit_x) ** 2 + blur or out_y * out_y > (last * unit_y) ** 2 + blur:
                    continue
                if out_x == zero and out_y == zero:
                    total += min(np.pi * unit_x * unit_y, width * height)
                first = 0
                while out_x * out_x > (rungs[first] * unit_x) ** 2 + blur:
                    first += 1
                while out_y * out_y > (rungs[first] * unit_y) ** 2 + blur:
                    first += 1
                visible[first, c] += 1
                if first > 0:
                    continue
                seen_by[i] += 1
                reach_x = sigmas * np.sqrt((rungs[0] * unit_x) ** 2 + blur)
                reach_y = sigmas * np.sqrt((rungs[0] * unit_y) ** 2 + blur)
                # whole tiles by truncation; a footprint that only touches the image still counts one tile
                x0, x1 = int(max(u - reach_x, zero) / tile), int(min(u + reach_x, width - one) / tile)
                y0, y1 = int(max(v - reach_y, zero) / tile), int(min(v + reach_y, height - one) / tile)
                tiles[c] += max(x1 - x0 + 1, 1) * max(y1 - y0 + 1, 1)
        area[c] = total / (width * height)
