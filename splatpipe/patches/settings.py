"""How a scene is split; imports nothing heavy, so that the configuration can load it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le, Lt

Share = Annotated[float, Ge(0), Le(1)]
FrameName = Literal["auto", "xy", "xz", "yz"]
Row = tuple[float, float, float]
Matrix = tuple[Row, Row, Row]
Corner = tuple[float, float]
Limit = Annotated[float, Ge(0)]
UNIT = 1e-3  # how far a frame's rows may be from orthonormal; what is left is rounding by the one who wrote them


@dataclass(frozen=True)
class PatchingSettings:
    """`patching:`. Lengths are relative to the patch unless asked otherwise, so that a scene's units do not matter."""

    __pydantic_config__ = {"extra": "forbid"}

    max_cameras: Annotated[int, Ge(1)] = 200  # training cameras of one patch, never more
    reserve: Annotated[float, Ge(0), Lt(1)] = 0.1  # share of max_cameras kept free for views from the neighbours
    patches: Annotated[int, Ge(0)] = 0  # cut into so many first, where the scene allows; 0: as few as the limits allow
    buffer: Annotated[float, Ge(0)] = 0.15  # margin round the core, in what the next line says
    buffer_of: Literal["patch", "spacing", "units"] = "patch"  # core's shorter edge, camera spacing, scene units
    max_points: Annotated[int, Ge(0)] = 0  # points of one core; 0: no limit
    max_extent: Limit = 0.0  # longer side of one core's points on the ground, in scene units; 0: no limit
    vram_gb: Limit = 0.0  # GPU memory of one training, from which caps for cameras and Gaussians follow; 0: no limit
    min_views: Annotated[int, Ge(0)] = 3  # views that every core point keeps, where the scene has them
    max_short: Share = 0.01  # a core in which a larger share of points has fewer is cut further, within max_extra
    max_extra: Limit = 0.15  # patches above the fewest that max_cameras allows, for the sake of views, as a share
    frame: FrameName | Matrix = "auto"  # the plane in which cuts are made; a matrix: rows are two ground axes and up
    grid: tuple[Annotated[int, Ge(1)], Annotated[int, Ge(1)]] | None = None  # columns and rows to cut along first
    cells: str | tuple[tuple[Corner, ...], ...] | None = None  # polygons on the map, or a GeoJSON file of them
    outliers: Annotated[float, Ge(0), Lt(0.5)] = 0.01  # share of far-off cameras and points that may be left out
    min_points: Annotated[int, Ge(0)] = 20  # a patch with fewer core points joins a neighbour, where the cap allows
    min_cameras: Annotated[int, Ge(0)] = 3  # likewise with fewer training cameras of its own
    external_share: Share = 0.1  # a neighbour's view is used if at least this share of what it sees is in the core
    background: Share = 0.25  # far points that the cameras see, at most this share of the core and buffer points
    holdout_every: Annotated[int, Ge(0)] = 8  # every n-th view in name order is kept for evaluation; 0: none

    def __post_init__(self) -> None:
        if self.holdout_every == 1:
            raise ValueError("patching.holdout_every: 1 would keep every view from training; use 0 or at least 2")
        if sum((self.grid is not None, self.cells is not None, self.patches > 0)) > 1:
            raise ValueError("patching.patches, grid and cells each say how to cut; give one of them")
        if not isinstance(self.frame, str) and not _is_rotation(self.frame):
            raise ValueError("patching.frame: the rows must be three unit vectors at right angles, right-handed")

    @property
    def asked_for(self) -> bool:
        """Whether somebody has decided how to cut."""
        return self.grid is not None or self.cells is not None or self.patches > 0


def _is_rotation(rows: Matrix) -> bool:
    """Whether rows are orthonormal and the third is the first times the second."""
    (a, b, c) = rows
    cross = (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])
    unit = all(abs(sum(x * x for x in row) - 1) < UNIT for row in rows)
    return unit and all(abs(x - y) < UNIT for x, y in zip(cross, c, strict=True))
