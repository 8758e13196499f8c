"""Views of a point that matching left out: cameras that look at it much as one does that observed it.

A track holds the views in which a feature was matched, a fraction of those that show the point. A camera that has the
point in its image, from about the direction and distance of one that observed it, shows it too, and trains it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splatpipe.compiled import compiled
from splatpipe.patches.visibility import POOR
from splatpipe.scene.arrays import Scene
from splatpipe.scene.tracks import observation_counts

DEGREES = 20.0  # between the directions from which both look; what hides a point hides it from near there as well
FARTHER = 1.5  # times the distance of the one that observed it, at most, and no nearer than one part of that


@dataclass(frozen=True, eq=False)
class Sights:
    """What is needed to look for such views; cameras whose tracks are poor see what projects into them already."""

    scene: Scene
    is_poor: NDArray[np.bool_]  # (C,)
    axes: NDArray[np.float64]  # (C, 4) depth of a position (x, y, z, 1) before each camera

    @classmethod
    def of(cls, scene: Scene) -> Sights:
        return cls(scene, observation_counts(scene) < POOR, np.ascontiguousarray(scene.viewmats[:, 2]))

    def beside(
        self,
        matched: NDArray[np.int32],
        wanted: NDArray[np.int32],
        points: NDArray[np.int64],
        cameras: NDArray[np.int64],
    ) -> NDArray[np.int32]:
        """(P,) views by sight that `cameras` add to those `matched` (P,) of the scene's points at index `points`.

        No more are looked for than bring a point to `wanted` (P,).
        """
        scene, found = self.scene, np.zeros(len(matched), np.int32)
        short = points[matched[points] < wanted[points]]
        able = cameras[~self.is_poor[cameras]]
        if not len(short) or not len(able):
            return found
        compiled(_look)(
            short,
            (wanted - matched)[short],
            able,
            scene.points,
            scene.centers,
            scene.viewmats[able],
            scene.Ks[able],
            scene.sizes[able],
            scene.track_offsets,
            scene.track_cameras,
            self.axes,
            float(np.cos(np.radians(DEGREES))),
            FARTHER,
            found,
        )
        return found


def _look(  # type: ignore[no-untyped-def]
    points, missing, cameras, positions, centers, viewmats, Ks, sizes, offsets, observers, axes, cosine, farther, found
):
    for row in range(len(points)):
        p = points[row]
        x, y, z = positions[p, 0], positions[p, 1], positions[p, 2]
        for i in range(len(cameras)):
            if found[p] >= missing[row]:
                break
            m, K = viewmats[i], Ks[i]
            depth = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3]
            if not depth > 0:
                continue
            u = (m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]) / depth * K[0, 0] + K[0, 2]
            v = (m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]) / depth * K[1, 1] + K[1, 2]
            if not (u >= 0 and v >= 0 and u < sizes[i, 0] and v < sizes[i, 1]):
                continue
            a, b, c = centers[cameras[i], 0] - x, centers[cameras[i], 1] - y, centers[cameras[i], 2] - z
            away = np.sqrt(a * a + b * b + c * c)
            alike = False
            for t in range(offsets[p], offsets[p + 1]):
                if observers[t] == cameras[i]:
                    alike = False  # counted already
                    break
                axis = axes[observers[t]]
                if not axis[0] * x + axis[1] * y + axis[2] * z + axis[3] > 0:
                    continue  # observed behind its back: its pose is wrong
                d, e, f = centers[observers[t], 0] - x, centers[observers[t], 1] - y, centers[observers[t], 2] - z
                other = np.sqrt(d * d + e * e + f * f)
                near = away <= farther * other and other <= farther * away
                alike = alike or (near and a * d + b * e + c * f >= cosine * away * other)
            if alike:
                found[p] += 1
