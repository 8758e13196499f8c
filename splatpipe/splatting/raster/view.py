"""One camera's pass over the Gaussians: project, sort by depth, list every tile's Gaussians, blend; and back.

Every intersection of a Gaussian with a tile has its own place for gradients, so nothing is added
atomically and the result does not depend on the number of threads.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splatpipe.splatting.raster import pool, tiles, workspace
from splatpipe.splatting.raster.blend import AHEAD, PIXELS, blend, blend_backward
from splatpipe.splatting.raster.projection import RECORD, project
from splatpipe.splatting.raster.projection_backward import SLOT, project_backward
from splatpipe.splatting.raster.tiles import ENTRY, ITEM
from splatpipe.splatting.raster.workspace import Workspace

Floats = NDArray[np.float32]
_MAX_SLOTS = 2**26  # intersections; their lists and gradients would take 6 GB, a step half a minute


class TooManyIntersections(MemoryError):
    """The Gaussians cover the image so often that their tile lists would not fit."""

    def __init__(self, count: int) -> None:
        super().__init__(f"{count} tile intersections are too many for one image: the Gaussians are far too large.")
        self.count = count


@dataclass(frozen=True)
class Frame:
    """What is the same for every camera of one call."""

    width: int
    height: int
    degree: int  # SH degree in use; -1: colours are given
    planes: tuple[float, float]  # near, far
    eps2d: float
    antialiased: bool

    @property
    def bands(self) -> int:
        """SH coefficients in use beyond the first."""
        return max(0, (self.degree + 1) ** 2 - 1)


@dataclass(frozen=True)
class Gaussians:
    """Flat float32 views of the inputs, as the kernels read them."""

    means: Floats
    quats: Floats
    scales: Floats
    opacities: Floats
    base: Floats
    base_stride: int
    rest: Floats
    rest_stride: int
    rest_offset: int

    @property
    def count(self) -> int:
        return self.opacities.size


def _chunks(count: int, least: int) -> int:
    """Chunks for a loop over `count` things: enough to balance the threads, none smaller than `least`."""
    return max(1, min(4 * pool.threads(), count // least))


class View:
    """One camera's pass over the Gaussians, in a workspace."""

    def __init__(self, frame: Frame, gaussians: Gaussians, camera: Floats, background: Floats) -> None:
        self.frame, self.gaussians, self.camera, self.background = frame, gaussians, camera, background
        self.across, self.down = tiles.tile_grid(frame.width, frame.height)
        self.space: Workspace = workspace.take()
        self.generation = self.space.generation
        self.intersections = 0
        self._slots = 0  # capacity, in intersections, of the numbering

    @property
    def tile_count(self) -> int:
        return self.across * self.down

    def render(self, image: Floats, alphas: Floats, radii: NDArray[np.int32], means2d: Floats, depths: Floats) -> None:
        """Fill the outputs of this camera (all flat)."""
        self._project(radii, means2d, depths)
        self._list_tiles(depths)
        self._blend(image, alphas)

    def _project(self, radii: NDArray[np.int32], means2d: Floats, depths: Floats) -> None:
        g, f, space, n = self.gaussians, self.frame, self.space, self.gaussians.count
        records = space.array("records", RECORD * n)
        first = space.array("slot_first", n, np.int32)
        count = space.array("slot_count", n, np.int32)
        ranges = [(8 * a, min(8 * b, n)) for a, b in pool.spans(-(-n // 8), _chunks(n, 1024))]
        room = max(self.tile_count, 2 * n // max(1, len(ranges)))
        while True:
            room = max(room, space.array("entries", 1, np.int32).size // (ENTRY * max(1, len(ranges))))
            entries = space.array("entries", ENTRY * room * len(ranges), np.int32)
            used = [0] * len(ranges)

            def task(chunk: int, room: int = room, entries: Any = entries, used: list[int] = used) -> None:
                begin = room * chunk
                used[chunk] = project(
                    *ranges[chunk], g.means, g.quats, g.scales, g.opacities, f.degree,
                    g.base, g.base_stride, g.rest, g.rest_stride, g.rest_offset,
                    self.camera, f.width, f.height, records, first, count,
                    entries, begin, begin + room, radii, means2d, depths,
                ) - begin  # fmt: skip

            pool.run(task, len(ranges))
            if max(used, default=0) * len(ranges) > _MAX_SLOTS:
                raise TooManyIntersections(sum(used))
            if max(used, default=0) <= room:
                break
            room = max(used) * 3 // 2
        self.intersections, self._slots = sum(used), room * len(ranges)

    def _list_tiles(self, depths: Floats) -> None:
        space, n, count = self.space, self.gaussians.count, self.tile_count
        slot_first, slot_count = space.array("slot_first", n, np.int32), space.array("slot_count", n, np.int32)
        keys, spare = (space.array(name, 2 * n, np.int32)[: 2 * n].view(np.int64) for name in ("keys", "spare"))
        entries = space.array("entries", 1, np.int32)
        visible = tiles.sort_by_depth(depths, slot_count, keys, spare)
        ranges = pool.spans(visible, _chunks(visible, 4096)) if visible else []
        counts = space.array("counts", count * max(1, len(ranges)), np.int32)
        counts[: count * len(ranges)] = 0
        offsets = space.array("offsets", count + 1, np.int32)
        items = space.array("items", ITEM * (self.intersections + AHEAD), np.int32)

        def count_chunk(chunk: int) -> None:
            part = counts[count * chunk : count * (chunk + 1)]
            tiles.count_tiles(keys, *ranges[chunk], slot_first, slot_count, entries, part)

        def fill_chunk(chunk: int) -> None:
            part = counts[count * chunk : count * (chunk + 1)]
            tiles.fill_tiles(keys, *ranges[chunk], slot_first, slot_count, entries, part, items)

        pool.run(count_chunk, len(ranges))
        tiles.place_tiles(counts, len(ranges), count, offsets)
        pool.run(fill_chunk, len(ranges))

    def _tile_ranges(self) -> list[tuple[int, int]]:
        """Runs of tiles with about equal numbers of intersections."""
        count = self.tile_count
        offsets = self.space.array("offsets", count + 1, np.int32)[: count + 1]
        work = offsets.astype(np.int64) + 8 * np.arange(count + 1)  # a tile costs something even when empty
        parts = min(8 * pool.threads(), count)
        edges = np.unique(np.searchsorted(work, work[-1] * np.arange(1, parts) // parts))
        edges = np.concatenate([[0], edges[(edges > 0) & (edges < count)], [count]])
        return [(int(a), int(b)) for a, b in itertools.pairwise(edges)]

    def _tile_arrays(self) -> tuple[Any, ...]:
        space, count = self.space, self.tile_count
        return (
            space.array("records", 1),
            space.array("offsets", count + 1, np.int32),
            space.array("items", 1, np.int32),
            space.array("transmittance", PIXELS * count),
            space.array("ends", PIXELS * count),
            self.background,
        )

    def _blend(self, image: Floats, alphas: Floats) -> None:
        ranges, arrays = self._tile_ranges(), self._tile_arrays()
        width, height = self.frame.width, self.frame.height
        pool.run(lambda chunk: blend(*ranges[chunk], width, height, *arrays, image, alphas), len(ranges))

    def backward(self, v_image: Floats, v_alphas: Floats, outputs: Sequence[Floats]) -> None:
        """Write the gradients of means, quats, scales, opacities, base and rest (flat) for this camera."""
        if self.space.generation != self.generation:
            raise RuntimeError("backward a second time, but another rasterization has taken the workspace since")
        g, f, space, n = self.gaussians, self.frame, self.space, self.gaussians.count
        slots = space.array("slots", SLOT * self._slots)
        ranges, arrays = self._tile_ranges(), self._tile_arrays()

        def tiles_task(chunk: int) -> None:
            blend_backward(*ranges[chunk], f.width, f.height, *arrays, v_image, v_alphas, slots)

        pool.run(tiles_task, len(ranges))
        parts = [(8 * a, min(8 * b, n)) for a, b in pool.spans(-(-n // 8), _chunks(n, 1024))]
        first, count = space.array("slot_first", n, np.int32), space.array("slot_count", n, np.int32)

        def gaussians_task(chunk: int) -> None:
            project_backward(
                *parts[chunk], g.means, g.quats, g.scales, g.opacities, f.degree,
                g.base, g.base_stride, g.rest, g.rest_stride, g.rest_offset,
                self.camera, arrays[0], first, count, slots, *outputs,
            )  # fmt: skip

        pool.run(gaussians_task, len(parts))
        self.release()

    def release(self) -> None:
        """Let other passes have the workspace."""
        workspace.give_back(self.space)
