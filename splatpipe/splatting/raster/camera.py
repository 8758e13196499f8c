"""One camera as the flat float32 vector that the kernels read."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# layout: rotation 0-8 (row-major, world to camera), translation 9-11, fx 12, fy 13, cx 14, cy 15,
# limits of x/z and y/z for the Jacobian 16-19 (low x, high x, low y, high y), centre in the world 20-22,
# near 23, far 24, eps2d 25, antialiased 26 (1 or 0)
FIELDS = 27


def pack_camera(
    viewmat: NDArray[np.float32],  # (4, 4) world to camera
    K: NDArray[np.float32],  # (3, 3), pixels
    width: int,
    height: int,
    planes: tuple[float, float],
    eps2d: float,
    antialiased: bool,
) -> NDArray[np.float32]:
    """The (27,) vector. The Jacobian's limits are gsplat's: 15 % of the image beyond each border."""
    rotation, translation = viewmat[:3, :3].astype(np.float64), viewmat[:3, 3].astype(np.float64)
    fx, fy, cx, cy = (float(v) for v in (K[0, 0], K[1, 1], K[0, 2], K[1, 2]))
    margin_x, margin_y = 0.15 * width / fx, 0.15 * height / fy
    packed = np.empty(FIELDS, np.float32)
    packed[0:9] = rotation.reshape(-1)
    packed[9:12] = translation
    packed[12:16] = fx, fy, cx, cy
    packed[16:18] = -(cx / fx + margin_x), (width - cx) / fx + margin_x
    packed[18:20] = -(cy / fy + margin_y), (height - cy) / fy + margin_y
    packed[20:23] = -np.linalg.solve(rotation, translation) if np.linalg.det(rotation) else 0.0
    packed[23:27] = *planes, eps2d, float(antialiased)
    return packed
