"""Cores made of several: a degenerate piece and the neighbour that it joined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splatpipe.patches.box import Box


@dataclass(frozen=True, eq=False)
class Union(Box):
    """Boxes or outlines that share no place; `lower` and `upper` are those of the box round all of them."""

    parts: tuple[Box, ...] = ()

    def contains(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        inside = super().contains(points)
        near = np.flatnonzero(inside)
        inside[near] = np.logical_or.reduce([part.contains(points[near]) for part in self.parts])
        return inside

    def cut(self, axis: int, at: float) -> tuple[Box, Box]:
        below = [_below(part, axis, at) for part in self.parts if part.lower[axis] < at]
        above = [_above(part, axis, at) for part in self.parts if part.upper[axis] > at]
        return together(below), together(above)

    def grown(self, margin: float) -> Union:
        return _round(tuple(part.grown(margin) for part in self.parts))

    def to_json(self) -> dict[str, Any]:
        return super().to_json() | {"parts": [part.to_json() for part in self.parts]}


def _below(part: Box, axis: int, at: float) -> Box:
    return part if part.upper[axis] <= at else part.cut(axis, at)[0]


def _above(part: Box, axis: int, at: float) -> Box:
    return part if part.lower[axis] >= at else part.cut(axis, at)[1]


def parts_of(core: Box) -> tuple[Box, ...]:
    """What a core is made of; itself if it is one box or outline."""
    return core.parts if isinstance(core, Union) else (core,)


def together(cores: list[Box]) -> Box:
    """The core that cores which share no place make together: a box, where they make one."""
    parts = [part for core in cores for part in parts_of(core)]
    at = 0
    while at < len(parts):
        for other in range(at):
            box = parts[other].union(parts[at])
            if box is not None:
                parts = [box, *parts[:other], *parts[other + 1 : at], *parts[at + 1 :]]
                at = 0
                break
        at += 1
    return parts[0] if len(parts) == 1 else _round(tuple(parts))


def _round(parts: tuple[Box, ...]) -> Union:
    lower = np.minimum.reduce([part.lower for part in parts])
    return Union(lower, np.maximum.reduce([part.upper for part in parts]), parts)
