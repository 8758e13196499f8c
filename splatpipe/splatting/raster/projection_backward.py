"""From the gradients of the tiles' intersections back to the Gaussians, for a range of them, eight at a time.

What the forward pass computed is computed again: that costs less than keeping it.
"""

# Numba types the kernels, not mypy.
# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np

from splatpipe.splatting.raster.compile import kernel
from splatpipe.splatting.raster.geometry import (
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
from splatpipe.splatting.raster.lanes import gather, load, peek, poke, prefetch, select, splat, square_root, store
from splatpipe.splatting.raster.projection import RECORD, gather3, gather_unit, prefetch_row, scaled

SLOT = 16  # float32 per intersection's gradient, a cache line; 9 are used: see blend.blend_backward
_ZERO, _ONE = np.float32(0), np.float32(1)


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
def _harmonics_gradient(v, rest, rest_at, basis, weights, lane, bands, v_rest, covered):
    """Gradient of one Gaussian's bands, and `weights` (coefficients times v) for the direction's gradient."""
    for k in range(bands):
        at = rest_at + 3 * k
        if covered:
            weight = peek(basis, 8 * k + lane)
            poke(weights, 8 * k + lane, peek(rest, at) * v[0] + peek(rest, at + 1) * v[1] + peek(rest, at + 2) * v[2])
            poke(v_rest, at, weight * v[0])
            poke(v_rest, at + 1, weight * v[1])
            poke(v_rest, at + 2, weight * v[2])
        else:
            poke(v_rest, at, _ZERO)
            poke(v_rest, at + 1, _ZERO)
            poke(v_rest, at + 2, _ZERO)


@kernel
def _through_clamp(degree, records, g, vr, vg, vb):
    """The gradient of a colour before it was clamped at 0: nothing passes where it was."""
    if degree < 0:
        return vr, vg, vb
    record = RECORD * g
    return (
        vr if peek(records, record + 6) > 0 else _ZERO,
        vg if peek(records, record + 7) > 0 else _ZERO,
        vb if peek(records, record + 8) > 0 else _ZERO,
    )


@kernel
def _geometry_gradient(first, last, quats, scales, opacities, cam, mx, my, mz, lanes):
    """Turn eight Gaussians' sums in `lanes` into gradients, in place.

    In, eight each: the sums over pixels of w = alpha dL/dalpha times 1, dx, dy, dx^2, dx dy, dy^2 with
    d = pixel - centre, and 1 where there are any. Out: mean (3), quaternion (4), scales (3), opacity, and at
    88 again 1 where there are any.
    """
    sum_1, sum_x, sum_y = load(lanes, 0), load(lanes, 8), load(lanes, 16)
    sum_xx, sum_xy, sum_yy = load(lanes, 24), load(lanes, 32), load(lanes, 40)
    flags = load(lanes, 48)
    x, y, z = to_camera(cam, mx, my, mz)
    w, qx, qy, qz, inverse_norm = gather_unit(quats, first, last)
    s = gather3(scales, first, last)
    r = in_camera(cam, rotation_of(w, qx, qy, qz))
    m = scaled(r, s)
    p, q, rz, tx, ty = image_axes(cam, x, y, z, m)
    a, b, c, det, sharp = covariance(cam, p, q)
    inverse = 1.0 / det
    conic = c * inverse, -b * inverse, a * inverse
    va, vb, vc = covariance_gradient(conic, (-0.5 * sum_xx, -sum_xy, -0.5 * sum_yy))
    if cam[26] > 0:
        factor = square_root(sharp / det)
        fa, fb, fc = compensation_gradient(cam, conic, det, factor, sum_1 / factor)
        va, vb, vc = va + fa, vb + fb, vc + fc
    v_m, v_x, v_y, v_z = axes_gradient(cam, x, y, rz, tx, ty, m, p, q, (va, vb, vc))
    vu, vv = conic[0] * sum_x + conic[1] * sum_y, conic[1] * sum_x + conic[2] * sum_y
    v_x = v_x + cam[12] * rz * vu
    v_y = v_y + cam[13] * rz * vv
    v_z = v_z - (cam[12] * x * vu + cam[13] * y * vv) * rz * rz
    v_q = quaternion_gradient(w, qx, qy, qz, inverse_norm, from_camera(cam, scaled(v_m, s)))
    covered = flags > 0.5
    zero = splat(0.0)
    store(lanes, 0, select(covered, cam[0] * v_x + cam[3] * v_y + cam[6] * v_z, zero))
    store(lanes, 8, select(covered, cam[1] * v_x + cam[4] * v_y + cam[7] * v_z, zero))
    store(lanes, 16, select(covered, cam[2] * v_x + cam[5] * v_y + cam[8] * v_z, zero))
    store(lanes, 24, select(covered, v_q[0], zero))
    store(lanes, 32, select(covered, v_q[1], zero))
    store(lanes, 40, select(covered, v_q[2], zero))
    store(lanes, 48, select(covered, v_q[3], zero))
    store(lanes, 56, select(covered, v_m[0] * r[0] + v_m[3] * r[3] + v_m[6] * r[6], zero))
    store(lanes, 64, select(covered, v_m[1] * r[1] + v_m[4] * r[4] + v_m[7] * r[7], zero))
    store(lanes, 72, select(covered, v_m[2] * r[2] + v_m[5] * r[5] + v_m[8] * r[8], zero))
    store(lanes, 80, select(covered, sum_1 / gather(opacities, first, last, 1, 0), zero))
    store(lanes, 88, flags)


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
    for first in range(start, stop, 8):
        count = min(8, stop - first)
        hit = False
        for lane in range(count):
            g = first + lane
            if slot_count[g] > 0:
                hit = True
                prefetch(records, RECORD * g)
                prefetch_row(rest, g * rest_stride + rest_offset, 3 * bands)
                prefetch_row(v_rest, g * rest_stride + rest_offset, 3 * bands)
        if not hit:
            _clear_rows(v_means, first, count, 3, 0, 3)
            _clear_rows(v_quats, first, count, 4, 0, 4)
            _clear_rows(v_scales, first, count, 3, 0, 3)
            _clear_rows(v_opacities, first, count, 1, 0, 1)
            _clear_rows(v_base, first, count, base_stride, 0, 3)
            _clear_rows(v_rest, first, count, rest_stride, rest_offset, 3 * bands)
            continue
        mx, my, mz = gather3(means, first, last)
        dx, dy, dz, inverse_distance = unit(mx - cam[20], my - cam[21], mz - cam[22])
        store_basis(degree, dx, dy, dz, basis)
        for lane in range(8):
            g = first + lane
            if lane < count and slot_count[g] > 0:
                head, vb = _sum_slots(slot_first[g], slot_count[g], slots)
                store(lanes, 88, head)
                for k in range(6):
                    lanes[8 * k + lane] = lanes[88 + k]
                v = _through_clamp(degree, records, g, lanes[94], lanes[95], vb)
                lanes[48 + lane] = _ONE
            else:
                for k in range(7):
                    lanes[8 * k + lane] = _ZERO
                v = _ZERO, _ZERO, _ZERO
            if lane < count:
                scale = SH0 if degree >= 0 else _ONE
                v_base[g * base_stride] = scale * v[0]
                v_base[g * base_stride + 1] = scale * v[1]
                v_base[g * base_stride + 2] = scale * v[2]
                at = g * rest_stride + rest_offset
                _harmonics_gradient(v, rest, at, basis, weights, lane, bands, v_rest, slot_count[g] > 0)
        _geometry_gradient(first, last, quats, scales, opacities, cam, mx, my, mz, lanes)
        if bands > 0:
            hx, hy, hz = direction_gradient(degree, dx, dy, dz, weights)
            zero = splat(0.0)
            covered = load(lanes, 88) > 0.5
            store(lanes, 0, load(lanes, 0) + select(covered, hx * inverse_distance, zero))
            store(lanes, 8, load(lanes, 8) + select(covered, hy * inverse_distance, zero))
            store(lanes, 16, load(lanes, 16) + select(covered, hz * inverse_distance, zero))
        _write_rows(v_means, first, count, 3, lanes, 0)
        _write_rows(v_quats, first, count, 4, lanes, 24)
        _write_rows(v_scales, first, count, 3, lanes, 56)
        _write_rows(v_opacities, first, count, 1, lanes, 80)
