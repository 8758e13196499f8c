"""How many Gaussians each patch may grow to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PatchSize:
    """What a patch's share of Gaussians is measured by: core area (scene units squared) and points."""

    area: float
    points: int


def share_cap(sizes: Mapping[str, PatchSize], max_cap: int) -> dict[str, int]:
    """Cap per patch id: the most demanding patch gets `max_cap`, the others in proportion.

    The demand of a patch is the mean of its area and of its points, each relative to the mean patch, so
    that density is even: a small, sparse patch does not get as many Gaussians as a large, rich one. No
    cap lies below the patch's own number of points (or `max_cap`), since training starts from those.
    """
    mean_area = sum(s.area for s in sizes.values()) / max(len(sizes), 1) or 1.0
    mean_points = sum(s.points for s in sizes.values()) / max(len(sizes), 1) or 1.0
    demand = {name: (s.area / mean_area + s.points / mean_points) / 2 for name, s in sizes.items()}
    largest = max(demand.values(), default=1.0) or 1.0
    return {name: max(min(s.points, max_cap), round(max_cap * demand[name] / largest)) for name, s in sizes.items()}
