"""What is odd about a scene, each as a finding with its numbers; nothing is changed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from splatpipe.scene.arrays import Scene
from splatpipe.scene.findings import Finding, Severity
from splatpipe.scene.offset import Precision, precision
from splatpipe.scene.tracks import observation_counts, point_of_observation

FAR = 10.0  # times the median distance from the median position
FEW_POINTS = 1_000
SHORT_TRACKS = 3.0
BAD_ERROR = 2.0  # pixels
BEHIND = 0.5  # share of a camera's own points behind it, above which it faces away
UNITS = (1e-2, 1e4)  # usual median distances from a camera to its points
FOCAL = (0.2, 5.0)  # usual focal lengths over the image's longer side
FOCAL_SPREAD = 1.5  # of the focal lengths of equally sized images, largest over smallest


def check_scene(scene: Scene) -> list[Finding]:
    """Findings about cameras, points, tracks, intrinsics, units and the origin, in this order."""
    known = precision(scene)
    checks = (
        _outlier_cameras(scene),
        _facing_away(scene),
        _blind_cameras(scene),
        _outlier_points(scene),
        _duplicate_points(scene),
        _few_points(scene),
        _tracks(scene),
        _reprojection(scene),
        *_intrinsics(scene),
        _units(scene, known),
        _far_from_origin(known),
    )
    return [finding for finding in checks if finding]


def _plural(n: int, one: str, many: str) -> str:
    return f"{n:,} {one if n == 1 else many}"


def _distance_ratios(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) distance from the median position, in units of the median such distance."""
    distances = np.linalg.norm(positions - np.median(positions, axis=0), axis=1)
    typical = float(np.median(distances))
    return distances / typical if typical > 0 else np.zeros(len(positions))


def _outlier_cameras(scene: Scene) -> Finding | None:
    if scene.n_cameras < 4:
        return None
    ratios = _distance_ratios(scene.centers)
    far = np.flatnonzero(ratios > FAR)
    if not len(far):
        return None
    worst = int(far[np.argmax(ratios[far])])
    message = (
        f"{_plural(len(far), 'camera stands', 'cameras stand')} more than {FAR:g} times the median distance from the "
        f"others, farthest {scene.names[worst]} at {ratios[worst]:.3g} times"
    )
    names = [scene.names[i] for i in far[:20]]
    return Finding("outlier_cameras", "warning", message, {"cameras": len(far), "names": names})


def _facing_away(scene: Scene) -> Finding | None:
    point = point_of_observation(scene)
    depth = scene.viewmats[scene.track_cameras, 2, 3]
    for axis in range(3):  # one column at a time: a large scene has tens of millions of observations
        depth += scene.viewmats[scene.track_cameras, 2, axis] * scene.points[point, axis]
    seen = observation_counts(scene)
    behind = np.bincount(scene.track_cameras, weights=depth <= 0, minlength=scene.n_cameras)
    away = np.flatnonzero(behind > BEHIND * np.maximum(seen, 1))
    if not len(away):
        return None
    message = (
        f"{_plural(len(away), 'camera has', 'cameras have')} more of the observed points behind than before the lens, "
        f"first {scene.names[away[0]]}; the pose may be inverted, and what is behind is not believed"
    )
    return Finding(
        "facing_away", "warning", message, {"cameras": len(away), "names": [scene.names[i] for i in away[:20]]}
    )


def _blind_cameras(scene: Scene) -> Finding | None:
    blind = np.flatnonzero(observation_counts(scene) == 0)
    if not len(blind):
        return None
    message = (
        f"{_plural(len(blind), 'camera observes', 'cameras observe')} no point, first {scene.names[blind[0]]}; "
        "what projects into the image decides where it is used"
    )
    return Finding(
        "unobserving_cameras",
        "warning",
        message,
        {"cameras": len(blind), "names": [scene.names[i] for i in blind[:20]]},
    )


def _outlier_points(scene: Scene) -> Finding | None:
    if scene.n_points < 4:
        return None
    ratios = _distance_ratios(scene.points)
    far = int((ratios > FAR).sum())
    if not far:
        return None
    share = far / scene.n_points
    message = (
        f"{_plural(far, 'point lies', 'points lie')} more than {FAR:g} times the median distance from the middle "
        f"({share:.2%}), farthest at {ratios.max():.3g} times"
    )
    severity: Severity = "warning" if share > 0.01 else "note"
    return Finding("outlier_points", severity, message, {"points": far, "farthest": float(ratios.max())})


def _duplicate_points(scene: Scene) -> Finding | None:
    order = np.lexsort(scene.points.T)
    copies = int((np.diff(scene.points[order], axis=0) == 0).all(axis=1).sum())
    if not copies:
        return None
    message = f"{_plural(copies, 'point stands', 'points stand')} exactly where another one does"
    return Finding("duplicate_points", "note", message, {"points": copies})


def _few_points(scene: Scene) -> Finding | None:
    if scene.n_points >= FEW_POINTS:
        return None
    message = f"{_plural(scene.n_points, 'point is', 'points are')} little to start from; usual are tens of thousands"
    return Finding("few_points", "warning", message, {"points": scene.n_points})


def _tracks(scene: Scene) -> Finding | None:
    lengths = np.diff(scene.track_offsets)
    mean = float(lengths.mean())
    single = int((lengths <= 1).sum())
    share = single / scene.n_points
    if mean >= SHORT_TRACKS and share <= 0.1:
        return None
    message = (
        f"tracks are short: {mean:.2f} views a point on average, and {share:.0%} of the {scene.n_points:,} points "
        "are observed by at most one camera"
    )
    return Finding("short_tracks", "warning", message, {"mean": mean, "single": single})


def _reprojection(scene: Scene) -> Finding | None:
    known = scene.errors[np.isfinite(scene.errors) & (scene.errors >= 0)]
    if not len(known) or float(np.median(known)) <= BAD_ERROR:
        return None
    median = float(np.median(known))
    message = f"the median reprojection error is {median:.2f} px; above {BAD_ERROR:g} px splats become blurred"
    return Finding("reprojection_error", "warning", message, {"median_px": median})


def _intrinsics(scene: Scene) -> list[Finding]:
    """Focal lengths and principal points that no lens has, and lenses that differ among equal images."""
    findings = []
    for i, one in enumerate(scene.intrinsics):
        K = scene.Ks[int(np.argmax(scene.intrinsics_index == i))]
        focal = K[[0, 1], [0, 1]] / max(one.width, one.height)
        offset = np.abs(K[:2, 2] / (one.width, one.height) - 0.5).max()
        if (focal < FOCAL[0]).any() or (focal > FOCAL[1]).any() or offset > 0.25 or max(focal) > 1.2 * min(focal):
            message = (
                f"camera {one.id} ({one.model}, {one.width}x{one.height}) has focal lengths {K[0, 0]:.6g} and "
                f"{K[1, 1]:.6g} px and its centre at ({K[0, 2]:.6g}, {K[1, 2]:.6g}), which is unusual"
            )
            findings.append(Finding("odd_intrinsics", "warning", message, {"camera": one.id}))
    return findings + _focal_spread(scene)


def _focal_spread(scene: Scene) -> list[Finding]:
    findings = []
    for size in np.unique(scene.sizes, axis=0):
        focal = scene.Ks[(scene.sizes == size).all(axis=1), 0, 0]
        if focal.max() > FOCAL_SPREAD * focal.min():
            message = (
                f"images of {size[0]}x{size[1]} pixels have focal lengths from {focal.min():.6g} to {focal.max():.6g} "
                "px; one of their cameras may be badly calibrated, unless a zoom was used"
            )
            numbers = {"smallest": float(focal.min()), "largest": float(focal.max())}
            findings.append(Finding("mismatched_intrinsics", "warning", message, numbers))
    return findings


def _units(scene: Scene, known: Precision) -> Finding | None:
    if not len(scene.track_cameras):
        return None
    low, high = UNITS
    if low <= known.depth <= high:
        return None
    message = (
        f"the median distance from a camera to its points is {known.depth:.3g} scene units; training normalises that"
    )
    return Finding("units", "note", message, {"median_distance": known.depth})


def _far_from_origin(known: Precision) -> Finding | None:
    """Positions that are left so far from 0 that the single precision of splat files shows."""
    if known.step <= known.pixel / 2:
        return None
    message = (
        f"the scene lies {known.distance:,.0f} units from the origin, where splat files (single precision) know "
        f"positions to {known.step:.2g} units only, and a pixel covers {known.pixel:.2g}; scene.offset: auto takes a "
        "round offset off"
    )
    numbers = {"distance": known.distance, "precision": known.step, "pixel": known.pixel}
    return Finding("far_from_origin", "warning", message, numbers)
