"""How a scene is split; imports nothing heavy, so that the configuration can load it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le, Lt

Share = Annotated[float, Ge(0), Le(1)]
FrameName = Literal["auto", "xy", "xz", "yz"]


@dataclass(frozen=True)
class PatchingSettings:
    """`patching:`. Lengths are relative to the patch, so that a scene's units do not matter."""

    __pydantic_config__ = {"extra": "forbid"}

    max_cameras: Annotated[int, Ge(1)] = 200  # training cameras of one patch, never more
    reserve: Annotated[float, Ge(0), Lt(1)] = 0.1  # share of max_cameras kept free for views from the neighbours
    buffer: Annotated[float, Ge(0)] = 0.15  # margin round the core, as a fraction of the core's shorter edge
    frame: FrameName = "auto"  # the plane in which cuts are made
    min_points: Annotated[int, Ge(0)] = 20  # a patch with fewer core points joins a neighbour, where the cap allows
    min_cameras: Annotated[int, Ge(0)] = 3  # likewise with fewer training cameras of its own
    external_share: Share = 0.1  # a neighbour's view is used if at least this share of what it sees is in the core
    background: Share = 0.25  # far points that the cameras see, at most this share of the core and buffer points
    holdout_every: Annotated[int, Ge(0)] = 8  # every n-th view in name order is kept for evaluation; 0: none

    def __post_init__(self) -> None:
        if self.holdout_every == 1:
            raise ValueError("patching.holdout_every: 1 would keep every view from training; use 0 or at least 2")
