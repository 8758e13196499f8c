"""Rectangles of photographs as views of their own, for photographs that see more than can be held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from splatpipe.splatting.views import Decoded, Views

Rectangle = tuple[int, int, int, int]
"""Left, top, width, height in pixels."""


@dataclass(frozen=True, eq=False)
class Tiles(Views):
    """C rectangles of the photographs `of`; sizes and Ks are those of the rectangles."""

    of: Views | None = None
    view: tuple[int, ...] = ()  # (C,) which of them
    rectangles: tuple[Rectangle, ...] = ()

    @classmethod
    def cut(cls, of: Views, view: Sequence[int], rectangles: Sequence[Rectangle]) -> Tiles:
        """`of`: photographs at training size."""
        whole, corners = of.take(np.array(view, np.int64)), np.array(rectangles, np.int32).reshape(-1, 4)
        Ks = whole.Ks.copy()
        Ks[:, :2, 2] -= corners[:, :2]
        facts = whole.names, whole.paths, whole.viewmats, Ks, corners[:, 2:], whole.masks
        return cls(*facts, of, tuple(view), tuple(rectangles))

    def take(self, index: NDArray[np.integer]) -> Tiles:
        chosen = [int(i) for i in index]
        assert self.of is not None
        tiles = Tiles.cut(self.of, [self.view[i] for i in chosen], [self.rectangles[i] for i in chosen])
        return replace(tiles, viewmats=self.viewmats[index])

    def mask(self, index: int) -> NDArray[np.bool_] | None:
        assert self.of is not None
        found, (left, top, width, height) = self.of.mask(self.view[index]), self.rectangles[index]
        return None if found is None else found[top : top + height, left : left + width]

    def decode(self, index: int) -> Decoded:
        assert self.of is not None
        whole, (left, top, width, height) = self.of.decode(self.view[index]), self.rectangles[index]
        part = slice(top, top + height), slice(left, left + width)
        pixels = np.ascontiguousarray(whole.pixels[part])
        return Decoded(pixels, None if whole.mask is None else np.ascontiguousarray(whole.mask[part]))


def halves(rectangle: Rectangle) -> tuple[Rectangle, Rectangle]:
    """Cut across its longer side."""
    left, top, width, height = rectangle
    if width >= height:
        return (left, top, width // 2, height), (left + width // 2, top, width - width // 2, height)
    return (left, top, width, height // 2), (left, top + height // 2, width, height - height // 2)
