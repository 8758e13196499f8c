"""Distances between neighbouring points for every patch of a large scene, several times as fast as by a k-d tree.

`splatting.spacing.neighbour_distances` gives the same numbers for one training, and judges these in the tests.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from splatpipe.compiled import compiled, in_parts

LEAF = 8
FAN = 8


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
    lined_up = points[order]
    lower, upper, levels = _boxes(lined_up)
    axes = np.full((3, int(levels[1]) * LEAF), np.inf)  # whole leaves: places without a point are infinitely far
    axes[:, : len(points)] = lined_up.T
    found = np.full((len(points), 3), np.inf)
    search = compiled(_search)
    in_parts(lambda i, j: search(np.empty((6, LEAF)), axes, lower, upper, levels, i, j, found), int(levels[1]))
    known = min(len(points) - 1, 3)
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


def _search(lanes, axes, lower, upper, levels, first, last, found):  # type: ignore[no-untyped-def]
    """Squared distances for the points in the leaves from `first` to `last`; a leaf's points search together.

    Compiled. The points in a leaf and beside it come first and give a bound within which all boxes are then looked up.
    Each of `lanes` (6, LEAF) is one of the leaf's points with its three least squares so far; what is done to them has
    no branch, so that a processor does it to several at once.
    """
    top = len(levels) - 2
    stack, stack_levels, gaps = np.empty(128, np.int64), np.empty(128, np.int64), np.empty(128)
    for leaf in range(first, last):
        begin, end = leaf * LEAF, min(leaf * LEAF + LEAF, len(found))
        bound, size = np.inf, min(top, 1)
        for i in range(LEAF):
            for axis in range(3):
                lanes[axis, i], lanes[3 + axis, i] = axes[axis, begin + i], np.inf
        stack[0], stack_levels[0], gaps[0] = 0, top, 0.0
        for beside in (leaf - 1, leaf + 1, leaf):
            if 0 <= beside < levels[1]:
                stack[size], stack_levels[size], gaps[size] = beside, 0, 0.0
                size += 1
        while size > 0:
            size -= 1
            box, level = stack[size], stack_levels[size]
            if gaps[size] >= bound:
                continue
            if level > 0:
                for child in range(box * FAN, min(box * FAN + FAN, levels[level] - levels[level - 1])):
                    if level == 1 and leaf - 1 <= child <= leaf + 1:
                        continue
                    at = levels[level - 1] + child
                    gap = 0.0
                    for axis in range(3):
                        apart = max(lower[at, axis] - upper[leaf, axis], lower[leaf, axis] - upper[at, axis], 0.0)
                        gap += apart * apart
                    if gap < bound:
                        stack[size], stack_levels[size], gaps[size] = child, level - 1, gap
                        size += 1
                continue
            start = box * LEAF
            xs, ys, zs = axes[0, start : start + LEAF], axes[1, start : start + LEAF], axes[2, start : start + LEAF]
            shift = start - begin
            for i in range(lanes.shape[1]):
                x, y, z = lanes[0, i], lanes[1, i], lanes[2, i]
                one, two, three = lanes[3, i], lanes[4, i], lanes[5, i]
                for j in range(LEAF):
                    a, b, c = x - xs[j], y - ys[j], z - zs[j]
                    square = a * a + b * b + c * c
                    square = np.inf if i == j + shift else square
                    farther, one = max(one, square), min(one, square)
                    farthest, two = max(two, farther), min(two, farther)
                    three = min(three, farthest)
                lanes[3, i], lanes[4, i], lanes[5, i] = one, two, three
            bound = 0.0
            for i in range(end - begin):
                bound = max(bound, lanes[5, i])
        for i in range(begin, end):
            for k in range(3):
                found[i, k] = lanes[3 + k, i - begin]
