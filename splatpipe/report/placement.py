"""A scene as a viewer wants it: level, about the origin, and of a size that its controls expect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from splatpipe.report.scenery import PatchScenery, bounds
from splatpipe.splatting.ply import Splats

EXTENT = 10.0  # of the longer side of the ground, in units of the viewer


@dataclass(frozen=True, eq=False)
class Placement:
    """From scene coordinates to a viewer's: x_viewer = scale * rotation (x_scene - center)."""

    rotation: NDArray[np.float64]  # (3, 3)
    center: NDArray[np.float64]  # (3,) the scene position that comes to the origin
    scale: float

    @classmethod
    def of(cls, patches: Sequence[PatchScenery], axes: NDArray[np.float64]) -> Placement:
        """The middle of the ground at the origin; `axes` (3, 3) are the viewer's in the cutting frame.

        The cutting frame has two ground axes, the map's right and up, and the height.
        """
        frame = patches[0].frame
        low, high = bounds(patches)
        middle = np.array([*((low + high) / 2)[:2], ground_height(patches)])
        return cls(axes @ frame.rotation, frame.rotation.T @ middle, EXTENT / float((high - low)[:2].max()))

    def apply(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """(N, 3) or (3,) scene positions in the viewer."""
        return (np.asarray(points, np.float64) - self.center) @ self.rotation.T * self.scale

    def turned(self, axes: NDArray[np.float64]) -> Placement:
        """The same seen from other axes (3, 3) of this viewer's."""
        return replace(self, rotation=axes @ self.rotation)

    def splats(self, splats: Splats) -> Splats:
        """Gaussians without SH bands (which would have to be turned, too) in the viewer."""
        if splats.sh_degree:
            raise ValueError("only splats without SH bands can be turned")
        from scipy.spatial.transform import Rotation

        x, y, z, w = Rotation.from_matrix(self.rotation).as_quat()
        return replace(
            splats,
            means=self.apply(splats.means).astype(np.float32),
            scales=splats.scales + np.float32(np.log(self.scale)),
            quats=_product((w, x, y, z), splats.quats.astype(np.float64)).astype(np.float32),
        )


def ground_height(patches: Sequence[PatchScenery]) -> float:
    """The median height of the points, in the cutting frame; 0 without points."""
    heights = [one.frame.apply(one.points)[:, 2] for one in patches if len(one.points)]
    return float(np.median(np.concatenate(heights))) if heights else 0.0


def _product(a: tuple[float, float, float, float], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Hamilton product of one quaternion with many (N, 4), wxyz."""
    w, x, y, z = a
    left = np.array([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]])
    return b @ left.T
