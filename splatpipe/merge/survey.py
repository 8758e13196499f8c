"""How thickly each patch covers the ground, in its own core and in its neighbours', before anything is cut off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splatpipe.merge.clean import Cleaning, not_finite
from splatpipe.merge.grid import OUTSIDE, Grid
from splatpipe.merge.ownership import Loans, Territory, reach, touching
from splatpipe.merge.rows import Rows, thickness
from splatpipe.patches.frame import Frame
from splatpipe.splatting.ply import PlyHeader, sample_rows

SAMPLE = 1 << 17  # rows read of each part, spread evenly over its file
PER_CELL = 32  # sampled Gaussians of one patch in one cell, on average


@dataclass(frozen=True, eq=False)
class Survey:
    """One record for each patch (`source`), patch in whose core it looked (`owner`) and cell: R records.

    `source` and `owner` are indices into `ids`; thickness is optical thickness (-log of transparency) averaged over
    the cell, `left` what the rules of cleaning leave of it (those that ask for no neighbours).
    """

    grid: Grid
    ids: tuple[str, ...]
    trained: NDArray[np.bool_]  # (len(ids),) which of them have a part, be it empty
    source: NDArray[np.int64]  # (R,)
    owner: NDArray[np.int64]  # (R,)
    cell: NDArray[np.int64]  # (R,)
    thickness: NDArray[np.float64]  # (R,)
    left: NDArray[np.float64]  # (R,)

    def best(self) -> NDArray[np.float64]:
        """(cells,) thickness of whichever patch covers the cell best."""
        n = self.grid.cells
        total = np.bincount(self.source * n + self.cell, self.thickness, len(self.ids) * n)
        return total.reshape(len(self.ids), n).max(axis=0)


def survey(
    headers: Mapping[str, PlyHeader],
    territories: Sequence[Territory],
    frame: Frame,
    grid: Grid,
    cleaning: Cleaning,
    sample: int = SAMPLE,
) -> Survey:
    """Look at the unclipped parts. A patch is believed within its buffered box only; wide Gaussians do not count."""
    places = sorted(territories, key=lambda territory: territory.id)
    tables, widest = [], reach(places) / 3
    for source, place in enumerate(places):
        if place.id in headers:
            near = [i for i, one in enumerate(places) if i == source or touching(one.core, place.buffered)]
            tables.append(_survey_part(headers[place.id], source, near, places, frame, grid, cleaning, sample, widest))
    table = np.concatenate([*tables, np.zeros((0, 5))])
    source_, owner, cell = table[:, :3].astype(np.int64).T
    ids = tuple(one.id for one in places)
    trained = np.array([one in headers for one in ids])
    return Survey(grid, ids, trained, source_, owner, cell, table[:, 3], table[:, 4])


def cells_for(headers: Mapping[str, PlyHeader], sample: int = SAMPLE) -> int:
    """How many cells the sampled Gaussians can fill."""
    return max(sum(min(header.count, sample) for header in headers.values()) // PER_CELL, 64)


def find_loans(surveyed: Survey, thin: float) -> Loans:
    """Where an owner covers less than the share `thin` of what a neighbour covers, the neighbour with most of it.

    Of the owner counts what cleaning leaves, of the neighbour all, as on the coverage map; and it must have more left.
    """
    n = surveyed.grid.cells
    own = np.zeros((len(surveyed.ids), n))
    mine = surveyed.source == surveyed.owner
    covered, left = -np.expm1(-surveyed.thickness), -np.expm1(-surveyed.left)  # shares of the light from below
    own[surveyed.owner[mine], surveyed.cell[mine]] = left[mine]
    trained = surveyed.trained[surveyed.owner]  # the core of a missing patch is filled by another rule
    offers = np.flatnonzero(~mine & trained)
    owned = own[surveyed.owner[offers], surveyed.cell[offers]]
    offers = offers[(owned < thin * covered[offers]) & (owned < left[offers])]
    # The best offer for each owner and cell comes first; the first id among equals.
    order = np.lexsort((surveyed.source[offers], -left[offers], surveyed.cell[offers], surveyed.owner[offers]))
    offers = offers[order]
    _, first = np.unique(surveyed.owner[offers] * n + surveyed.cell[offers], return_index=True)
    loans: dict[tuple[str, str], list[int]] = {}
    for i in offers[first]:
        pair = (surveyed.ids[surveyed.owner[i]], surveyed.ids[surveyed.source[i]])
        loans.setdefault(pair, []).append(int(surveyed.cell[i]))
    return Loans(surveyed.grid, {pair: np.array(sorted(cells), np.int64) for pair, cells in sorted(loans.items())})


def _survey_part(
    header: PlyHeader,
    source: int,
    near: Sequence[int],
    places: Sequence[Territory],
    frame: Frame,
    grid: Grid,
    cleaning: Cleaning,
    sample: int,
    widest: float,
) -> NDArray[np.float64]:
    """(R, 5): source, owner, cell, thickness, what is left of it; ascending by owner and cell."""
    pieces, seen = [], 0
    for rows in sample_rows(header, sample):
        seen += len(rows)
        rows = rows[~not_finite(rows)]
        dropped = np.logical_or.reduce(list(cleaning.dropped(rows).values()))
        pieces.append(_tally(rows, dropped, source, near, places, frame, grid, widest))
    table = np.concatenate([*pieces, np.zeros((0, 5))])
    keys, place = np.unique(table[:, 1] * grid.cells + table[:, 2], return_inverse=True)
    sums = [np.bincount(place, table[:, k], len(keys)) * (header.count / max(seen, 1)) for k in (3, 4)]
    return np.column_stack([np.full(len(keys), source), keys // grid.cells, keys % grid.cells, *sums])


def _tally(
    rows: Rows,
    dropped: NDArray[np.bool_],
    source: int,
    near: Sequence[int],
    places: Sequence[Territory],
    frame: Frame,
    grid: Grid,
    widest: float,
) -> NDArray[np.float64]:
    """One record for each owner and cell of a chunk."""
    points = frame.apply(rows[:, :3])
    owner = np.full(len(rows), OUTSIDE)
    for i in near:
        inside = places[i].core.contains(points)
        owner[inside if i == source else inside & places[source].buffered.contains(points)] = i
    cell = grid.cell(points)
    weight = thickness(rows, grid.edge**2, widest)
    known = (owner != OUTSIDE) & (cell != OUTSIDE) & (weight > 0)
    keys, place = np.unique(owner[known] * grid.cells + cell[known], return_inverse=True)
    sums = [np.bincount(place, one[known], len(keys)) for one in (weight, weight * ~dropped)]
    return np.column_stack([np.full(len(keys), source), keys // grid.cells, keys % grid.cells, *sums])
