"""What a core or a buffer of any shape looks like from above: rings of corners, for pictures."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from splatpipe.patches.box import Box
from splatpipe.patches.region import Region, Ring, distance_to_ring
from splatpipe.patches.union import parts_of

STEPS = (64, 1000)  # at least, of a shape with slanting edges, along its own longer side and along the ground's
COARSE = 100  # the latter where only a middle is looked for
WORK = 1e8  # at most, places times corners
LOOSE = 1.5  # of a step: the middles of places tell no more of where an edge is
SPOTS = 24  # places each way at which the middle of a shape is looked for

Places = NDArray[np.float64]


def rings_of(shape: Box, low: Places, high: Places, steps: int = STEPS[1]) -> tuple[Ring, ...]:
    """The outline of a shape on the ground between two corners (>= 2,), along whose edge it closes.

    Counterclockwise round what is inside, clockwise round holes, the first corner not repeated; none where nothing of
    the shape lies on that ground. Boxes and unions of boxes are exact, others to about one of `steps` along the ground.
    """
    lower, upper = np.maximum(shape.lower[:2], low[:2]), np.minimum(shape.upper[:2], high[:2])
    if (lower >= upper).any():
        return ()
    outlined = [part for part in parts_of(shape) if isinstance(part, Region)]
    if outlined:
        step = _step(outlined, upper - lower, float((high - low)[:2].max()) / steps)
        x, y = (np.linspace(lower[i], upper[i], int(np.ceil((upper - lower)[i] / step)) + 1) for i in (0, 1))
    else:
        step = 0.0
        sides = np.array([[part.lower[:2], part.upper[:2]] for part in parts_of(shape)]).reshape(-1, 2)
        x, y = (np.unique(np.clip(sides[:, i], lower[i], upper[i])) for i in (0, 1))
    inside = shape.contains(_grid((x[:-1] + x[1:]) / 2, (y[:-1] + y[1:]) / 2)).reshape(len(y) - 1, len(x) - 1)
    traced = [np.stack([x[ring[:, 0]], y[ring[:, 1]]], axis=1) for ring in _traced(inside)]
    return tuple(ring for ring in (_simplified(one, LOOSE * step) for one in traced) if len(ring) > 2)


def middle_of(shape: Box, low: Places, high: Places) -> tuple[Places, float]:
    """The place (2,) of a shape on that ground which is farthest from its outline, and how far; of a box its middle."""
    lower, upper = (np.clip(side[:2], low[:2], high[:2]) for side in (shape.lower, shape.upper))
    rings = () if type(shape) is Box else rings_of(shape, low, high, COARSE)
    if not rings:
        return (lower + upper) / 2, float((upper - lower).min()) / 2
    steps = (np.arange(SPOTS) + 0.5) / SPOTS
    spots = _grid(*(lower[i] + steps * (upper - lower)[i] for i in (0, 1)))
    away = np.min([distance_to_ring(ring, spots[:, :2]) for ring in rings], axis=0) * shape.contains(spots)
    best = int(np.argmax(away))
    return spots[best, :2], float(away[best])


def _step(outlined: list[Region], size: Places, finest: float) -> float:
    corners = sum(len(edge) for part in outlined for edge in (*part.edges, *part.others))
    most = WORK / max(corners, 1)
    return max(min(float(size.max()) / STEPS[0], finest), float(np.sqrt(size.prod() / most)))


def _grid(x: Places, y: Places) -> Places:
    """(N, 3) places at height 0, for which no core asks; row by row."""
    flat = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    return np.column_stack([flat, np.zeros(len(flat))])


def _traced(inside: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """The borders of cells (rows, columns): rings (K, 2) of columns' and rows' lines, with the inside to their left."""
    padded, ahead = np.pad(inside, 1).astype(np.int8), defaultdict(list)
    lower, left = np.diff(padded[:, 1:-1], axis=0), np.diff(padded[1:-1], axis=1)
    for edges, ends in ((lower, ((0, 0), (1, 0))), (left, ((0, 1), (0, 0)))):
        for row, column in np.argwhere(edges).tolist():
            start, end = ((column + x, row + y) for x, y in ends[:: edges[row, column]])
            ahead[start].append(end)
    rings = []
    while ahead:
        ring, at = [], next(iter(ahead))
        while at in ahead:  # as many lines leave a corner as reach it: this ends where it began
            ring.append(at)
            after = ahead[at].pop()
            if not ahead[at]:
                del ahead[at]
            at = after
        rings.append(np.array(ring))
    return rings


def _simplified(ring: Ring, loose: float) -> Ring:
    """Without the corners that lie within `loose` of a line between others (Ramer, Douglas and Peucker)."""
    first = int(np.argmax(np.linalg.norm(ring - ring.mean(axis=0), axis=1)))
    ring = np.roll(ring, -first, axis=0)
    far = int(np.argmax(np.linalg.norm(ring - ring[0], axis=1)))
    closed = np.concatenate([ring, ring[:1]])
    kept, spans = {0, far}, [(0, far), (far, len(ring))]
    while spans:
        i, j = spans.pop()
        (x, y), between = closed[j] - closed[i], closed[i + 1 : j] - closed[i]
        away = np.abs(x * between[:, 1] - y * between[:, 0]) / max(float(np.hypot(x, y)), 1e-300)
        if len(away) and away.max() > loose:
            k = i + 1 + int(np.argmax(away))
            kept.add(k)
            spans += [(i, k), (k, j)]
    return ring[sorted(kept)]
