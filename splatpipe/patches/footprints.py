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
    seen_by, area = np.zeros(len(means), np.int32), np.zeros(len(viewmats))
    order = spatial_order(means) if order is None else order
    means, unit_scales = means[order].astype(np.float32), unit_scales[order].astype(np.float32)
    compiled(_project, fused=True)(
        np.ascontiguousarray(means.T),
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
    return Footprints(visible, tiles, area, seen_share)


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

    The loops over the Gaussians of a block have no branches, so that a processor takes eight of them at once.
    """
    near, blur, sigmas = np.float32(NEAR), np.float32(BLUR), np.float32(SIGMAS)
    zero, one, tile = np.float32(0), np.float32(1), np.float32(TILE)
    blurred = sigmas * np.sqrt(blur) + one  # pixels that the blur adds to any footprint, and one for rounding
    last = rungs[-1]
    out_x, out_y = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)  # beyond the image's edge, squared sigmas
    unit_x, unit_y = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)  # sigma_px at init_scaling 1, no blur
    pixels_x, pixels_y = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    covered, touched = np.empty(BLOCK, np.float64), np.empty(BLOCK, np.int32)
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
            first, end = block * BLOCK, min((block + 1) * BLOCK, len(unit_scales))
            xs, ys, zs = means[0, first:end], means[1, first:end], means[2, first:end]
            units, seen = unit_scales[first:end], seen_by[first:end]
            for i in range(end - first):
                x, y, z = xs[i], ys[i], zs[i]
                depth = view[2, 0] * x + view[2, 1] * y + view[2, 2] * z + view[2, 3]
                ahead = depth > near
                shrink = one / depth
                u = (view[0, 0] * x + view[0, 1] * y + view[0, 2] * z + view[0, 3]) * shrink * fx + cx
                v = (view[1, 0] * x + view[1, 1] * y + view[1, 2] * z + view[1, 3]) * shrink * fy + cy
                beside, above = max(max(-u, u - width), zero) / sigmas, max(max(-v, v - height), zero) / sigmas
                pixels_x[i], pixels_y[i] = u, v
                unit_x[i], unit_y[i] = fx * units[i] * shrink, fy * units[i] * shrink
                out_x[i] = beside * beside if ahead else np.float32(np.inf)
                out_y[i] = above * above
            for i in range(end - first):
                inside = max(out_x[i], out_y[i]) == zero
                covered[i] = min(np.pi * unit_x[i] * unit_y[i], width * height) if inside else 0.0
            for i in range(end - first):
                total += covered[i]
            for r in range(len(rungs)):
                for i in range(end - first):
                    wide, high = rungs[r] * unit_x[i], rungs[r] * unit_y[i]
                    touched[i] = (out_x[i] <= wide * wide + blur) & (out_y[i] <= high * high + blur)
                for i in range(end - first):
                    visible[r, c] += touched[i]
            for i in range(end - first):
                wide, high = rungs[0] * unit_x[i], rungs[0] * unit_y[i]
                shown = (out_x[i] <= wide * wide + blur) & (out_y[i] <= high * high + blur)
                seen[i] += shown
                reach_x, reach_y = sigmas * np.sqrt(wide * wide + blur), sigmas * np.sqrt(high * high + blur)
                # whole tiles; a footprint that only touches the image still counts one tile
                x0 = np.floor(max(pixels_x[i] - reach_x, zero) / tile)
                x1 = np.floor(min(pixels_x[i] + reach_x, width - one) / tile)
                y0 = np.floor(max(pixels_y[i] - reach_y, zero) / tile)
                y1 = np.floor(min(pixels_y[i] + reach_y, height - one) / tile)
                touches = max(x1 - x0 + one, one) * max(y1 - y0 + one, one)
                touched[i] = np.int32(touches if shown else zero)
            for i in range(end - first):
                tiles[c] += touched[i]
        area[c] = total / (width * height)
