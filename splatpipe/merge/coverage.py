"""A top-down map of how well the ground is covered, before and after merging: holes have no place to hide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion

from splatpipe.files import atomic_path
from splatpipe.merge.grid import Grid
from splatpipe.merge.ownership import Territory
from splatpipe.merge.rows import Rows, thickness

SEEN = 0.1  # a cell that the best patch covers less than this was not reconstructed by anybody
HOLE = 0.5  # share of the best patch's coverage below which the merged splat has a hole there
PANEL = 480  # pixels, longer side


@dataclass(frozen=True, eq=False)
class Coverage:
    """Covered share of each ground cell, (rows, columns), 0 to 1."""

    grid: Grid
    before: NDArray[np.float64]  # by whichever patch covers the cell best, unclipped
    after: NDArray[np.float64]  # by the merged splat

    @property
    def holes(self) -> NDArray[np.bool_]:
        """Cells that a patch covered and the merged splat does not."""
        return np.asarray((self.before >= SEEN) & (self.after < HOLE * self.before))

    @property
    def covered_cells(self) -> int:
        return int((self.before >= SEEN).sum())

    def sentence(self) -> str:
        """How many cells are holes, and where the first is, on the ground of the frame."""
        at = np.flatnonzero(self.holes)
        where = (
            f"; the first at {'{:.4g}, {:.4g}'.format(*self.grid.center(int(at[0])))} of the ground" if len(at) else ""
        )
        return f"{len(at)} of {self.covered_cells} covered ground cells are holes in the merged splat{where}"

    def draw(self, path: Path, territories: Sequence[Territory], missing: Sequence[str]) -> None:
        """Write a PNG: unclipped patches, merged splat, and holes in red; cores outlined, missing ones in red."""
        panels = [_gray(self.before), _gray(self.after), _gray(self.after)]
        panels[2][self.holes] = (220, 30, 30)
        factor = max(1, PANEL // max(self.before.shape))
        titles = ("patches, unclipped", "merged", f"holes: {int(self.holes.sum())} of {self.covered_cells} cells")
        height, width = (n * factor for n in self.before.shape)
        canvas = Image.new("RGB", (3 * width + 40, height + 40), "white")
        pictures = [Image.fromarray(one[::-1]).resize((width, height), Image.Resampling.NEAREST) for one in panels]
        for territory in territories:
            _outline(pictures, territory.id, *self._core(territory, factor), territory.id in missing)
        for i, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
            canvas.paste(picture, (10 + i * (width + 10), 30))
            ImageDraw.Draw(canvas).text((12 + i * (width + 10), 8), title, "black", ImageFont.load_default(14))
        with atomic_path(path) as temporary:
            canvas.save(temporary, format="PNG")

    def _core(self, territory: Territory, factor: int) -> tuple[tuple[int, int], NDArray[np.bool_]]:
        """Left and top of the box round a core on a panel, and which of its pixels (rows, columns) lie in the core."""
        middles = [
            low + (np.arange(n * factor) + 0.5) * self.grid.edge / factor
            for low, n in zip(self.grid.low, (self.grid.columns, self.grid.rows), strict=True)
        ]
        core = territory.core
        (left, right), (low, high) = (
            np.searchsorted(axis, (core.lower[i], core.upper[i])).tolist() for i, axis in enumerate(middles)
        )
        x, y = middles[0][left:right], middles[1][low:high][::-1]
        places = np.stack([*np.meshgrid(x, y), np.zeros((len(y), len(x)))], axis=-1)  # cores know no height
        return (left, len(middles[1]) - high), core.contains(places.reshape(-1, 3)).reshape(len(y), len(x))


class CoverageTally:
    """Adds up the thickness of Gaussians as they are written; those above `widest` (a length) do not count."""

    def __init__(self, grid: Grid, widest: float) -> None:
        self.grid, self._widest = grid, widest
        self._thickness = np.zeros(grid.cells)

    def add(self, points: NDArray[np.float64], rows: Rows) -> None:
        """Rows with their positions in the grid's frame, (N, 3)."""
        cell = self.grid.cell(points) + 1  # the first bin takes what lies outside
        self._thickness += np.bincount(cell, thickness(rows, self.grid.edge**2, self._widest), self.grid.cells + 1)[1:]

    def against(self, best: NDArray[np.float64]) -> Coverage:
        """The map, given the thickness (cells,) of the best unclipped patch."""
        shape = (self.grid.rows, self.grid.columns)
        return Coverage(self.grid, -np.expm1(-best).reshape(shape), -np.expm1(-self._thickness).reshape(shape))


def _outline(
    pictures: Sequence[Image.Image], name: str, corner: tuple[int, int], inside: NDArray[np.bool_], missing: bool
) -> None:
    if not inside.any():
        return
    color, font = "red" if missing else "orange", ImageFont.load_default(12)
    rim = Image.fromarray(inside & ~binary_erosion(inside, iterations=3 if missing else 1))
    top = int(np.argmax(inside.any(axis=1)))
    columns = np.flatnonzero(inside[top])
    at = corner[0] + int(columns[0]) + 4, corner[1] + top + 4
    named = missing or 8 + font.getlength(name) <= len(columns)  # names over each other tell nothing
    for draw in map(ImageDraw.Draw, pictures):
        draw.bitmap(corner, rim, fill=color)
        if named:
            draw.text(at, name, color, font, stroke_width=2, stroke_fill="black")


def _gray(covered: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.repeat((covered * 255).astype(np.uint8)[:, :, None], 3, axis=2)
