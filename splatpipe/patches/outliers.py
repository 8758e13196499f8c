"""Cameras and points so far from everything that they only spoil the cuts; left out of patches, never deleted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splatpipe.scene.arrays import Scene, lengths
from splatpipe.scene.findings import Finding

FAR = 30.0  # times the median distance from the median position; skies and mountains stay well below
FEWEST = 10  # a scene with fewer cameras or points has no crowd to be far from


@dataclass(frozen=True, eq=False)
class Outliers:
    """Masks over the scene's cameras (C,) and points (P,), with what is to be said of them."""

    cameras: NDArray[np.bool_]
    points: NDArray[np.bool_]
    findings: tuple[Finding, ...]


def find_outliers(scene: Scene, limit: float) -> Outliers:
    """At most the share `limit` of cameras and of points, or one of each; where more lie far off, none is taken.

    More than that is no outlier but a part of the scene that stands apart, and is reported only.
    """
    findings: list[Finding] = []
    masks = []
    for what, positions in (("cameras", scene.centers), ("points", scene.points)):
        far = _far(positions) if limit > 0 else np.zeros(len(positions), bool)
        n = int(far.sum())
        if n > max(limit * len(positions), 1):
            findings.append(_too_many(what, n, len(positions), limit))
            far = np.zeros(len(positions), bool)
        elif n:
            findings.append(_left_out(what, n, len(positions)))
        masks.append(far)
    return Outliers(masks[0], masks[1], tuple(findings))


def _far(positions: NDArray[np.float64]) -> NDArray[np.bool_]:
    if len(positions) < FEWEST:
        return np.zeros(len(positions), bool)
    distances = lengths(positions - [np.median(axis) for axis in positions.T])
    typical = float(np.median(distances))
    return distances > FAR * typical if typical > 0 else np.zeros(len(positions), bool)


def _left_out(what: str, n: int, total: int) -> Finding:
    message = (
        f"{n:,} of {total:,} {what} at more than {FAR:g} times the median distance from the middle are left out; "
        "patching.outliers: 0 keeps them"
    )
    return Finding(f"outlier_{what}_left_out", "warning" if what == "cameras" else "note", message, {what: n})


def _too_many(what: str, n: int, total: int, limit: float) -> Finding:
    message = (
        f"{n:,} of {total:,} {what} lie more than {FAR:g} times the median distance away, which is more than "
        f"patching.outliers ({limit:g}) allows to leave out, so all are kept"
    )
    return Finding(f"outlier_{what}_kept", "warning", message, {what: n})
