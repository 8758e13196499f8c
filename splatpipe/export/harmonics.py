"""How spherical harmonics turn with the scene: colours must stay with the side they were seen on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_DEGREE = 3
_DIRECTIONS = 64  # more than the 16 functions need; the fit through them is exact


def basis(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 16) real spherical harmonics of unit vectors (N, 3), degrees 0 to 3, with the signs of 3D Gaussian splatting.

    The constants of Sloan, Efficient Spherical Harmonic Evaluation (JCGT 2013); order and signs as in INRIA's
    `computeColorFromSH`.
    """
    x, y, z = directions.T
    xx, yy, zz = x * x, y * y, z * z
    return np.stack(
        [
            np.full(len(x), 0.28209479177387814),
            -0.4886025119029199 * y,
            0.4886025119029199 * z,
            -0.4886025119029199 * x,
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.31539156525252005 * (2 * zz - xx - yy),
            -1.0925484305920792 * x * z,
            0.5462742152960396 * (xx - yy),
            -0.5900435899266435 * y * (3 * xx - yy),
            2.890611442640554 * x * y * z,
            -0.4570457994644658 * y * (4 * zz - xx - yy),
            0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy),
            -0.4570457994644658 * x * (4 * zz - xx - yy),
            1.445305721320277 * z * (xx - yy),
            -0.5900435899266435 * x * (xx - 3 * yy),
        ],
        axis=1,
    )


def band_rotations(rotation: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """For degrees 1, 2, 3 a matrix (3, 3), (5, 5), (7, 7): turned coefficients = matrix @ coefficients.

    `rotation` (3, 3) turns the scene: the new splat shows in direction R d what the old one shows in direction d.
    """
    directions = np.random.default_rng(0).normal(size=(_DIRECTIONS, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    before, after = basis(directions @ rotation), basis(directions)  # rows R^T d, and d
    bands: list[NDArray[np.float64]] = []
    for degree in range(1, MAX_DEGREE + 1):
        band = slice(degree**2, (degree + 1) ** 2)
        turned = np.linalg.lstsq(after[:, band], before[:, band], rcond=None)[0]
        bands.append(turned.astype(np.float64, copy=False))
    return tuple(bands)
