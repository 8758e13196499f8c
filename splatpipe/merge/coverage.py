"""A top-down map of how well the ground is covered, before and after merging: holes have no place to hide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

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
        for i, (panel, title) in enumerate(zip(panels, titles, strict=True)):
            picture = Image.fromarray(panel[::-1]).resize((width, height), Image.Resampling.NEAREST)
            draw = ImageDraw.Draw(picture)
            for territory in territories:
                self._outline(draw, territory, factor, territory.id in missing)
            canvas.paste(picture, (10 + i * (width + 10), 30))
            ImageDraw.Draw(canvas).text((12 + i * (width + 10), 8), title, "black", ImageFont.load_default(14))
        with atomic_path(path) as temporary:
            canvas.save(temporary, format="PNG")

    def _outline(self, draw: ImageDraw.ImageDraw, territory: Territory, factor: int, missing: bool) -> None:
        size = np.array([self.grid.columns, self.grid.rows])
        edges = [(bound[:2] - np.array(self.grid.low)) / self.grid.edge for bound in _bounds(territory)]
        (left, bottom), (right, top) = (np.clip(edge, 0, size) * factor for edge in edges)
        if right <= left or top <= bottom:
            return
        color, height = ("red" if missing else "orange"), size[1] * factor
        draw.rectangle((left, height - top, right - 1, height - bottom - 1), outline=color, width=3 if missing else 1)
        font = ImageFont.load_default(12)
        if missing or 8 + font.getlength(territory.id) <= right - left:  # names over each other tell nothing
            draw.text((left + 4, height - top + 4), territory.id, color, font, stroke_width=2, stroke_fill="black")


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


def _gray(covered: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.repeat((covered * 255).astype(np.uint8)[:, :, None], 3, axis=2)


def _bounds(territory: Territory) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper corner with large finite numbers for infinite sides."""
    core = territory.core
    return np.nan_to_num(core.lower, neginf=-1e9, posinf=1e9), np.nan_to_num(core.upper, neginf=-1e9, posinf=1e9)
