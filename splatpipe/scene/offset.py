"""Scenes far from the origin, as surveys in UTM are: a round offset is taken off, and given back at export.

Splat files, viewers and trainers know positions in single precision, to half a metre at a northing of 5,600,000 m.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from splatpipe.scene.arrays import Scene, Similarity, lengths
from splatpipe.scene.findings import Finding

Offset = tuple[float, float, float]
FARTHEST = 1e18  # scene units; squares of larger numbers do not fit in single precision
NONE: Offset = (0.0, 0.0, 0.0)
SAMPLE = 100_000  # points, and observations, that stand for all
FINE = 1 / 8  # of a pixel: where single precision is coarser, an offset is taken off
BOUNDS = (0.01, 0.99)  # quantiles of the points between which the scene's extent is measured


@dataclass(frozen=True)
class Precision:
    """How exactly single precision knows the scene; lengths in scene units."""

    distance: float  # from the origin, along the axis where it is largest
    step: float  # between neighbouring numbers there
    pixel: float  # what a pixel of the median camera covers at the median distance of its points
    depth: float  # that distance


def precision(scene: Scene) -> Precision:
    """Measured on a sample of the points and observations."""
    points = _some_points(scene)
    depth = float(np.median(_sight_lengths(scene, points)))
    distance = float(np.abs(np.median(points, axis=0)).max())
    step = float(np.spacing(np.float32(distance)))
    return Precision(distance, step, depth / float(np.median(scene.Ks[:, 0, 0])), depth)


def near_origin(scene: Scene, wanted: Literal["auto"] | Offset) -> tuple[Scene, list[Finding]]:
    """The scene less an offset, which it names: the one given, or a round one if single precision would show.

    A scene near the origin is given back as it is.
    """
    known = precision(scene)
    offset = _round_offset(scene, known) if wanted == "auto" else wanted
    if offset == NONE:
        return scene, []
    shift = Similarity(1.0, (-offset[0], -offset[1], -offset[2]))
    moved = replace(
        scene, points=shift.apply(scene.points), viewmats=shift.apply_viewmats(scene.viewmats), offset=offset
    )
    message = (
        f"the scene lies {known.distance:,.0f} units from the origin, where splat files (single precision) know "
        f"positions to {known.step:.2g} units and a pixel covers {known.pixel:.2g}: ({shown(offset)}) is taken off all "
        "positions; merged/offset.json and the header of merged/splat.ply keep it"
    )
    numbers = {"distance": known.distance, "precision": known.step, "pixel": known.pixel, "offset": list(offset)}
    return moved, [Finding("far_from_origin", "note", message, numbers)]


def checked(values: Sequence[float]) -> Offset:
    """Three numbers that a model can have. Raises ValueError or TypeError for anything else."""
    x, y, z = (float(value) for value in values)
    if not all(abs(value) < FARTHEST for value in (x, y, z)):
        raise ValueError(f"an offset is three numbers below {FARTHEST:g}")
    return x, y, z


def shown(offset: Sequence[float]) -> str:
    """An offset for a sentence."""
    return ", ".join(f"{value:.15g}" for value in offset)


def _round_offset(scene: Scene, known: Precision) -> Offset:
    """A position near the scene's middle, to the power of ten above its size; zeros where none is needed."""
    if not known.step > FINE * known.pixel:
        return NONE
    points = _some_points(scene)
    low, high = np.quantile(points, BOUNDS, axis=0)
    size = max(float((high - low).max()), known.depth)
    if not size > 0:
        return NONE
    unit = 10.0 ** math.ceil(math.log10(size))
    x, y, z = (float(np.round(value / unit) * unit) for value in np.median(points, axis=0))
    return x + 0.0, y + 0.0, z + 0.0  # no -0


def _some_points(scene: Scene) -> NDArray[np.float64]:
    return scene.points[:: max(scene.n_points // SAMPLE, 1)]


def _sight_lengths(scene: Scene, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances from cameras to points that they observe, from all over the tracks; to the middle of all without."""
    if not len(scene.track_cameras):
        return lengths(scene.centers - np.median(points, axis=0))
    some = np.arange(0, len(scene.track_cameras), max(len(scene.track_cameras) // SAMPLE, 1))
    seen = np.searchsorted(scene.track_offsets, some, side="right") - 1
    return lengths(scene.points[seen] - scene.centers[scene.track_cameras[some]])
