"""Distances between neighbouring points for every patch of a large scene, several times as fast as by a k-d tree.

`splatting.spacing.neighbour_distances` gives the same numbers for one training, and judges these in the tests.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from splatpipe.compiled import compiled, in_parts

LEAF = 8  # points in a box of the lowest level
FAN = 8  # boxes in a box of the next level


def spatial_order(points: NDArray[np.floating]) -> NDArray[np.int64]:
    """(N,) an order of the points (N, 3) in which neighbours in space stand close."""
    from scipy.spatial import cKDTree

    return cKDTree(points, balanced_tree=False, compact_nodes=False).indices


def nearest_distances(points: NDArray[np.float64], order: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N, 3) distances from each of the (N, 3) points to its 3 nearest others, ascending; `order` is `spatial_order`.

    With N <= 3 the missing neighbours repeat the farthest one; a single point gets zeros.
    """
    if len(points) < 2:
        return np.zeros((len(points), 3))
    lined_up = np.ascontiguousarray(points[order])
    lower, upper, levels = _boxes(lined_up)
    found = np.full((len(points), 3), np.inf)
    search = compiled(_search)
    in_parts(lambda i, j: search(lined_up, lower, upper, levels, i, j, found), int(levels[1]))
    known = np.isfinite(found).sum(axis=1)[0]  # the same for all
    found[:, known:] = found[:, known - 1 : known]
    distances = np.empty_like(found)
    distances[order] = np.sqrt(found)
    return distances


def _boxes(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Lower and upper corners of the boxes of all levels, lowest first, and where each level begins."""
    starts = np.arange(0, len(points), LEAF)
    lowers, uppers = [np.minimum.reduceat(points, starts)], [np.maximum.reduceat(points, starts)]
    while len(lowers[-1]) > 1:
        starts = np.arange(0, len(lowers[-1]), FAN)
        lowers.append(np.minimum.reduceat(lowers[-1], starts))
        uppers.append(np.maximum.reduceat(uppers[-1], starts))
    levels = np.concatenate([[0], np.cumsum([len(level) for level in lowers])])
    return np.concatenate(lowers), np.concatenate(uppers), levels


def _search(points, lower, upper, levels, first, last, found):  # type: ignore[no-untyped-def]
    """Squared distances for the points in the leaves from `first` to `last`; a leaf's points search together.

    Compiled. The points beside a leaf come first and give a bound within which all boxes are then looked up.
    """
    n, top = len(points), len(levels) - 2
    stack, stack_levels = np.empty(128, np.int64), np.empty(128, np.int64)
    for leaf in range(first, last):
        begin, end = leaf * LEAF, min(leaf * LEAF + LEAF, n)
        near_begin, near_end = max(begin - LEAF, 0), min(end + LEAF, n)
        bound = 0.0
        size = 1
        stack[0], stack_levels[0] = -1, -1  # the neighbourhood
        started = False
        while size > 0:
            size -= 1
            box, level = stack[size], stack_levels[size]
            if level > 0:
                start, stop = box * FAN, min(box * FAN + FAN, levels[level] - levels[level - 1])
                for child in range(start, stop):
                    at = levels[level - 1] + child
                    gap = 0.0
                    for axis in range(3):
                        apart = max(lower[at, axis] - upper[leaf, axis], lower[leaf, axis] - upper[at, axis], 0.0)
                        gap += apart * apart
                    if gap < bound:
                        stack[size], stack_levels[size] = child, level - 1
                        size += 1
                continue
            start, stop = (near_begin, near_end) if level < 0 else (box * LEAF, min(box * LEAF + LEAF, n))
            if level == 0 and start >= near_begin and stop <= near_end:
                continue
            for i in range(begin, end):
                x, y, z = points[i, 0], points[i, 1], points[i, 2]
                one, two, three = found[i, 0], found[i, 1], found[i, 2]
                if level == 0:
                    a = max(lower[box, 0] - x, x - upper[box, 0], 0.0)
                    b = max(lower[box, 1] - y, y - upper[box, 1], 0.0)
                    c = max(lower[box, 2] - z, z - upper[box, 2], 0.0)
                    if a * a + b * b + c * c >= three:
                        continue
                for j in range(start, stop):
                    a, b, c = x - points[j, 0], y - points[j, 1], z - points[j, 2]
                    square = a * a + b * b + c * c
                    if square >= three or i == j:
                        continue
                    if square >= two:
                        three = square
                    elif square >= one:
                        two, three = square, two
                    else:
                        one, two, three = square, one, two
                found[i, 0], found[i, 1], found[i, 2] = one, two, three
            bound = 0.0
            for i in range(begin, end):
                bound = max(bound, found[i, 2])
            if not started:
                started = True
                stack[0], stack_levels[0], size = 0, top, 1
