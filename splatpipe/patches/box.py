"""A box of the cutting frame: what a patch owns, or what it is trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Box:
    """An axis-aligned box of the cutting frame, lower <= x < upper; bounds may be infinite."""

    lower: NDArray[np.float64]  # (3,)
    upper: NDArray[np.float64]  # (3,)

    @classmethod
    def everything(cls) -> Box:
        return cls(np.full(3, -np.inf), np.full(3, np.inf))

    def contains(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """(N,) for (N, 3) points in the cutting frame. Boxes that share a face share no point."""
        inside = np.ones(len(points), bool)
        for axis in range(3):
            if self.lower[axis] > -np.inf:
                inside &= points[:, axis] >= self.lower[axis]
            if self.upper[axis] < np.inf:
                inside &= points[:, axis] < self.upper[axis]
        return inside

    def cut(self, axis: int, at: float) -> tuple[Box, Box]:
        """The part below `at` along `axis`, and the rest."""
        lower, upper = self.lower.copy(), self.upper.copy()
        upper[axis] = lower[axis] = at
        return Box(self.lower, upper), Box(lower, self.upper)

    def grown(self, margin: float) -> Box:
        return Box(self.lower - margin, self.upper + margin)

    def union(self, other: Box) -> Box | None:
        """The box that both make together, or None if together they make none."""
        differ = np.flatnonzero((self.lower != other.lower) | (self.upper != other.upper))
        if len(differ) != 1:
            return None
        axis = differ[0]
        if self.upper[axis] != other.lower[axis] and other.upper[axis] != self.lower[axis]:
            return None
        return Box(np.minimum(self.lower, other.lower), np.maximum(self.upper, other.upper))

    def to_json(self) -> dict[str, Any]:
        """Infinite bounds become null."""
        return {"lower": _without_infinity(self.lower), "upper": _without_infinity(self.upper)}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Box:
        """The box, outline or union of these that was written."""
        lower = [-np.inf if value is None else value for value in data["lower"]]
        upper = [np.inf if value is None else value for value in data["upper"]]
        box = Box(np.array(lower), np.array(upper))
        if "parts" in data:
            from splatpipe.patches.union import Union

            return Union(box.lower, box.upper, tuple(Box.from_json(part) for part in data["parts"]))
        if "outline" not in data:
            return box
        from splatpipe.patches.region import Region

        return Region.with_outline(box, data["outline"])


def _without_infinity(values: NDArray[np.float64]) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
