"""From Gaussians to the records that tiles read, for a range of Gaussians, eight at a time.

The camera is `camera.pack_camera`'s vector. Colours come as `base` (N rows of `base_stride` floats) and
`rest` (rows of `rest_stride`, from `rest_offset` on); degree -1 means that `base` is the colour itself.
"""

# Numba types the kernels, not mypy.
# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math

import numpy as np

from splatpipe.splatting.raster.compile import kernel
from splatpipe.splatting.raster.geometry import (
    LOG2E,
    covariance,
    image_axes,
    in_camera,
    rotation_of,
    to_camera,
    unit,
)
from splatpipe.splatting.raster.harmonics import SH0, store_basis
from splatpipe.splatting.raster.lanes import (
    any_lane,
    gather,
    mask_bits,
    peek,
    poke,
    prefetch,
    square_root,
    store,
)
from splatpipe.splatting.raster.tiles import cover

# One record per Gaussian, a cache line: u, v, conic * log2(e) (half A, B, half C), opacity, r, g, b
RECORD = 16
_LARGEST = np.float32(1e9)  # pixels; a centre beyond cannot be told from infinity in float32
_THRESHOLD = np.float32(1 / 255)
_GSPLAT_REACH = np.float32(3.33**2)  # squared, in sigmas
_HALF = np.float32(0.5)
_ZERO = np.float32(0)


@kernel
def gather3(array, first, last):
    """Three columns of eight rows of an (N, 3) array."""
    return gather(array, first, last, 3, 0), gather(array, first, last, 3, 1), gather(array, first, last, 3, 2)


@kernel
def gather_unit(quats, first, last):
    """Eight quaternions divided by their length, and one over the length (infinite for zero)."""
    w, x = gather(quats, first, last, 4, 0), gather(quats, first, last, 4, 1)
    y, z = gather(quats, first, last, 4, 2), gather(quats, first, last, 4, 3)
    inverse = 1.0 / square_root(w * w + x * x + y * y + z * z)
    return w * inverse, x * inverse, y * inverse, z * inverse, inverse


@kernel
def scaled(r, s):
    """Columns of a 3 by 3 matrix times three scales."""
    return (
        r[0] * s[0], r[1] * s[1], r[2] * s[2],
        r[3] * s[0], r[4] * s[1], r[5] * s[2],
        r[6] * s[0], r[7] * s[1], r[8] * s[2],
    )  # fmt: skip


@kernel
def _colour(degree, base, base_at, rest, rest_at, basis, lane):
    """Colour of one Gaussian, not yet clamped: three float32."""
    if degree < 0:
        return peek(base, base_at), peek(base, base_at + 1), peek(base, base_at + 2)
    r, g, b = SH0 * peek(base, base_at), SH0 * peek(base, base_at + 1), SH0 * peek(base, base_at + 2)
    for k in range((degree + 1) * (degree + 1) - 1):
        weight = peek(basis, 8 * k + lane)
        r += weight * peek(rest, rest_at + 3 * k)
        g += weight * peek(rest, rest_at + 3 * k + 1)
        b += weight * peek(rest, rest_at + 3 * k + 2)
    return r + _HALF, g + _HALF, b + _HALF


@kernel
def prefetch_row(array, at, floats):
    """Ask for `floats` floats from `at` on."""
    for i in range(at, at + floats + 15, 16):
        prefetch(array, i)


@kernel
def _project_eight(first, last, means, quats, scales, opacities, degree, cam, lanes, basis):
    """Store what eight Gaussians look like in `lanes`, and their SH bases; return who is in front, as bits.

    lanes, eight each: u, v, a, b, c, A, B, C, opacity, depth.
    """
    mx, my, mz = gather3(means, first, last)
    x, y, z = to_camera(cam, mx, my, mz)
    seen = (z >= cam[23]) & (z <= cam[24])
    if not any_lane(seen):
        return 0
    qw, qx, qy, qz, inverse = gather_unit(quats, first, last)
    r = in_camera(cam, rotation_of(qw, qx, qy, qz))
    p, q, rz, _, _ = image_axes(cam, x, y, z, scaled(r, gather3(scales, first, last)))
    a, b, c, det, sharp = covariance(cam, p, q)
    u, v = cam[12] * x * rz + cam[14], cam[13] * y * rz + cam[15]
    opacity = gather(opacities, first, last, 1, 0)
    if cam[26] > 0:
        opacity = opacity * square_root(sharp / det)
    inverse = 1.0 / det
    # comparisons with NaN are false, so whatever is not finite ends here
    seen = seen & (det > 0.0) & (a < 1e18) & (c < 1e18) & (inverse < 1e30)
    seen = seen & (opacity >= _THRESHOLD) & (opacity < _LARGEST)
    seen = seen & (u > -_LARGEST) & (u < _LARGEST) & (v > -_LARGEST) & (v < _LARGEST)
    store(lanes, 0, u)
    store(lanes, 8, v)
    store(lanes, 16, a)
    store(lanes, 24, b)
    store(lanes, 32, c)
    store(lanes, 40, c * inverse)
    store(lanes, 48, -b * inverse)
    store(lanes, 56, a * inverse)
    store(lanes, 64, opacity)
    store(lanes, 72, z)
    if degree > 0:
        dx, dy, dz, inverse = unit(mx - cam[20], my - cam[21], mz - cam[22])
        store_basis(degree, dx, dy, dz, basis)
    return mask_bits(seen)


@kernel
def _radii(u, v, a, c, opacity, width, height):
    """gsplat's radii in pixels, (0, 0) where it would drop the Gaussian; and the squared reach in sigmas."""
    reach = np.float32(2) * math.log(np.float32(255) * opacity)
    extend = math.sqrt(min(max(reach, _ZERO), _GSPLAT_REACH))
    rx, ry = np.ceil(extend * math.sqrt(a)), np.ceil(extend * math.sqrt(c))
    if not (rx > 0 or ry > 0) or u + rx <= 0 or u - rx >= width or v + ry <= 0 or v - ry >= height:
        rx, ry = _ZERO, _ZERO
    return min(rx, _LARGEST), min(ry, _LARGEST), reach


@kernel
def _write_record(records, g, u, v, conic, opacity, red, green, blue):
    record = RECORD * g
    poke(records, record, u)
    poke(records, record + 1, v)
    poke(records, record + 2, _HALF * LOG2E * conic[0])
    poke(records, record + 3, LOG2E * conic[1])
    poke(records, record + 4, _HALF * LOG2E * conic[2])
    poke(records, record + 5, opacity)
    poke(records, record + 6, red)
    poke(records, record + 7, green)
    poke(records, record + 8, blue)


@kernel
def project(
    start, stop, means, quats, scales, opacities, degree, base, base_stride, rest, rest_stride, rest_offset,
    cam, width, height, records, slot_first, slot_count, entries, slot, limit, radii, means2d, depths,
):  # fmt: skip
    """Records, intersections (from `slot` on, written below `limit`), radii, 2D means and depths of a range.

    Returns the end of the intersections; when that is beyond `limit`, some were counted but not written.
    """
    last = means.size // 3 - 1
    lanes = np.empty(10 * 8, np.float32)
    basis = np.empty(15 * 8, np.float32)
    bands = max(0, (degree + 1) * (degree + 1) - 1)
    for first in range(start, stop, 8):
        bits = _project_eight(first, last, means, quats, scales, opacities, degree, cam, lanes, basis)
        for lane in range(8):  # the rows of those seen lie scattered in memory: ask for all before using one
            if (bits >> lane) & 1:
                g = first + lane
                prefetch(records, RECORD * g)
                prefetch(base, g * base_stride)
                prefetch_row(rest, g * rest_stride + rest_offset, 3 * bands)
        for lane in range(min(8, stop - first)):
            g = first + lane
            slot_first[g] = slot
            slot_count[g] = 0
            radii[2 * g] = 0
            radii[2 * g + 1] = 0
            means2d[2 * g] = _ZERO
            means2d[2 * g + 1] = _ZERO
            depths[g] = _ZERO
            if not (bits >> lane) & 1:
                continue
            u, v, opacity = lanes[lane], lanes[8 + lane], lanes[64 + lane]
            cov = lanes[16 + lane], lanes[24 + lane], lanes[32 + lane]
            conic = lanes[40 + lane], lanes[48 + lane], lanes[56 + lane]
            rx, ry, reach = _radii(u, v, cov[0], cov[2], opacity, width, height)
            if not (rx > 0 or ry > 0):
                continue
            red, green, blue = _colour(degree, base, g * base_stride, rest, g * rest_stride + rest_offset, basis, lane)
            if not abs(red) + abs(green) + abs(blue) < _LARGEST:
                continue
            if degree >= 0:
                red, green, blue = max(red, _ZERO), max(green, _ZERO), max(blue, _ZERO)
            radii[2 * g], radii[2 * g + 1] = np.int32(rx), np.int32(ry)
            means2d[2 * g], means2d[2 * g + 1], depths[g] = u, v, lanes[72 + lane]
            reach = reach * np.float32(1.0001) + np.float32(1e-4)  # so that rounding hides no pixel
            end = cover(u, v, cov, conic, reach, width, height, entries, slot, limit)
            slot_count[g] = end - slot
            slot = end
            _write_record(records, g, u, v, conic, opacity, red, green, blue)
    return slot
