"""Real spherical harmonics up to degree 3, in gsplat's order and signs, for eight directions at a time.

Formulas: P.-P. Sloan, "Efficient Spherical Harmonic Evaluation", JCGT 2(2), 2013.
"""

# Numba types the kernels, not mypy.
# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np

from splatpipe.splatting.raster.compile import kernel
from splatpipe.splatting.raster.lanes import load, splat, store

SH0 = np.float32(0.28209479177387814)
_A = np.float32(0.48860251190292)
_B = np.float32(1.092548430592079)
_C = np.float32(0.9461746957575601)
_D = np.float32(0.3153915652525201)
_E = np.float32(0.5462742152960395)
_F = np.float32(0.5900435899266435)
_G = np.float32(1.445305721320277)
_H = np.float32(2.285228997322329)
_I = np.float32(0.4570457994644658)
_J = np.float32(1.865881662950577)
_K = np.float32(1.119528997770346)


@kernel
def store_basis(degree, x, y, z, out):
    """Bases 1 to (degree + 1)^2 - 1 at unit directions (x, y, z), basis k in out[8 (k - 1) : 8 k]."""
    if degree < 1:
        return
    store(out, 0, -_A * y)
    store(out, 8, _A * z)
    store(out, 16, -_A * x)
    if degree < 2:
        return
    zz = z * z
    cos2 = x * x - y * y
    sin2 = 2.0 * x * y
    store(out, 24, _E * sin2)
    store(out, 32, -_B * y * z)
    store(out, 40, _C * zz - _D)
    store(out, 48, -_B * x * z)
    store(out, 56, _E * cos2)
    if degree < 3:
        return
    ring = _I - _H * zz
    store(out, 64, -_F * (x * sin2 + y * cos2))
    store(out, 72, _G * z * sin2)
    store(out, 80, ring * y)
    store(out, 88, z * (_J * zz - _K))
    store(out, 96, ring * x)
    store(out, 104, _G * z * cos2)
    store(out, 112, -_F * (x * cos2 - y * sin2))


@kernel
def direction_gradient(degree, x, y, z, weights):
    """Gradient of sum_k weights_k basis_k with respect to the unit direction, tangent to the sphere.

    `weights` holds 8 lanes per basis, laid out as `store_basis` writes them. Returns three lanes.
    """
    vx = splat(0.0)
    vy = splat(0.0)
    vz = splat(0.0)
    if degree >= 1:
        vx = -_A * load(weights, 16)
        vy = -_A * load(weights, 0)
        vz = _A * load(weights, 8)
    if degree >= 2:
        w4 = load(weights, 24)
        w5 = load(weights, 32)
        w6 = load(weights, 40)
        w7 = load(weights, 48)
        w8 = load(weights, 56)
        vx = vx + 2.0 * _E * (w4 * y + w8 * x) - _B * w7 * z
        vy = vy + 2.0 * _E * (w4 * x - w8 * y) - _B * w5 * z
        vz = vz + 2.0 * _C * w6 * z - _B * (w5 * y + w7 * x)
    if degree >= 3:
        w9 = load(weights, 64)
        w10 = load(weights, 72)
        w11 = load(weights, 80)
        w12 = load(weights, 88)
        w13 = load(weights, 96)
        w14 = load(weights, 104)
        w15 = load(weights, 112)
        zz = z * z
        cos2 = x * x - y * y
        sin2 = 2.0 * x * y
        ring = _I - _H * zz
        vx = vx - 3.0 * _F * (w9 * sin2 + w15 * cos2) + 2.0 * _G * z * (w10 * y + w14 * x) + ring * w13
        vy = vy - 3.0 * _F * (w9 * cos2 - w15 * sin2) + 2.0 * _G * z * (w10 * x - w14 * y) + ring * w11
        vz = vz + _G * (w10 * sin2 + w14 * cos2) - 2.0 * _H * z * (w11 * y + w13 * x)
        vz = vz + w12 * (3.0 * _J * zz - _K)
    along = vx * x + vy * y + vz * z
    return vx - along * x, vy - along * y, vz - along * z
