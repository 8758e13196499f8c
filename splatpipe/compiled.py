"""Loops over millions of records as machine code, and work shared out among threads."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splatpipe.machine import usable_cores

FEW = 30_000  # steps of a loop below which loading a compiler takes longer than the interpreter
PART = 200_000  # steps below which a thread of its own is not worth starting


@cache
def compiled(function: Callable[..., Any], fused: bool = False) -> Any:
    """`function` as machine code without the GIL, kept beside its source or in the user's cache, if one is writable.

    `fused` lets a product and a sum round once, where a last digit does not matter.
    """
    import numba

    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"} if fused else False}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba found no folder to keep it in
        return numba.njit(**options)(function)


def fast(function: Callable[..., Any], steps: int) -> Any:
    """`function` itself if its loop takes few steps, else `compiled`; both do the same."""
    return compiled(function) if steps > FEW else function


def in_parts(work: Callable[[int, int], Any], weights: NDArray[np.integer] | int) -> list[Any]:
    """`work(first, last)` for consecutive ranges of items, at the same time; results in order.

    The ranges have about equal weight; a number instead of weights means that so many items weigh 1 each.
    """
    items, total = (weights, weights) if isinstance(weights, int) else (len(weights), int(weights.sum()))
    parts = min(usable_cores(), max(total // PART, 1))
    wanted = np.arange(1, parts) * (total / parts)
    edges = wanted if isinstance(weights, int) or parts == 1 else np.searchsorted(np.cumsum(weights), wanted)
    bounds = [0, *(int(at) for at in edges), items]
    ranges = [(first, last) for first, last in itertools.pairwise(bounds) if last > first]
    if len(ranges) < 2:
        return [work(first, last) for first, last in ranges]
    with ThreadPoolExecutor(len(ranges)) as pool:
        return list(pool.map(lambda one: work(*one), ranges))
