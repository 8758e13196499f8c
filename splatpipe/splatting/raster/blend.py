"""Blending of a tile's Gaussians, and its derivative, one row of eight pixels at a time.

A pixel takes alpha = min(0.999, opacity exp(-sigma)) of each Gaussian from front to back, ignores
alpha < 1/255, and stops before the Gaussian that would bring its transmittance to 1e-4 or less: all as
gsplat 1.5.3 `RasterizeToPixels3DGS`.

State is kept tile by tile, 128 pixels each: `transmittance` (negative: the pixel has stopped) and
`ends` (how many of the tile's Gaussians the pixel has looked at when it stopped).
"""

# Numba types the kernels, not mypy.
# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np

from splatpipe.splatting.raster.compile import kernel
from splatpipe.splatting.raster.lanes import (
    any_lane,
    exp2,
    larger,
    load,
    peek,
    prefetch,
    ramp,
    select,
    smaller,
    splat,
    store,
    sums,
    total,
)
from splatpipe.splatting.raster.projection import RECORD
from splatpipe.splatting.raster.projection_backward import SLOT
from splatpipe.splatting.raster.tiles import ITEM, TILE_HEIGHT, TILE_WIDTH

PIXELS = TILE_WIDTH * TILE_HEIGHT
_MAX_ALPHA = np.float32(0.999)
_THRESHOLD = np.float32(1 / 255)
_STOP = np.float32(1e-4)
AHEAD = 8  # Gaussians between asking for a record and using it; `items` is that much longer
_CHECK = 8  # Gaussians between two looks at whether the whole tile has stopped
_ZERO = np.float32(0)
_HALF = np.float32(0.5)


@kernel
def _falloff(dx, adx, bdy, cdyy):
    """Minus sigma in powers of two: -(a dx^2 + b dx dy + c dy^2)."""
    return -(dx * (adx + bdy) + cdyy)


@kernel
def _all_stopped(transmittance, at):
    alive = load(transmittance, at)
    for row in range(1, TILE_HEIGHT):
        alive = larger(alive, load(transmittance, at + row * TILE_WIDTH))
    return not any_lane(alive > 0.0)


@kernel
def _write_pixels(tile_x, tile_y, width, height, rgb, transmittance, at, background, image, alphas):
    """Copy a tile's pixels into the image, over the background."""
    x0, y0 = tile_x * TILE_WIDTH, tile_y * TILE_HEIGHT
    for y in range(min(TILE_HEIGHT, height - y0)):
        for x in range(min(TILE_WIDTH, width - x0)):
            t = abs(transmittance[at + y * TILE_WIDTH + x])
            pixel = (y0 + y) * width + x0 + x
            lane = y * TILE_WIDTH + x
            image[3 * pixel] = rgb[lane] + t * background[0]
            image[3 * pixel + 1] = rgb[PIXELS + lane] + t * background[1]
            image[3 * pixel + 2] = rgb[2 * PIXELS + lane] + t * background[2]
            alphas[pixel] = np.float32(1) - t


@kernel
def blend(start, stop, width, height, records, offsets, items, transmittance, ends, background, image, alphas):
    """Render tiles start to stop - 1 into `image` (H * W * 3) and `alphas` (H * W)."""
    across = (width + TILE_WIDTH - 1) // TILE_WIDTH
    rgb = np.empty(3 * PIXELS, np.float32)
    for tile in range(start, stop):
        at = tile * PIXELS
        rgb[:] = _ZERO
        transmittance[at : at + PIXELS] = np.float32(1)
        ends[at : at + PIXELS] = _ZERO
        tile_x, tile_y = tile % across, tile // across
        px = ramp() + (np.float32(tile_x * TILE_WIDTH) + _HALF)
        py = np.float32(tile_y * TILE_HEIGHT) + _HALF
        begin = offsets[tile]
        for i in range(begin, offsets[tile + 1]):
            if (i - begin) % _CHECK == 0 and _all_stopped(transmittance, at):
                break
            prefetch(records, RECORD * np.int64(items[ITEM * (i + AHEAD)]))
            record = RECORD * np.int64(items[ITEM * i])
            dx = px - peek(records, record)
            dy = py - peek(records, record + 1)
            adx = dx * peek(records, record + 2)
            b, c = peek(records, record + 3), peek(records, record + 4)
            opacity = splat(peek(records, record + 5))
            r, g = splat(peek(records, record + 6)), splat(peek(records, record + 7))
            blue = splat(peek(records, record + 8))
            number = splat(np.float32(i - begin + 1))
            for row in range(items[ITEM * i + 2], items[ITEM * i + 3]):
                y = dy + np.float32(row)
                power = _falloff(dx, adx, b * y, c * y * y)
                alpha = opacity * exp2(power)
                alpha = select((alpha >= _THRESHOLD) & (power <= 0.0), smaller(alpha, _MAX_ALPHA), splat(0.0))
                lane = row * TILE_WIDTH
                t = load(transmittance, at + lane)
                after = t * (1.0 - alpha)
                go = after > _STOP
                weight = select(go, alpha * t, splat(0.0))
                store(rgb, lane, load(rgb, lane) + weight * r)
                store(rgb, lane + PIXELS, load(rgb, lane + PIXELS) + weight * g)
                store(rgb, lane + 2 * PIXELS, load(rgb, lane + 2 * PIXELS) + weight * blue)
                store(transmittance, at + lane, select(go, after, smaller(t, -t)))
                # numbers grow, so the maximum is a choice; LLVM makes a slow masked store of a select
                store(ends, at + lane, larger(select(go, number, splat(0.0)), load(ends, at + lane)))
        _write_pixels(tile_x, tile_y, width, height, rgb, transmittance, at, background, image, alphas)


@kernel
def _read_pixels(tile_x, tile_y, width, height, transmittance, at, background, v_image, v_alphas, state):
    """Fill a tile's backward state from the image gradients: transmittance, rest, and dL/d(r, g, b)."""
    x0, y0 = tile_x * TILE_WIDTH, tile_y * TILE_HEIGHT
    state[:] = _ZERO
    for y in range(min(TILE_HEIGHT, height - y0)):
        for x in range(min(TILE_WIDTH, width - x0)):
            lane = y * TILE_WIDTH + x
            t = abs(transmittance[at + lane])
            pixel = (y0 + y) * width + x0 + x
            vr, vg, vb = v_image[3 * pixel], v_image[3 * pixel + 1], v_image[3 * pixel + 2]
            behind = vr * background[0] + vg * background[1] + vb * background[2] - v_alphas[pixel]
            state[lane] = t
            state[PIXELS + lane] = t * behind
            state[2 * PIXELS + lane] = vr
            state[3 * PIXELS + lane] = vg
            state[4 * PIXELS + lane] = vb


@kernel
def _furthest(ends, at):
    """How many Gaussians of the tile any pixel looked at."""
    most = _ZERO
    for pixel in range(at, at + PIXELS):
        most = max(most, ends[pixel])
    return np.int64(most)


@kernel
def blend_backward(
    start, stop, width, height, records, offsets, items, transmittance, ends, background, v_image, v_alphas, slots
):
    """Gradients of every intersection of tiles start to stop - 1, from those of the image.

    Goes back to front, so that the transmittance before a Gaussian is the one behind it over 1 - alpha.
    Slot: sums over the pixels of w = alpha dL/dalpha times 1, dx, dy, dx^2, dx dy, dy^2 (d = pixel - centre),
    and of alpha T dL/d(r, g, b).
    """
    across = (width + TILE_WIDTH - 1) // TILE_WIDTH
    state = np.empty(5 * PIXELS, np.float32)
    for tile in range(start, stop):
        at = tile * PIXELS
        begin = offsets[tile]
        end = begin + _furthest(ends, at)
        for i in range(end, offsets[tile + 1]):
            slot = SLOT * np.int64(items[ITEM * i + 1])
            store(slots, slot, splat(0.0))
            slots[slot + 8] = _ZERO
        if begin == end:
            continue
        tile_x, tile_y = tile % across, tile // across
        _read_pixels(tile_x, tile_y, width, height, transmittance, at, background, v_image, v_alphas, state)
        px = ramp() + (np.float32(tile_x * TILE_WIDTH) + _HALF)
        py = np.float32(tile_y * TILE_HEIGHT) + _HALF
        for i in range(end - 1, begin - 1, -1):
            ahead = max(i - AHEAD, begin)
            prefetch(records, RECORD * np.int64(items[ITEM * ahead]))
            prefetch(slots, SLOT * np.int64(items[ITEM * ahead + 1]))
            record = RECORD * np.int64(items[ITEM * i])
            dx = px - peek(records, record)
            dy = py - peek(records, record + 1)
            adx = dx * peek(records, record + 2)
            b, c = peek(records, record + 3), peek(records, record + 4)
            opacity = splat(peek(records, record + 5))
            r, g = splat(peek(records, record + 6)), splat(peek(records, record + 7))
            blue = splat(peek(records, record + 8))
            number = splat(np.float32(i - begin))
            w1, wx, wy, wxx, wxy, wyy = splat(0.0), splat(0.0), splat(0.0), splat(0.0), splat(0.0), splat(0.0)
            sum_r, sum_g, sum_b = splat(0.0), splat(0.0), splat(0.0)
            for row in range(items[ITEM * i + 2], items[ITEM * i + 3]):
                y = dy + np.float32(row)
                power = _falloff(dx, adx, b * y, c * y * y)
                raw = opacity * exp2(power)
                lane = row * TILE_WIDTH
                use = (raw >= _THRESHOLD) & (power <= 0.0) & (load(ends, at + lane) > number)
                if not any_lane(use):
                    continue
                alpha = select(use, smaller(raw, _MAX_ALPHA), splat(0.0))
                over = 1.0 / (1.0 - alpha)
                t = load(state, lane) * over
                store(state, lane, t)
                vr, vg, vb = (
                    load(state, lane + 2 * PIXELS),
                    load(state, lane + 3 * PIXELS),
                    load(state, lane + 4 * PIXELS),
                )
                weight = alpha * t
                sum_r = sum_r + weight * vr
                sum_g = sum_g + weight * vg
                sum_b = sum_b + weight * vb
                colour = r * vr + g * vg + blue * vb
                behind = load(state, lane + PIXELS)
                v_alpha = t * colour - over * behind
                store(state, lane + PIXELS, behind + weight * colour)
                w = select(raw <= _MAX_ALPHA, alpha * v_alpha, splat(0.0))
                w1 = w1 + w
                wy = wy + w * y
                wyy = wyy + w * (y * y)
                w_dx = w * dx
                wx = wx + w_dx
                wxx = wxx + w_dx * dx
                wxy = wxy + w_dx * y
            slot = SLOT * np.int64(items[ITEM * i + 1])
            store(slots, slot, sums(w1, wx, wy, wxx, wxy, wyy, sum_r, sum_g))
            slots[slot + 8] = total(sum_b)
