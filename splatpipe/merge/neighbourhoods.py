"""Which views of a scene are looked at together, so that what they see of a merged splat fits in memory.

The Gaussians of the file are sorted into cells: columns on the ground of about equal content, wide Gaussians in cells
of their own, because they reach far. Each cell has a box that holds all of its Gaussians; a view sees the cells whose
boxes reach into its pyramid. Views are parted by where they look until each part sees no more than may be held; a
photograph that sees more by itself is cut into tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splatpipe.merge.finish import at_borders, is_wide
from splatpipe.merge.ownership import Territory
from splatpipe.merge.rows import widest
from splatpipe.merge.tiles import Rectangle, Tiles, halves
from splatpipe.patches.frame import Frame
from splatpipe.splatting.ply import PlyHeader, iter_rows, sample_rows
from splatpipe.splatting.views import Views

SAMPLE = 1 << 17  # rows that say where the columns are
PER_CELL = 16  # Gaussians in a cell, at least on average
MOST_SIDE = 64  # cells along each ground axis
LEAST_SIDE = 16  # pixels of a tile
SIGMAS = 4.0  # as far as a Gaussian is counted with


@dataclass(frozen=True, eq=False)
class Columns:
    """side x side columns on the ground with about equally many Gaussians in each; the outermost have no bounds."""

    side: int
    first: NDArray[np.float64]  # (side - 1,) along the first ground axis
    second: NDArray[np.float64]  # (side * (side - 1),) number of the column strip plus `_place` along the second axis
    low: float
    high: float

    @classmethod
    def over(cls, points: NDArray[np.float64], count: int) -> Columns:
        """For `count` Gaussians, of which (S, 3) `points` in the frame are a sample."""
        side = int(np.clip(np.sqrt(count / PER_CELL), 1, MOST_SIDE))
        shares = np.arange(1, side) / side
        first = np.quantile(points[:, 0], shares)
        blank = cls(side, first, np.zeros(0), float(points[:, 1].min()), float(points[:, 1].max()))
        strips = np.searchsorted(first, points[:, 0], "right")
        places, edges = blank._place(points[:, 1]), []
        for strip in range(side):
            mine = places[strips == strip]
            edges.append(strip + np.quantile(mine if len(mine) else places, shares))
        return cls(side, first, np.concatenate(edges), blank.low, blank.high)

    def of(self, points: NDArray[np.float64]) -> NDArray[np.int64]:
        """(N,) the column that each of (N, 3) points in the frame is in."""
        strips = np.searchsorted(self.first, points[:, 0], "right")
        row = np.searchsorted(self.second, strips + self._place(points[:, 1]), "right") - strips * (self.side - 1)
        return strips * self.side + row

    def _place(self, second: NDArray[np.float64]) -> NDArray[np.float64]:
        """Along the second axis, 0 to less than 1."""
        return np.clip((second - self.low) / ((self.high - self.low) or 1.0), 0, 1 - 1e-9)


@dataclass(frozen=True, eq=False)
class Contents:
    """N Gaussians of a file in C cells; the second half of these are those of wide Gaussians.

    The three bytes of `cell` and `border` for each Gaussian are what grows with the file.
    """

    frame: Frame
    cell: NDArray[np.uint16]  # (N,)
    border: NDArray[np.bool_]  # (N,) which lie at borders
    counts: NDArray[np.int64]  # (C,)
    low: NDArray[np.float64]  # (C, 3) of the boxes, in the frame; infinite where the cell is empty
    high: NDArray[np.float64]  # (C, 3)

    def seen_by(self, viewmat: NDArray[np.float64], K: NDArray[np.float64], size: Sequence[int]) -> NDArray[np.bool_]:
        """(C,) cells that may reach into the pyramid of a view (4, 4), (3, 3), (width, height); never too few."""
        filled = np.flatnonzero(self.counts)
        half, turned = (self.high[filled] - self.low[filled]) / 2, viewmat[:3, :3] @ self.frame.rotation.T
        centers = (self.low[filled] + half) @ turned.T + viewmat[:3, 3]
        width, height = size
        corners = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]]) @ np.linalg.inv(K).T
        sides = [np.cross(corners[i], corners[(i + 1) % 4]) for i in range(4)]
        inside = np.ones(len(filled), np.bool_)
        for normal in (np.array([0.0, 0.0, 1.0]), *sides):  # pointing inwards
            inside &= centers @ normal > -(half @ np.abs(turned.T @ normal))
        seen = np.zeros(len(self.counts), np.bool_)
        seen[filled[inside]] = True
        return seen

    def look(self, viewmat: NDArray[np.float64], seen: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(2,) where on the ground a view looks: the mean of what it sees, the near more than the far."""
        cells = np.flatnonzero(seen[: len(seen) // 2])
        eye = self.frame.apply(-(viewmat[:3, :3].T @ viewmat[:3, 3])[None])[0]
        if not len(cells):
            return eye[:2]
        centers = (self.low[cells] + self.high[cells]) / 2
        weights = self.counts[cells] / np.maximum(((centers - eye) ** 2).sum(axis=1), 1e-12)
        return np.average(centers[:, :2], axis=0, weights=weights)


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """Views that are trained together, and the cells that they see."""

    views: NDArray[np.int64]  # ascending
    seen: NDArray[np.bool_]  # (C,)


def look_through(
    header: PlyHeader, patches: Sequence[Territory], frame: Frame, check: Callable[[], None] = lambda: None
) -> Contents:
    """Sort the Gaussians of a file into cells, in one pass; `check` is called now and then, and may raise."""
    sample = np.concatenate([frame.apply(rows[:, :3]) for rows in sample_rows(header, SAMPLE)] or [np.zeros((1, 3))])
    columns = Columns.over(sample, header.count)
    half = columns.side**2
    cell, border = np.empty(header.count, np.uint16), np.empty(header.count, np.bool_)
    low, high = np.full((3, 2 * half), np.inf), np.full((3, 2 * half), -np.inf)
    start = 0
    for rows in iter_rows(header):
        check()
        points, far = frame.apply(rows[:, :3]), SIGMAS * widest(rows)
        cells = columns.of(points) + half * is_wide(rows, patches)
        for axis in range(3):
            np.minimum.at(low[axis], cells, points[:, axis] - far)
            np.maximum.at(high[axis], cells, points[:, axis] + far)
        cell[start : start + len(rows)] = cells
        border[start : start + len(rows)] = at_borders(rows, patches, frame)
        start += len(rows)
    return Contents(frame, cell, border, np.bincount(cell, minlength=2 * half), low.T.copy(), high.T.copy())


@dataclass(frozen=True, eq=False)
class Looks:
    """C views, or tiles of views, and the cells that each sees (C, cells)."""

    views: Tiles
    seen: NDArray[np.bool_]
    blind: int  # pixels that see too much wherever they are cut


def looks(contents: Contents, views: Views, most: int) -> Looks:
    """Views, in tiles where they see more than `most` Gaussians.

    A photograph with a mask is not cut: no pixel of a tile might take part.
    """
    chosen, rectangles, seen, blind = [], [], [], 0
    for i in range(len(views)):
        width, height = (int(n) for n in views.sizes[i])
        waiting: list[Rectangle] = [(0, 0, width, height)]
        while waiting:
            left, top, width, height = one = waiting.pop()
            K = views.Ks[i] - np.array([[0, 0, left], [0, 0, top], [0, 0, 0]])
            cells = contents.seen_by(views.viewmats[i], K, (width, height))
            if contents.counts[cells].sum() <= most:
                chosen.append(i)
                rectangles.append(one)
                seen.append(cells)
            elif max(width, height) >= 2 * LEAST_SIDE and not (views.masks and views.masks[i]):
                waiting += halves(one)[::-1]
            else:
                blind += width * height
    table = np.array(seen, np.bool_).reshape(len(seen), len(contents.counts))
    return Looks(Tiles.cut(views, chosen, rectangles), table, blind)


def neighbourhoods(contents: Contents, looks: Looks, most: int) -> list[Neighbourhood]:
    """Parts of the views that see at most `most` Gaussians each; views that see no border belong to none."""
    viewmats = looks.views.viewmats
    places = [contents.look(viewmat, cells) for viewmat, cells in zip(viewmats, looks.seen, strict=True)]
    ground = np.array(places).reshape(-1, 2)
    bordering = np.bincount(contents.cell[contents.border], minlength=len(contents.counts)) > 0
    found, waiting = [], [np.flatnonzero((looks.seen & bordering).any(axis=1))]
    while waiting:
        part = waiting.pop()
        cells = np.asarray(looks.seen[part].any(axis=0))
        if contents.counts[cells].sum() <= most:
            found.append(Neighbourhood(part, cells))
        else:
            axis = int(np.argmax(np.ptp(ground[part], axis=0)))
            order = part[np.argsort(ground[part, axis], kind="stable")]
            waiting += [np.sort(order[len(part) // 2 :]), np.sort(order[: len(part) // 2])]
    return [part for part in found if len(part.views)]
