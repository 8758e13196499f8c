"""EWA projection of eight Gaussians at a time, and its derivative.

Zwicker et al., "EWA Splatting", 2002, as gsplat 1.5.3 does it. With M = R_camera R(q) S the covariance is
M M^T; its image is T T^T with T = J M (2 by 3), so the 2D covariance cannot lose positivity and its
determinant is |T_0 x T_1|^2, free of cancellation.
"""

# Numba types the kernels, not mypy.
# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np

from splatpipe.splatting.raster.compile import kernel
from splatpipe.splatting.raster.lanes import larger, select, smaller, square_root


@kernel
def to_camera(cam, mx, my, mz):
    """World point to camera coordinates."""
    x = cam[0] * mx + cam[1] * my + cam[2] * mz + cam[9]
    y = cam[3] * mx + cam[4] * my + cam[5] * mz + cam[10]
    z = cam[6] * mx + cam[7] * my + cam[8] * mz + cam[11]
    return x, y, z


@kernel
def rotation_of(w, x, y, z):
    """Rotation matrix of a unit quaternion, nine lanes, row by row."""
    return (
        1.0 - 2.0 * (y * y + z * z),
        2.0 * (x * y - w * z),
        2.0 * (x * z + w * y),
        2.0 * (x * y + w * z),
        1.0 - 2.0 * (x * x + z * z),
        2.0 * (y * z - w * x),
        2.0 * (x * z - w * y),
        2.0 * (y * z + w * x),
        1.0 - 2.0 * (x * x + y * y),
    )


@kernel
def in_camera(cam, r):
    """R_camera times the matrix r (nine lanes, row by row)."""
    return (
        cam[0] * r[0] + cam[1] * r[3] + cam[2] * r[6],
        cam[0] * r[1] + cam[1] * r[4] + cam[2] * r[7],
        cam[0] * r[2] + cam[1] * r[5] + cam[2] * r[8],
        cam[3] * r[0] + cam[4] * r[3] + cam[5] * r[6],
        cam[3] * r[1] + cam[4] * r[4] + cam[5] * r[7],
        cam[3] * r[2] + cam[4] * r[5] + cam[5] * r[8],
        cam[6] * r[0] + cam[7] * r[3] + cam[8] * r[6],
        cam[6] * r[1] + cam[7] * r[4] + cam[8] * r[7],
        cam[6] * r[2] + cam[7] * r[5] + cam[8] * r[8],
    )


@kernel
def image_axes(cam, x, y, z, m):
    """T = J M, two rows of three lanes, and 1/z and the clamped x and y that J is taken at."""
    rz = 1.0 / z
    tx = z * smaller(larger(x * rz, cam[16]), cam[17])
    ty = z * smaller(larger(y * rz, cam[18]), cam[19])
    jx, jy = cam[12] * rz, cam[13] * rz
    jxz, jyz = -jx * tx * rz, -jy * ty * rz
    p0, p1, p2 = jx * m[0] + jxz * m[6], jx * m[1] + jxz * m[7], jx * m[2] + jxz * m[8]
    q0, q1, q2 = jy * m[3] + jyz * m[6], jy * m[4] + jyz * m[7], jy * m[5] + jyz * m[8]
    return (p0, p1, p2), (q0, q1, q2), rz, tx, ty


@kernel
def covariance(cam, p, q):
    """2D covariance with the blur added: (a, b, c), its determinant, and the determinant without blur."""
    a = p[0] * p[0] + p[1] * p[1] + p[2] * p[2]
    b = p[0] * q[0] + p[1] * q[1] + p[2] * q[2]
    c = q[0] * q[0] + q[1] * q[1] + q[2] * q[2]
    n0, n1, n2 = p[1] * q[2] - p[2] * q[1], p[2] * q[0] - p[0] * q[2], p[0] * q[1] - p[1] * q[0]
    sharp = n0 * n0 + n1 * n1 + n2 * n2
    eps = cam[25]
    return a + eps, b, c + eps, sharp + eps * (a + c) + eps * eps, sharp


@kernel
def covariance_gradient(conic, v_conic):
    """From the gradient with respect to the conic (A, B, C) to that with respect to (a, b, c): -Q V Q."""
    A, B, C = conic
    vA, vB, vC = v_conic
    h = 0.5 * vB
    l0, l1, l2, l3 = A * vA + B * h, A * h + B * vC, B * vA + C * h, B * h + C * vC
    return -(l0 * A + l1 * B), -2.0 * (l0 * B + l1 * C), -(l2 * B + l3 * C)


@kernel
def compensation_gradient(cam, conic, det, factor, v_factor):
    """Gradient of sqrt(det without blur / det) with respect to (a, b, c)."""
    A, B, C = conic
    ratio = factor * factor
    v_ratio = 0.5 * v_factor / larger(factor, 1e-6)
    blur = cam[25] / det
    return v_ratio * ((1.0 - ratio) * A - blur), v_ratio * 2.0 * (1.0 - ratio) * B, v_ratio * ((1.0 - ratio) * C - blur)


@kernel
def axes_gradient(cam, x, y, rz, tx, ty, m, p, q, v_cov):
    """From the gradient of (a, b, c) to that of M (nine lanes) and, through J, of the camera point."""
    va, vb, vc = v_cov
    p0, p1, p2 = 2.0 * va * p[0] + vb * q[0], 2.0 * va * p[1] + vb * q[1], 2.0 * va * p[2] + vb * q[2]
    q0, q1, q2 = 2.0 * vc * q[0] + vb * p[0], 2.0 * vc * q[1] + vb * p[1], 2.0 * vc * q[2] + vb * p[2]
    jx, jy = cam[12] * rz, cam[13] * rz
    jxz, jyz = -jx * tx * rz, -jy * ty * rz
    v_m = (
        jx * p0, jx * p1, jx * p2,
        jy * q0, jy * q1, jy * q2,
        jxz * p0 + jyz * q0, jxz * p1 + jyz * q1, jxz * p2 + jyz * q2,
    )  # fmt: skip
    v_jx = p0 * m[0] + p1 * m[1] + p2 * m[2]
    v_jy = q0 * m[3] + q1 * m[4] + q2 * m[5]
    v_jxz = p0 * m[6] + p1 * m[7] + p2 * m[8]
    v_jyz = q0 * m[6] + q1 * m[7] + q2 * m[8]
    free_x = select((x * rz >= cam[16]) & (x * rz <= cam[17]), v_jxz, v_jxz * 0.0)
    free_y = select((y * rz >= cam[18]) & (y * rz <= cam[19]), v_jyz, v_jyz * 0.0)
    # J_xz = -f t / z^2: with t = x where free, t = limit * z where clamped
    v_x = -jx * rz * free_x
    v_y = -jy * rz * free_y
    v_z = -(jx * v_jx + jy * v_jy) * rz - (jxz * (v_jxz + free_x) + jyz * (v_jyz + free_y)) * rz
    return v_m, v_x, v_y, v_z


@kernel
def from_camera(cam, v):
    """R_camera^T times a matrix of nine lanes."""
    return (
        cam[0] * v[0] + cam[3] * v[3] + cam[6] * v[6],
        cam[0] * v[1] + cam[3] * v[4] + cam[6] * v[7],
        cam[0] * v[2] + cam[3] * v[5] + cam[6] * v[8],
        cam[1] * v[0] + cam[4] * v[3] + cam[7] * v[6],
        cam[1] * v[1] + cam[4] * v[4] + cam[7] * v[7],
        cam[1] * v[2] + cam[4] * v[5] + cam[7] * v[8],
        cam[2] * v[0] + cam[5] * v[3] + cam[8] * v[6],
        cam[2] * v[1] + cam[5] * v[4] + cam[8] * v[7],
        cam[2] * v[2] + cam[5] * v[5] + cam[8] * v[8],
    )


@kernel
def quaternion_gradient(w, x, y, z, inverse_norm, v):
    """From the gradient of the rotation matrix to that of the quaternion before normalisation."""
    vw = 2.0 * (x * (v[7] - v[5]) + y * (v[2] - v[6]) + z * (v[3] - v[1]))
    vx = 2.0 * (y * (v[1] + v[3]) + z * (v[2] + v[6]) + w * (v[7] - v[5]) - 2.0 * x * (v[4] + v[8]))
    vy = 2.0 * (x * (v[1] + v[3]) + z * (v[5] + v[7]) + w * (v[2] - v[6]) - 2.0 * y * (v[0] + v[8]))
    vz = 2.0 * (x * (v[2] + v[6]) + y * (v[5] + v[7]) + w * (v[3] - v[1]) - 2.0 * z * (v[0] + v[4]))
    along = vw * w + vx * x + vy * y + vz * z
    return (
        (vw - along * w) * inverse_norm,
        (vx - along * x) * inverse_norm,
        (vy - along * y) * inverse_norm,
        (vz - along * z) * inverse_norm,
    )


@kernel
def unit(x, y, z):
    """The vector divided by its length, and one over the length."""
    inverse = 1.0 / square_root(x * x + y * y + z * z)
    return x * inverse, y * inverse, z * inverse, inverse


LOG2E = np.float32(1.4426950408889634)
