"""Arrays that outlive a step: fresh pages cost more than the arithmetic done on them."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_LINE = 16  # float32 in a cache line


def aligned(count: int, dtype: type) -> NDArray[Any]:
    """An uninitialised array of `count` 4-byte elements that starts on a cache line."""
    raw: NDArray[Any] = np.empty(count + _LINE, dtype)
    skip = -(raw.ctypes.data // raw.itemsize) % _LINE
    return raw[skip : skip + count]


class Workspace:
    """Named arrays that only ever grow. One forward pass owns it until its backward pass is over."""

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[Any]] = {}
        self.generation = 0  # which forward pass filled it last

    def array(self, name: str, count: int, dtype: type = np.float32) -> NDArray[Any]:
        """At least `count` elements under this name; contents are lost when it has to grow (by half or more)."""
        held = self._arrays.get(name)
        if held is None or held.size < count:
            held = aligned(max(count, 0 if held is None else held.size * 3 // 2), dtype)
            self._arrays[name] = held
        return held


_free: list[Workspace] = []


def take() -> Workspace:
    """A workspace nobody uses, marked with a new generation."""
    workspace = _free.pop() if _free else Workspace()
    workspace.generation += 1
    return workspace


def give_back(workspace: Workspace) -> None:
    """Let the next forward pass have it. Its contents stay until then."""
    if workspace not in _free:
        _free.append(workspace)


@dataclass
class _Buffer:
    array: NDArray[np.float32]  # (rows, width)
    used: int = 0  # columns from here on are zero

    def references(self) -> int:
        return sys.getrefcount(self.array)


_UNUSED = _Buffer(np.zeros((1, 1), np.float32)).references()  # differs between Python versions


class GradientBuffers:
    """Tensors over memory that is used again as soon as no tensor refers to it.

    A gradient handed to autograd lives until the optimiser's `zero_grad`; then the same pages serve the
    next step. "No tensor refers to it" is the array's own reference count.
    """

    def __init__(self) -> None:
        self._buffers: list[_Buffer] = []

    def take(self, shape: tuple[int, ...], used: int) -> tuple[torch.Tensor, NDArray[np.float32]]:
        """A tensor of this shape, and the same memory flat. Columns are what follows the first axis.

        The caller fills the columns below `used`; the others are 0. Whoever holds the tensor may scale it
        in place, but must not add to columns from `used` on.
        """
        buffer = self._find(shape[0], math.prod(shape[1:]))
        if buffer.used > used:
            buffer.array[:] = 0
        buffer.used = used
        return torch.from_numpy(buffer.array.reshape(shape)), buffer.array.reshape(-1)

    def _find(self, rows: int, width: int) -> _Buffer:
        for buffer in self._buffers:
            if buffer.array.shape == (rows, width) and buffer.references() == _UNUSED:
                return buffer
        # another number of Gaussians than before: what was kept for the old one goes
        self._buffers = [b for b in self._buffers if b.array.shape[0] == rows or b.references() > _UNUSED]
        self._buffers.append(_Buffer(np.zeros((rows, width), np.float32)))
        return self._buffers[-1]
