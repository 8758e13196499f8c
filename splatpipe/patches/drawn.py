"""Partitions that people decide on: a grid, or rectangles on the map from the settings or a GeoJSON-like file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splatpipe.errors import ConfigError
from splatpipe.files import read_json

TOLERANCE = 1e-6  # of the layout's longer side; edges closer than this are one edge
CORNERS = 4


@dataclass(frozen=True)
class Layout:
    """A cut of the ground and what becomes of both sides; None for a side that stays whole."""

    axis: int
    at: float
    below: Layout | None
    above: Layout | None


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


def drawn_layout(cells: str | Sequence[Any]) -> Layout | None:
    """Cuts that give the rectangles of `patching.cells`: a list of them, or a file of GeoJSON or of such a list.

    A rectangle is a list of corners on the map's ground axes, its sides along them. Together they must fill one
    rectangle, beyond which the outer ones go on, and it must be possible to cut them apart. Raises `ConfigError`.
    """
    origin = f"patching.cells ({cells})" if isinstance(cells, str) else "patching.cells"
    polygons = _polygons(_load(cells, origin)) if isinstance(cells, str) else list(cells)
    if not polygons:
        raise ConfigError(f"{origin}: holds no rectangle")
    boxes = np.stack([_rectangle(polygon, f"{origin}: cell {i}") for i, polygon in enumerate(polygons)])
    size = boxes[:, 1].max(axis=0) - boxes[:, 0].min(axis=0)
    filled, area = np.prod(boxes[:, 1] - boxes[:, 0], axis=1).sum(), size.prod()
    layout = _cut_apart(boxes, TOLERANCE * float(size.max()), origin)
    if abs(filled - area) > 1e-4 * area:
        raise ConfigError(f"{origin}: the cells fill {filled / area:.2%} of the rectangle round them; leave no hole")
    return layout


def _load(name: str, origin: str) -> Any:
    try:
        return read_json(Path(name))
    except OSError as error:
        raise ConfigError(f"{origin}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise ConfigError(f"{origin}: not valid JSON ({error})") from error


def _polygons(data: Any) -> list[Any]:
    """The outer rings of a FeatureCollection, Feature or Polygon; a plain list is taken as it is."""
    if isinstance(data, list):
        return data
    match data.get("type") if isinstance(data, dict) else None:
        case "FeatureCollection":
            return [ring for feature in data.get("features", ()) for ring in _polygons(feature)]
        case "Feature":
            return _polygons(data.get("geometry"))
        case "Polygon":
            return list(data.get("coordinates", ())[:1])
    return []


def _rectangle(corners: Any, origin: str) -> NDArray[np.float64]:
    """(2, 2) lower and upper corner."""
    try:
        ring = np.array(corners, np.float64)
    except (ValueError, TypeError):
        ring = np.empty(0)
    if ring.ndim != 2 or ring.shape[1] != 2 or not np.isfinite(ring).all() or len(ring) < CORNERS:
        raise ConfigError(f"{origin}: must be four corners of two numbers each")
    low, high = ring.min(axis=0), ring.max(axis=0)
    slack = TOLERANCE * float((high - low).max())
    on_edge = (np.minimum(np.abs(ring - low), np.abs(ring - high)) <= slack).all(axis=1)
    if not on_edge.all() or not (high - low > slack).all():
        raise ConfigError(
            f"{origin}: is no rectangle along the map's axes, and patches are merged along these; "
            "turn the map with patching.frame, or draw several rectangles"
        )
    return np.stack([low, high])


def _cut_apart(boxes: NDArray[np.float64], slack: float, origin: str) -> Layout | None:
    """Straight cuts, each from side to side, that part the boxes (N, 2, 2)."""
    if len(boxes) == 1:
        return None
    for axis in (0, 1):
        for at in np.unique(boxes[:, 1, axis]):
            below, above = boxes[:, 1, axis] <= at + slack, boxes[:, 0, axis] >= at - slack
            if (below ^ above).all() and below.any() and above.any():
                parts = (_cut_apart(boxes[side], slack, origin) for side in (below, above))
                return Layout(axis, float(at), *parts)
    raise ConfigError(
        f"{origin}: {len(boxes)} of the cells overlap, or no straight cut parts them without crossing one; "
        "draw them so that one cut after another gives them"
    )
