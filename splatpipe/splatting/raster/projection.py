"""From Gaussians to records that tiles read, and from the tiles' gradients back to Gaussians.

Both kernels work on a range of Gaussians, eight at a time; the camera is `camera.pack_camera`'s vector.
Colours come as `base` (N rows of `base_stride` floats) and `rest` (rows of `rest_stride`, from
`rest_offset` on); degree -1 means that `base` is the colour itself.
"""

from __future__ import annotations

import math

import numpy as np

from splatpipe.splatting.raster.compile import kernel
from splatpipe.splatting.raster.geometry import (
    LOG2E,
    axes_gradient,
    compensation_gradient,
    covariance,
    covariance_gradient,
    from_camera,
    image_axes,
    in_camera,
    quaternion_gradient,
    rotation_of,
    to_camera,
    unit,
)
from splatpipe.splatting.raster.harmonics import SH0, direction_gradient, store_basis
from splatpipe.splatting.raster.lanes import (
    any_lane,
    gather,
    load,
    mask_bits,
    peek,
    poke,
    prefetch,
    select,
    splat,
    square_root,
    store,
)
from splatpipe.splatting.raster.tiles import cover

# One record per Gaussian, a cache line: u, v, conic * log2(e) (half A, B, half C), opacity, r, g, b, compensation
RECORD = 16
SLOT = 16  # gradient of one intersection: see blend.py
_LARGEST = np.float32(1e9)  # pixels; a centre beyond cannot be told from infinity in float32
_THRESHOLD = np.float32(1 / 255)
_HALF = np.float32(0.5)
_ZERO = np.float32(0)


@kernel
def _scaled(r, s0, s1, s2):
    """Columns of a 3 by 3 matrix times the three scales."""
    return (r[0] * s0, r[1] * s1, r[2] * s2, r[3] * s0, r[4] * s1, r[5] * s2, r[6] * s0, r[7] * s1, r[8] * s2)


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
def _prefetch_row(array, at, floats):
    for i in range(at, at + floats + 15, 16):
        prefetch(array, i)


@kernel
def project(
    start, stop, means, quats, scales, opacities, degree, base, base_stride, rest, rest_stride, rest_offset,
    cam, width, height, records, slot_first, slot_count, entries, slot, limit, radii, means2d, depths,
):  # fmt: skip
    """Records, intersections (from `slot` on, written below `limit`), radii, 2D means and depths of a range.

    Returns the end of the intersections; when that is beyond `limit`, some were counted but not written.
    """
    last = means.size // 3 - 1
    lanes = np.empty(13 * 8, np.float32)
    basis = np.empty(15 * 8, np.float32)
    bands = max(0, (degree + 1) * (degree + 1) - 1)
    antialiased = cam[26] > 0
    for first in range(start, stop, 8):
        mx, my, mz = gather(means, first, last, 3, 0), gather(means, first, last, 3, 1), gather(means, first, last, 3, 2)
        x, y, z = to_camera(cam, mx, my, mz)
        seen = (z >= cam[23]) & (z <= cam[24])
        bits = 0
        if any_lane(seen):
            w, qx, qy, qz = (
                gather(quats, first, last, 4, 0),
                gather(quats, first, last, 4, 1),
                gather(quats, first, last, 4, 2),
                gather(quats, first, last, 4, 3),
            )
            inverse = 1.0 / square_root(w * w + qx * qx + qy * qy + qz * qz)
            r = in_camera(cam, rotation_of(w * inverse, qx * inverse, qy * inverse, qz * inverse))
            s0, s1, s2 = (
                gather(scales, first, last, 3, 0),
                gather(scales, first, last, 3, 1),
                gather(scales, first, last, 3, 2),
            )
            p, q, rz, tx, ty = image_axes(cam, x, y, z, _scaled(r, s0, s1, s2))
            a, b, c, det, sharp = covariance(cam, p, q)
            u, v = cam[12] * x * rz + cam[14], cam[13] * y * rz + cam[15]
            factor = splat(1.0)
            if antialiased:
                factor = square_root(sharp / det)
            opacity = gather(opacities, first, last, 1, 0) * factor
            inverse = 1.0 / det
            # comparisons with NaN are false, so whatever is not finite ends here
            seen = seen & (det > 0.0) & (a < 1e18) & (c < 1e18) & (inverse < 1e30) & (opacity >= _THRESHOLD)
            seen = seen & (opacity < 1e9) & (u > -_LARGEST) & (u < _LARGEST) & (v > -_LARGEST) & (v < _LARGEST)
            bits = mask_bits(seen)
            store(lanes, 0, u)
            store(lanes, 8, v)
            store(lanes, 16, a)
            store(lanes, 24, b)
            store(lanes, 32, c)
            store(lanes, 40, c * inverse)
            store(lanes, 48, -b * inverse)
            store(lanes, 56, a * inverse)
            store(lanes, 64, opacity)
            store(lanes, 72, factor)
            store(lanes, 80, z)
            if degree > 0:
                dx, dy, dz, inverse = unit(mx - cam[20], my - cam[21], mz - cam[22])
                store_basis(degree, dx, dy, dz, basis)
        for lane in range(8):  # the rows of those seen lie scattered in memory: ask for all before using one
            if (bits >> lane) & 1:
                g = first + lane
                prefetch(records, RECORD * g)
                prefetch(base, g * base_stride)
                _prefetch_row(rest, g * rest_stride + rest_offset, 3 * bands)
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
            reach = np.float32(2) * math.log(np.float32(255) * opacity)
            extend = min(np.float32(3.33), math.sqrt(max(reach, _ZERO)))
            rx, ry = np.ceil(extend * math.sqrt(cov[0])), np.ceil(extend * math.sqrt(cov[2]))
            if not (rx > 0 or ry > 0) or u + rx <= 0 or u - rx >= width or v + ry <= 0 or v - ry >= height:
                continue
            red, green, blue = _colour(degree, base, g * base_stride, rest, g * rest_stride + rest_offset, basis, lane)
            if not abs(red) + abs(green) + abs(blue) < _LARGEST:
                continue
            if degree >= 0:
                red, green, blue = max(red, _ZERO), max(green, _ZERO), max(blue, _ZERO)
            radii[2 * g] = np.int32(min(rx, _LARGEST))
            radii[2 * g + 1] = np.int32(min(ry, _LARGEST))
            means2d[2 * g], means2d[2 * g + 1], depths[g] = u, v, lanes[80 + lane]
            reach = reach * np.float32(1.0001) + np.float32(1e-4)
            end = cover(u, v, cov, conic, reach, width, height, entries, slot, limit)
            slot_count[g] = end - slot
            slot = end
            record = RECORD * g
            records[record] = u
            records[record + 1] = v
            records[record + 2] = _HALF * LOG2E * conic[0]
            records[record + 3] = LOG2E * conic[1]
            records[record + 4] = _HALF * LOG2E * conic[2]
            records[record + 5] = opacity
            records[record + 6], records[record + 7], records[record + 8] = red, green, blue
    return slot


@kernel
def _sum_slots(first, count, slots):
    """Add up one Gaussian's intersections, in their order."""
    at = SLOT * first
    head, tail = load(slots, at), slots[at + 8]
    for _ in range(1, count):
        at += SLOT
        head = head + load(slots, at)
        tail += slots[at + 8]
    return head, tail


@kernel
def _write_rows(out, first, count, width, lanes, at):
    """Lanes `at`, `at` + 8, ... as the columns of rows first to first + count - 1."""
    for lane in range(count):
        for column in range(width):
            poke(out, (first + lane) * width + column, peek(lanes, at + 8 * column + lane))


@kernel
def _clear_rows(out, first, count, stride, offset, width):
    for row in range(first, first + count):
        for column in range(width):
            poke(out, row * stride + offset + column, _ZERO)


@kernel
def _harmonics_gradient(v, rest, rest_at, basis, weights, lane, bands, v_rest):
    """Gradient of one Gaussian's bands, and `weights` (coefficients times v) for the direction's gradient."""
    for k in range(bands):
        weight = peek(basis, 8 * k + lane)
        at = rest_at + 3 * k
        poke(weights, 8 * k + lane, peek(rest, at) * v[0] + peek(rest, at + 1) * v[1] + peek(rest, at + 2) * v[2])
        poke(v_rest, at, weight * v[0])
        poke(v_rest, at + 1, weight * v[1])
        poke(v_rest, at + 2, weight * v[2])


@kernel
def project_backward(
    start, stop, means, quats, scales, opacities, degree, base, base_stride, rest, rest_stride, rest_offset,
    cam, records, slot_first, slot_count, slots, v_means, v_quats, v_scales, v_opacities, v_base, v_rest,
):  # fmt: skip
    """Gradients of a range of Gaussians from the gradients of their intersections; zeros where there are none."""
    last = means.size // 3 - 1
    lanes = np.zeros(12 * 8, np.float32)
    basis = np.empty(15 * 8, np.float32)
    weights = np.empty(15 * 8, np.float32)
    bands = max(0, (degree + 1) * (degree + 1) - 1)
    antialiased = cam[26] > 0
    for first in range(start, stop, 8):
        count = min(8, stop - first)
        hit = False
        for lane in range(count):
            g = first + lane
            if slot_count[g] > 0:
                hit = True
                prefetch(records, RECORD * g)
                prefetch(slots, SLOT * np.int64(slot_first[g]))
                _prefetch_row(rest, g * rest_stride + rest_offset, 3 * bands)
                _prefetch_row(v_rest, g * rest_stride + rest_offset, 3 * bands)
        if not hit:
            _clear_rows(v_means, first, count, 3, 0, 3)
            _clear_rows(v_quats, first, count, 4, 0, 4)
            _clear_rows(v_scales, first, count, 3, 0, 3)
            _clear_rows(v_opacities, first, count, 1, 0, 1)
            _clear_rows(v_base, first, count, base_stride, 0, 3)
            _clear_rows(v_rest, first, count, rest_stride, rest_offset, 3 * bands)
            continue
        mx, my, mz = gather(means, first, last, 3, 0), gather(means, first, last, 3, 1), gather(means, first, last, 3, 2)
        if bands > 0:
            dx, dy, dz, inverse_distance = unit(mx - cam[20], my - cam[21], mz - cam[22])
            store_basis(degree, dx, dy, dz, basis)
        for lane in range(8):
            g = first + lane
            n = slot_count[g] if lane < count else 0
            if n == 0:
                for k in range(9):
                    lanes[8 * k + lane] = _ZERO
                for k in range(bands):
                    weights[8 * k + lane] = _ZERO
                if lane < count:
                    _clear_rows(v_base, g, 1, base_stride, 0, 3)
                    _clear_rows(v_rest, g, 1, rest_stride, rest_offset, 3 * bands)
                continue
            head, vb = _sum_slots(slot_first[g], n, slots)
            store(lanes, 88, head)
            for k in range(8):
                lanes[8 * k + lane] = lanes[88 + k]
            vr, vg = lanes[94], lanes[95]
            scale = np.float32(1)
            if degree >= 0:  # nothing passes where the colour was clamped at 0
                vr = vr if records[RECORD * g + 6] > 0 else _ZERO
                vg = vg if records[RECORD * g + 7] > 0 else _ZERO
                vb = vb if records[RECORD * g + 8] > 0 else _ZERO
                scale = SH0
            v_base[g * base_stride] = scale * vr
            v_base[g * base_stride + 1] = scale * vg
            v_base[g * base_stride + 2] = scale * vb
            if bands > 0:
                at = g * rest_stride + rest_offset
                _harmonics_gradient((vr, vg, vb), rest, at, basis, weights, lane, bands, v_rest)
        x, y, z = to_camera(cam, mx, my, mz)
        w, qx, qy, qz = (
            gather(quats, first, last, 4, 0),
            gather(quats, first, last, 4, 1),
            gather(quats, first, last, 4, 2),
            gather(quats, first, last, 4, 3),
        )
        inverse_norm = 1.0 / square_root(w * w + qx * qx + qy * qy + qz * qz)
        w, qx, qy, qz = w * inverse_norm, qx * inverse_norm, qy * inverse_norm, qz * inverse_norm
        s0, s1, s2 = (
            gather(scales, first, last, 3, 0),
            gather(scales, first, last, 3, 1),
            gather(scales, first, last, 3, 2),
        )
        r = in_camera(cam, rotation_of(w, qx, qy, qz))
        m = _scaled(r, s0, s1, s2)
        p, q, rz, tx, ty = image_axes(cam, x, y, z, m)
        a, b, c, det, sharp = covariance(cam, p, q)
        inverse = 1.0 / det
        conic = c * inverse, -b * inverse, a * inverse
        # sums over pixels of w = alpha dL/dalpha times 1, dx, dy, dx^2, dx dy, dy^2 with d = pixel - centre
        sum_1, sum_x, sum_y = load(lanes, 0), load(lanes, 8), load(lanes, 16)
        sum_xx, sum_xy, sum_yy = load(lanes, 24), load(lanes, 32), load(lanes, 40)
        opacity = gather(opacities, first, last, 1, 0)
        v_opacity = sum_1 / opacity
        va, vb2, vc = covariance_gradient(conic, (-0.5 * sum_xx, -sum_xy, -0.5 * sum_yy))
        if antialiased:
            factor = square_root(sharp / det)
            fa, fb, fc = compensation_gradient(cam, conic, det, factor, sum_1 / factor)
            va, vb2, vc = va + fa, vb2 + fb, vc + fc
        v_m, v_x, v_y, v_z = axes_gradient(cam, x, y, rz, tx, ty, m, p, q, (va, vb2, vc))
        vu, vv = conic[0] * sum_x + conic[1] * sum_y, conic[1] * sum_x + conic[2] * sum_y
        v_x = v_x + cam[12] * rz * vu
        v_y = v_y + cam[13] * rz * vv
        v_z = v_z - (cam[12] * x * vu + cam[13] * y * vv) * rz * rz
        gx = cam[0] * v_x + cam[3] * v_y + cam[6] * v_z
        gy = cam[1] * v_x + cam[4] * v_y + cam[7] * v_z
        gz = cam[2] * v_x + cam[5] * v_y + cam[8] * v_z
        if bands > 0:
            hx, hy, hz = direction_gradient(degree, dx, dy, dz, weights)
            gx, gy, gz = gx + hx * inverse_distance, gy + hy * inverse_distance, gz + hz * inverse_distance
        v_r = from_camera(cam, _scaled(v_m, s0, s1, s2))
        gw, gqx, gqy, gqz = quaternion_gradient(w, qx, qy, qz, inverse_norm, v_r)
        for lane in range(8):
            lanes[88 + lane] = np.float32(1) if lane < count and slot_count[first + lane] > 0 else _ZERO
        covered = load(lanes, 88) > 0.5
        zero = splat(0.0)
        store(lanes, 0, select(covered, gx, zero))
        store(lanes, 8, select(covered, gy, zero))
        store(lanes, 16, select(covered, gz, zero))
        store(lanes, 24, select(covered, gw, zero))
        store(lanes, 32, select(covered, gqx, zero))
        store(lanes, 40, select(covered, gqy, zero))
        store(lanes, 48, select(covered, gqz, zero))
        store(lanes, 56, select(covered, v_m[0] * r[0] + v_m[3] * r[3] + v_m[6] * r[6], zero))
        store(lanes, 64, select(covered, v_m[1] * r[1] + v_m[4] * r[4] + v_m[7] * r[7], zero))
        store(lanes, 72, select(covered, v_m[2] * r[2] + v_m[5] * r[5] + v_m[8] * r[8], zero))
        store(lanes, 80, select(covered, v_opacity, zero))
        _write_rows(v_means, first, count, 3, lanes, 0)
        _write_rows(v_quats, first, count, 4, lanes, 24)
        _write_rows(v_scales, first, count, 3, lanes, 56)
        _write_rows(v_opacities, first, count, 1, lanes, 80)
