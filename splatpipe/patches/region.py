"""Cores of any outline: inside a polygon that somebody drew, or what is left beside all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splatpipe.compiled import fast
from splatpipe.patches.box import Box

Ring = NDArray[np.float64]  # (K, 2) corners on the ground, the first not repeated
PROBES = 48  # places each way at which a common one of two regions is looked for


@dataclass(frozen=True, eq=False)
class Region(Box):
    """The part of a box that lies in `ring` (None: anywhere) and in none of `others`; with a margin, wider by that.

    Regions that name each other's rings in order tile the ground whatever the rings are: the first has the first say.
    """

    ring: Ring | None = None
    others: tuple[Ring, ...] = ()
    margin: float = 0.0

    def contains(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        inside = super().contains(points)
        near = np.flatnonzero(inside)
        inside[near] = self._in_outline(np.ascontiguousarray(points[near, :2]))
        return inside

    def _in_outline(self, places: NDArray[np.float64]) -> NDArray[np.bool_]:
        inside = np.ones(len(places), bool) if self.ring is None else in_ring(self.ring, places)
        for other in self.others:
            inside &= ~in_ring(other, places)
        if self.margin:
            for edge in self.edges:
                inside |= distance_to_ring(edge, places) < self.margin
        return inside

    @property
    def edges(self) -> tuple[Ring, ...]:
        """The rings that bound it, as far as they lie in its box."""
        return self.others if self.ring is None else (self.ring,)

    def outside(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N,) distance from points (N, 3) to the outline, its box left out; 0 inside."""
        places = np.ascontiguousarray(points[:, :2])
        away = np.full(len(places), np.inf)
        for edge in self.edges:
            np.minimum(away, distance_to_ring(edge, places), out=away)
        away[self._in_outline(places)] = 0
        return np.maximum(away - self.margin, 0)

    def cut(self, axis: int, at: float) -> tuple[Region, Region]:
        below, above = Box.cut(self, axis, at)
        return (
            replace(self, lower=below.lower, upper=below.upper),
            replace(self, lower=above.lower, upper=above.upper),
        )

    def grown(self, margin: float) -> Region:
        return replace(self, lower=self.lower - margin, upper=self.upper + margin, margin=self.margin + margin)

    def union(self, other: Box) -> Box | None:
        """None: with an outline there is no box."""
        return None

    def to_json(self) -> dict[str, Any]:
        ring = None if self.ring is None else self.ring.tolist()
        outline = {"ring": ring, "others": [other.tolist() for other in self.others], "margin": self.margin}
        return super().to_json() | {"outline": outline}

    @classmethod
    def with_outline(cls, box: Box, outline: dict[str, Any]) -> Region:
        """The region that `to_json` described."""
        ring = None if outline["ring"] is None else np.array(outline["ring"])
        return cls(box.lower, box.upper, ring, tuple(np.array(other) for other in outline["others"]), outline["margin"])


def regions_of(rings: list[Ring], rest: bool) -> list[Region]:
    """One region for each ring, and one for the rest; without it, the last ring's takes what is left."""
    regions = []
    for i, ring in enumerate(rings):
        low, high = np.append(ring.min(axis=0), -np.inf), np.append(ring.max(axis=0), np.inf)
        regions.append(Region(low, np.nextafter(high, np.inf), ring, tuple(rings[:i])))
    left = rings if rest else rings[:-1]
    everything = Box.everything()
    return [*regions[: len(left)], Region(everything.lower, everything.upper, None, tuple(left))]


def meet(one: Region, other: Region) -> bool:
    """Whether two regions have a place in common: one of their corners, or of a grid over both their boxes."""
    if not one.edges and not other.edges:
        return True  # parts of the whole ground, whose boxes say all
    corners = np.concatenate([*one.edges, *other.edges])
    low = np.maximum.reduce([one.lower[:2], other.lower[:2], corners.min(axis=0)])
    high = np.minimum.reduce([one.upper[:2], other.upper[:2], corners.max(axis=0)])
    steps = (np.arange(PROBES) + 0.5) / PROBES
    grid = np.stack(np.meshgrid(*(low[axis] + steps * (high - low)[axis] for axis in (0, 1))), axis=-1).reshape(-1, 2)
    places = np.concatenate([corners, grid])
    places = np.column_stack([places, np.zeros(len(places))])
    return bool((one.contains(places) & other.contains(places)).any())


def in_ring(ring: Ring, places: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(N,) whether places (N, 2) lie in a simple polygon, by how often a line to the right of each crosses it."""
    inside = np.zeros(len(places), np.bool_)
    fast(_cross, len(places) * len(ring))(ring, places, inside)
    return inside


def _cross(ring, places, inside):  # type: ignore[no-untyped-def]
    n = len(ring)
    for i in range(len(places)):
        x, y = places[i, 0], places[i, 1]
        odd = False
        for k in range(n):
            ax, ay, bx, by = ring[k - 1, 0], ring[k - 1, 1], ring[k, 0], ring[k, 1]
            if (ay > y) != (by > y):
                if ay > by:  # an edge that two polygons share is judged the same way in both
                    ax, ay, bx, by = bx, by, ax, ay
                if x < ax + (y - ay) * (bx - ax) / (by - ay):
                    odd = not odd
        inside[i] = odd


def distance_to_ring(ring: Ring, places: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) distance from places (N, 2) to the nearest edge of a polygon."""
    least = np.empty(len(places))
    nearest = fast(_nearest, len(places) * len(ring))
    nearest(np.ascontiguousarray(ring), np.ascontiguousarray(places), least)
    return least


def _nearest(ring, places, least):  # type: ignore[no-untyped-def]
    for i in range(len(places)):
        x, y = places[i, 0], places[i, 1]
        best = np.inf
        for k in range(len(ring)):
            ax, ay = ring[k - 1, 0], ring[k - 1, 1]
            dx, dy, px, py = ring[k, 0] - ax, ring[k, 1] - ay, x - ax, y - ay
            along = min(max((px * dx + py * dy) / max(dx * dx + dy * dy, 1e-300), 0.0), 1.0)
            px -= along * dx
            py -= along * dy
            best = min(best, px * px + py * py)
        least[i] = np.sqrt(best)
