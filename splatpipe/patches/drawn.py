"""Partitions that people decide on: a grid, or polygons on the map from the settings or a GeoJSON-like file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splatpipe.errors import ConfigError
from splatpipe.files import read_json
from splatpipe.patches.region import Ring, distance_to_ring, in_ring
from splatpipe.scene.offset import FARTHEST

TOLERANCE = 1e-6  # of the layout's longer side; edges closer than this are one edge
CORNERS = 3
FILLED = 1e-4  # of an area; rectangles that leave less of the one round them uncovered fill it
PROBES = 24  # places looked at across an outline, each way, for a common part of two


@dataclass(frozen=True)
class Layout:
    """A cut of the ground and what becomes of both sides; None for a side that stays whole."""

    axis: int
    at: float
    below: Layout | None
    above: Layout | None


def leaves(layout: Layout | None) -> int:
    """How many cells it gives."""
    return 1 if layout is None else leaves(layout.below) + leaves(layout.above)


def grid_layout(columns: int, rows: int, positions: NDArray[np.float64]) -> Layout | None:
    """Cells of equal size within the robust bounds of the points (N, 3) in the cutting frame."""
    low, high = np.quantile(positions[:, :2], (0.01, 0.99), axis=0)
    edges = [np.linspace(low[axis], high[axis], n + 1)[1:-1].tolist() for axis, n in ((0, columns), (1, rows))]
    return _lines(0, edges[0], _lines(1, edges[1], None))


def _lines(axis: int, at: Sequence[float], then: Layout | None) -> Layout | None:
    if not at:
        return then
    middle = len(at) // 2
    return Layout(axis, at[middle], _lines(axis, at[:middle], then), _lines(axis, at[middle + 1 :], then))


def drawn_rings(cells: str | Sequence[Any], offset: Ring | None = None) -> list[Ring]:
    """The polygons of `patching.cells`: a list of corner lists, or a file of GeoJSON or of such a list.

    Corners are on the map's ground axes, and become less by `offset` (2,). Raises `ConfigError` naming the polygon
    that crosses itself, has a hole, or overlaps another.
    """
    origin = f"patching.cells ({cells})" if isinstance(cells, str) else "patching.cells"
    outlines = _polygons(_load(cells, origin), origin) if isinstance(cells, str) else list(cells)
    if not outlines:
        raise ConfigError(f"{origin}: holds no polygon")
    rings = [_ring(outline, f"{origin}: cell {i}", offset) for i, outline in enumerate(outlines)]
    slack = TOLERANCE * float(np.ptp(np.concatenate(rings), axis=0).max())
    for i, ring in enumerate(rings):
        for j in range(i):
            if _overlap(rings[j], ring, slack):
                raise ConfigError(f"{origin}: cells {j} and {i} overlap; draw them so that they only touch")
    return rings


def straight_cuts(rings: Sequence[Ring]) -> Layout | None:
    """Cuts that give the polygons, if they are rectangles along the axes that fill one; None for any others.

    The outer ones then go on for ever.
    """
    boxes = np.stack([np.stack([ring.min(axis=0), ring.max(axis=0)]) for ring in rings])
    areas, sizes = np.array([abs(_area(ring)) for ring in rings]), np.prod(boxes[:, 1] - boxes[:, 0], axis=1)
    whole = float(np.prod(boxes[:, 1].max(axis=0) - boxes[:, 0].min(axis=0)))
    if (areas < (1 - FILLED) * sizes).any() or abs(sizes.sum() - whole) > FILLED * whole:
        return None
    slack = TOLERANCE * float((boxes[:, 1].max(axis=0) - boxes[:, 0].min(axis=0)).max())
    parted, layout = _cut_apart(boxes, slack)
    return layout if parted else None


def _load(name: str, origin: str) -> Any:
    try:
        return read_json(Path(name))
    except OSError as error:
        raise ConfigError(f"{origin}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise ConfigError(f"{origin}: not valid JSON ({error})") from error


def _polygons(data: Any, origin: str) -> list[Any]:
    """The outer rings of a FeatureCollection, Feature, MultiPolygon or Polygon; a plain list is taken as it is."""
    if isinstance(data, list):
        return data
    kind = data.get("type") if isinstance(data, dict) else None
    inner = {"FeatureCollection": "features", "GeometryCollection": "geometries"}.get(str(kind))
    if inner:
        return [ring for part in data.get(inner) or () for ring in _polygons(part, origin)]
    if kind == "Feature":
        return _polygons(data.get("geometry"), origin)
    if kind not in ("Polygon", "MultiPolygon"):
        raise ConfigError(f"{origin}: holds a {kind or type(data).__name__} where a polygon is expected")
    polygons = data.get("coordinates") or []
    polygons = [polygons] if kind == "Polygon" else polygons
    if any(len(rings) > 1 for rings in polygons):
        raise ConfigError(f"{origin}: holds a polygon with a hole; draw what is in the hole as a cell of its own")
    return [rings[0] for rings in polygons if rings]


def _ring(corners: Any, origin: str, offset: Ring | None) -> Ring:
    """(K, 2) corners without repetitions, less the offset."""
    try:
        ring = np.array(corners, np.float64)
    except (ValueError, TypeError):
        ring = np.empty(0)
    if ring.ndim != 2 or ring.shape[1] not in (2, 3) or not np.isfinite(ring).all() or len(ring) < CORNERS:
        raise ConfigError(f"{origin}: must be at least three corners of two numbers each")
    ring = ring[:, :2]
    if (np.abs(ring) > FARTHEST).any():
        raise ConfigError(f"{origin}: has a corner farther out than {FARTHEST:g} scene units, where no scene is")
    ring = ring if offset is None else ring - offset
    ring = ring[(ring != np.roll(ring, 1, axis=0)).any(axis=1)]  # a closing corner repeats the first
    edges = [(ring[i - 1], ring[i]) for i in range(len(ring))]
    for i, one in enumerate(edges):
        if any(_cross(*one, *other) for other in edges[i + 1 :]):
            raise ConfigError(f"{origin}: crosses itself; draw its corners in order")
    extent = float(np.ptp(ring, axis=0).max()) if len(ring) else 0.0
    if len(ring) < CORNERS or abs(_area(ring)) < TOLERANCE * extent**2:
        raise ConfigError(f"{origin}: has no area; its corners stand on a line")
    return ring


def _area(ring: Ring) -> float:
    after = np.roll(ring, -1, axis=0)
    return float((ring[:, 0] * after[:, 1] - after[:, 0] * ring[:, 1]).sum() / 2)


def _cross(a: Ring, b: Ring, c: Ring, d: Ring) -> bool:
    """Whether the segments ab and cd cross at a place that is an end of neither."""

    def side(p: Ring, q: Ring, r: Ring) -> float:
        turn = (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])
        scale = np.abs(np.stack([q - p, r - p])).max()
        return float(np.sign(turn) if abs(turn) > TOLERANCE * scale**2 else 0.0)

    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0


def _overlap(one: Ring, other: Ring, slack: float) -> bool:
    """Whether two polygons have more in common than a border."""
    for i in range(len(one)):
        if any(_cross(one[i - 1], one[i], other[j - 1], other[j]) for j in range(len(other))):
            return True
    low, high = np.maximum(one.min(axis=0), other.min(axis=0)), np.minimum(one.max(axis=0), other.max(axis=0))
    if (high - low <= slack).any():
        return False
    steps = (np.arange(PROBES) + 0.5) / PROBES
    grid = np.stack(np.meshgrid(*(low[axis] + steps * (high - low)[axis] for axis in (0, 1))), axis=-1).reshape(-1, 2)
    middles = [(ring + np.roll(ring, 1, axis=0)) / 2 for ring in (one, other)]
    probes = np.concatenate([grid, one, other, *middles])
    clear = (distance_to_ring(one, probes) > slack) & (distance_to_ring(other, probes) > slack)
    inside = in_ring(one, probes) & in_ring(other, probes) & clear
    return bool(inside.any())


def _cut_apart(boxes: NDArray[np.float64], slack: float) -> tuple[bool, Layout | None]:
    """Straight cuts, each from side to side, that part the boxes (N, 2, 2); and whether there are any."""
    if len(boxes) == 1:
        return True, None
    for axis in (0, 1):
        for at in np.unique(boxes[:, 1, axis]):
            below, above = boxes[:, 1, axis] <= at + slack, boxes[:, 0, axis] >= at - slack
            if (below ^ above).all() and below.any() and above.any():
                (one, first), (other, second) = (_cut_apart(boxes[side], slack) for side in (below, above))
                return one and other, Layout(axis, float(at), first, second)
    return False, None
