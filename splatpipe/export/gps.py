"""From scene coordinates to the world's by where the photographs say they were taken (GPS in their EXIF)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splatpipe.export.georeference import Georeference

MOST = 500  # photographs looked at, spread evenly; more make the fit hardly better
FEWEST = 3
TRIPLES = 500  # tried for the first fit
OUTLIER = 2.5  # robust standard deviations beyond which a photograph is left out
FINEST = 0.01  # metres; differences below this are rounding, not outliers
ACROSS = 3.0  # the flight must spread this many times the residual in a second direction
GPS_IFD = 0x8825
LATITUDE, LONGITUDE, ALTITUDE = (1, 2), (3, 4), (5, 6)  # tags: reference, value
EQUATOR_RADIUS, FLATTENING, UTM_SCALE = 6378137.0, 1 / 298.257223563, 0.9996  # WGS 84


@dataclass(frozen=True, eq=False)
class GpsFit:
    """A transform to UTM, or None with the reason, and a sentence that says how well it fits."""

    reference: Georeference | None
    sentence: str


def fit_gps(centers: NDArray[np.float64], photographs: Sequence[Path]) -> GpsFit | None:
    """Camera centres (C, 3), scene coordinates, against the GPS of their photographs; None where none has any.

    Metres in the UTM zone of the first photograph, heights as the photographs give them. Robust: triples are tried
    and the one with the least median residual wins, photographs far off are left out, the rest is fitted by least
    squares.
    """
    picked = np.unique(np.linspace(0, len(photographs) - 1, min(MOST, len(photographs))).astype(np.int64))
    if not len(picked) or all(read_gps(photographs[i]) is None for i in picked[:FEWEST]):
        return None  # photographs of one flight have it or have it not
    found = {int(i): place for i in picked if (place := read_gps(photographs[i])) is not None}
    if len(found) < FEWEST:
        return GpsFit(None, f"GPS in {len(found)} of {len(picked)} photographs: at least {FEWEST} are needed")
    degrees = np.array(list(found.values()))
    zone = int((degrees[0, 1] + 180) // 6) % 60 + 1
    south = bool(degrees[0, 0] < 0)
    world = np.column_stack([utm(degrees[:, 0], degrees[:, 1], zone, south), degrees[:, 2]])
    return _fit(centers[list(found)], world, len(picked), f"EPSG:{327 if south else 326}{zone:02d}")


def read_gps(path: Path) -> tuple[float, float, float] | None:
    """Latitude and longitude in degrees, north and east positive, and height in metres; None without all three."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            tags = image.getexif().get_ifd(GPS_IFD)
        latitude, longitude = _angle(tags, LATITUDE, "S"), _angle(tags, LONGITUDE, "W")
        height = float(tags[ALTITUDE[1]])
        below = tags.get(ALTITUDE[0], b"\0") in (1, b"\1")
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None
    inside = abs(latitude) <= 84 and abs(longitude) <= 180 and math.isfinite(height)  # UTM ends at 84 degrees
    # A receiver without a fix writes zeros.
    return (latitude, longitude, -height if below else height) if inside and (latitude or longitude) else None


def _angle(tags: Any, names: tuple[int, int], negative: str) -> float:
    degrees, minutes, seconds = (float(number) for number in tags[names[1]])
    angle = degrees + minutes / 60 + seconds / 3600
    return -angle if str(tags[names[0]]).strip("\0 ").upper().startswith(negative) else angle


def utm(latitude: NDArray[np.float64], longitude: NDArray[np.float64], zone: int, south: bool) -> NDArray[np.float64]:
    """(N, 2) easting and northing in metres of degrees on WGS 84; Krueger's series to the fourth order in n.

    Karney, Transverse Mercator with an accuracy of a few nanometers (2011), equations 7 to 11 and 35.
    """
    n = FLATTENING / (2 - FLATTENING)
    radius = EQUATOR_RADIUS / (1 + n) * (1 + n**2 / 4 + n**4 / 64)
    alpha = (
        n / 2 - 2 / 3 * n**2 + 5 / 16 * n**3 + 41 / 180 * n**4,
        13 / 48 * n**2 - 3 / 5 * n**3 + 557 / 1440 * n**4,
        61 / 240 * n**3 - 103 / 140 * n**4,
        49561 / 161280 * n**4,
    )
    eccentricity = math.sqrt(FLATTENING * (2 - FLATTENING))
    phi, lam = np.radians(latitude), np.radians(longitude - (6 * zone - 183))
    tau = np.tan(phi)
    sigma = np.sinh(eccentricity * np.arctanh(eccentricity * tau / np.hypot(1, tau)))
    conformal = tau * np.hypot(1, sigma) - sigma * np.hypot(1, tau)
    north = np.arctan2(conformal, np.cos(lam))
    east = np.arcsinh(np.sin(lam) / np.hypot(conformal, np.cos(lam)))
    xi = north + sum(a * np.sin(2 * j * north) * np.cosh(2 * j * east) for j, a in enumerate(alpha, 1))
    eta = east + sum(a * np.cos(2 * j * north) * np.sinh(2 * j * east) for j, a in enumerate(alpha, 1))
    false_northing = 10_000_000.0 if south else 0.0
    return np.column_stack([500_000.0 + UTM_SCALE * radius * eta, false_northing + UTM_SCALE * radius * xi])


def _fit(centers: NDArray[np.float64], world: NDArray[np.float64], looked_at: int, crs: str) -> GpsFit:
    good = _inliers(centers, world)
    scale, rotation, translation = similarity(centers[good], world[good])
    away = np.linalg.norm(scale * centers @ rotation.T + translation - world, axis=1)
    said = (
        f"GPS in {len(world)} of {looked_at} photographs ({crs}): median residual {np.median(away[good]):.2g} m, "
        f"largest {away[good].max():.2g} m, {len(world) - int(good.sum())} left out as outliers"
    )
    spread = np.linalg.svd(world[good] - world[good].mean(axis=0), compute_uv=False) / math.sqrt(good.sum())
    if not scale > 0 or spread[1] < ACROSS * max(float(np.sqrt((away[good] ** 2).mean())), FINEST):
        why = "the photographs were taken too nearly in one line, or in one place, for it to say which way is up"
        return GpsFit(None, f"{said}; not used: {why}")
    return GpsFit(Georeference(scale, rotation, translation, crs), said)


def _inliers(centers: NDArray[np.float64], world: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(N,) which agree with the triple whose fit has the least median residual (Rousseeuw, 1984)."""
    n, rng = len(world), np.random.default_rng(0)
    least, best = np.inf, np.zeros(n)
    for _ in range(TRIPLES):
        some = rng.choice(n, 3, replace=False)
        scale, rotation, translation = similarity(centers[some], world[some])
        away = np.linalg.norm(scale * centers @ rotation.T + translation - world, axis=1)
        if np.median(away) < least:
            least, best = float(np.median(away)), away
    # 1.4826 makes a median absolute deviation a standard deviation; the factor after it is for small samples.
    usual = 1.4826 * (1 + 5 / max(n - 3, 1)) * max(least, FINEST)
    return np.asarray(best <= OUTLIER * usual)


def similarity(
    source: NDArray[np.float64], target: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Scale, rotation (3, 3) and translation (3,) that lead (N, 3) onto (N, 3) with least squares (Umeyama, 1991)."""
    middle, aim = source.mean(axis=0), target.mean(axis=0)
    u, sizes, v = np.linalg.svd((target - aim).T @ (source - middle))
    flip = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(v)) or 1.0])
    rotation = (u * flip) @ v
    scale = float((sizes * flip).sum() / max(((source - middle) ** 2).sum(), 1e-300))
    return scale, rotation, aim - scale * rotation @ middle
