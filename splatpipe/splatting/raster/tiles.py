"""Which tiles a Gaussian touches, and every tile's Gaussians from front to back.

A tile is 8 pixels wide (one `Lanes`) and 16 high. An intersection records the tile and the tile's pixel
rows whose centres the Gaussian can reach with alpha >= 1/255, computed exactly, not from a bounding box.
"""

# Numba types the kernels, not mypy.
# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math

import numpy as np

from splatpipe.splatting.raster.compile import kernel

TILE_WIDTH = 8
TILE_HEIGHT = 16
ENTRY = 2  # int32 per intersection, in Gaussian order: tile, first row | end row << 8
ITEM = 4  # int32 per intersection, in tile order: Gaussian, slot, first row, end row

_PAD = np.float32(2e-3)  # pixels; far above float32 rounding at any sensible image size
_HALF = np.float32(0.5)
_ZERO = np.float32(0)


def tile_grid(width: int, height: int) -> tuple[int, int]:
    """Tiles across and down."""
    return -(-width // TILE_WIDTH), -(-height // TILE_HEIGHT)


@kernel
def _first(edge, low):
    """The first pixel, not below `low`, whose centre is not before `edge`."""
    return max(np.ceil(edge - _HALF - _PAD), low)


@kernel
def _last(edge, high):
    """The last pixel, not above `high`, whose centre is not behind `edge`."""
    return min(np.floor(edge - _HALF + _PAD), high)


@kernel
def _write(entries, slot, limit, tile, first_row, end_row):
    if slot < limit:
        entries[ENTRY * slot] = tile
        entries[ENTRY * slot + 1] = first_row | (end_row << 8)
    return slot + 1


@kernel
def cover(u, v, cov, conic, reach, width, height, entries, slot, limit):
    """Write the intersections of the ellipse d^T Q d <= reach around (u, v) from `slot` on; return the end.

    `cov` is (a, b, c), `conic` its inverse (A, B, C). Beyond `limit` only counts.
    """
    a, b, c = cov
    A, C = conic[0], conic[2]
    ex, ey = math.sqrt(reach * a), math.sqrt(reach * c)
    y_low, y_high = _first(v - ey, _ZERO), _last(v + ey, np.float32(height - 1))
    x_low, x_high = _first(u - ex, _ZERO), _last(u + ex, np.float32(width - 1))
    if not (y_low <= y_high and x_low <= x_high):
        return slot
    across = (width + TILE_WIDTH - 1) // TILE_WIDTH
    row0, row1 = np.int64(y_low) // TILE_HEIGHT, np.int64(y_high) // TILE_HEIGHT
    column0, column1 = np.int64(x_low) // TILE_WIDTH, np.int64(x_high) // TILE_WIDTH
    inv_a, inv_c = np.float32(1) / a, np.float32(1) / c
    right_at, top_at = ex * b * inv_a, ey * b * inv_c  # y of the rightmost point, x of the highest
    for row in range(row0, row1 + 1):
        base = np.float32(row * TILE_HEIGHT)
        r0, r1 = max(y_low, base), min(y_high, base + np.float32(TILE_HEIGHT - 1))
        c0, c1, k0, k1 = x_low, x_high, column0, column1
        if row0 != row1 and column0 != column1:
            # the widest chord in this band of rows: the ellipse is convex, so clamp its extreme points
            low, high = r0 + _HALF - v, r1 + _HALF - v
            d = min(max(right_at, low), high)
            right = b * inv_c * d + math.sqrt(max(_ZERO, (reach - d * d * inv_c) / A))
            d = min(max(-right_at, low), high)
            left = b * inv_c * d - math.sqrt(max(_ZERO, (reach - d * d * inv_c) / A))
            c0, c1 = _first(u + left, x_low), _last(u + right, x_high)
            k0, k1 = np.int64(c0) // TILE_WIDTH, np.int64(c1) // TILE_WIDTH
        for column in range(k0, k1 + 1):
            s0, s1 = r0, r1
            if column0 != column1:
                start = np.float32(column * TILE_WIDTH)
                low = max(c0, start) + _HALF - u
                high = min(c1, start + np.float32(TILE_WIDTH - 1)) + _HALF - u
                d = min(max(top_at, low), high)
                s1 = _last(v + b * inv_a * d + math.sqrt(max(_ZERO, (reach - d * d * inv_a) / C)), r1)
                d = min(max(-top_at, low), high)
                s0 = _first(v + b * inv_a * d - math.sqrt(max(_ZERO, (reach - d * d * inv_a) / C)), r0)
            if s0 <= s1:
                tile = row * across + column
                slot = _write(entries, slot, limit, tile, np.int64(s0 - base), np.int64(s1 - base) + 1)
    return slot


@kernel
def sort_by_depth(depths, slot_count, keys, spare):
    """Fill `keys` with depth bits << 32 | Gaussian for all with intersections, nearest first; return how many.

    Least-significant-digit radix sort, 3 passes of 11 bits over the bits of a positive float32; stable, so
    equal depths stay in the order of the Gaussians.
    """
    counts = np.zeros((3, 2048), np.int64)
    bits = depths.view(np.uint32)
    n = 0
    for g in range(depths.size):
        if slot_count[g] > 0:
            key = np.int64(bits[g])
            counts[0, key & 2047] += 1
            counts[1, (key >> 11) & 2047] += 1
            counts[2, key >> 22] += 1
            spare[n] = (key << 32) | g
            n += 1
    source, target = spare, keys
    for digit in range(3):
        position = 0
        for value in range(2048):
            count = counts[digit, value]
            counts[digit, value] = position
            position += count
        shift = 32 + 11 * digit
        for i in range(n):
            value = (source[i] >> shift) & 2047
            target[counts[digit, value]] = source[i]
            counts[digit, value] += 1
        source, target = target, source
    return n


@kernel
def count_tiles(keys, start, stop, slot_first, slot_count, entries, counts):
    """Add to `counts` the intersections of each tile with the Gaussians keys[start:stop]."""
    for i in range(start, stop):
        g = keys[i] & 0xFFFFFFFF
        first = slot_first[g]
        for slot in range(first, first + slot_count[g]):
            counts[entries[ENTRY * slot]] += 1


@kernel
def place_tiles(counts, chunks, tiles, offsets):
    """Turn each chunk's counts into its write positions; `offsets` gets the range of every tile."""
    position = 0
    for tile in range(tiles):
        offsets[tile] = position
        for chunk in range(chunks):
            count = counts[chunk * tiles + tile]
            counts[chunk * tiles + tile] = position
            position += count
    offsets[tiles] = position
    return position


@kernel
def fill_tiles(keys, start, stop, slot_first, slot_count, entries, positions, items):
    """Append the intersections of keys[start:stop] to their tiles' lists, in depth order."""
    for i in range(start, stop):
        g = keys[i] & 0xFFFFFFFF
        first = slot_first[g]
        for slot in range(first, first + slot_count[g]):
            tile, rows = entries[ENTRY * slot], entries[ENTRY * slot + 1]
            item = ITEM * positions[tile]
            positions[tile] += 1
            items[item] = g
            items[item + 1] = slot
            items[item + 2] = rows & 255
            items[item + 3] = rows >> 8
