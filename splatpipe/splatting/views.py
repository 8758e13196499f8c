"""The photographs of one training, decoded once and kept within a memory budget."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from splatpipe.errors import SceneError
from splatpipe.splatting.images import load_mask, load_pixels, scaled_K, training_size


@dataclass(frozen=True, eq=False)
class Decoded:
    """A photograph at training size: pixels (H, W, 3) RGB, black where mask (H, W) is False; None: no mask."""

    pixels: NDArray[np.uint8]
    mask: NDArray[np.bool_] | None

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes + (0 if self.mask is None else self.mask.nbytes)


Key = tuple[Path, Path | None, int, int]
DecodedViews = dict[Key, Decoded]
"""Photographs by file, mask, width and height."""


@dataclass(frozen=True, eq=False)
class Views:
    """C posed photographs: image paths, viewmats (C, 4, 4) world to camera, Ks (C, 3, 3), sizes (C, 2) in pixels."""

    names: tuple[str, ...]
    paths: tuple[Path, ...]
    viewmats: NDArray[np.float64]
    Ks: NDArray[np.float64]
    sizes: NDArray[np.int32]
    masks: tuple[Path | None, ...] = ()  # of each photograph, None without one; empty: there are none at all

    def __len__(self) -> int:
        return len(self.names)

    def take(self, index: NDArray[np.integer]) -> Views:
        """The views at `index`."""
        return Views(
            tuple(self.names[i] for i in index),
            tuple(self.paths[i] for i in index),
            self.viewmats[index],
            self.Ks[index],
            self.sizes[index],
            tuple(self.masks[i] for i in index) if self.masks else (),
        )

    def resized(self, downscale: float, max_width: int) -> Views:
        """The same views at training size, intrinsics scaled by the exact ratio along each axis."""
        sizes = np.array([training_size(int(w), int(h), downscale, max_width) for w, h in self.sizes], np.int32)
        rows = zip(self.Ks, self.sizes, sizes, strict=True)
        Ks = np.array([scaled_K(K, before, after) for K, before, after in rows]).reshape(-1, 3, 3)
        return Views(self.names, self.paths, self.viewmats, Ks, sizes.reshape(-1, 2), self.masks)

    def mask(self, index: int) -> NDArray[np.bool_] | None:
        """(H, W) True for the pixels of a photograph that take part; None where all do. Raises `SceneError`."""
        path = self.masks[index] if self.masks else None
        if path is None:
            return None
        width, height = (int(v) for v in self.sizes[index])
        mask = load_mask(path, width, height)
        if not mask.any():
            raise SceneError(f"{path} leaves nothing of its image at {width}x{height} pixels; remove it or the image")
        return mask

    def key(self, index: int) -> Key:
        """What the pixels of a view depend on."""
        width, height = (int(v) for v in self.sizes[index])
        return self.paths[index], self.masks[index] if self.masks else None, width, height

    def decode(self, index: int) -> Decoded:
        """A view's photograph. Raises `SceneError` when it, or its mask, cannot be read."""
        width, height = (int(v) for v in self.sizes[index])
        pixels, mask = load_pixels(self.paths[index], width, height), self.mask(index)
        if mask is not None:
            pixels[~mask] = 0
        return Decoded(pixels, mask)


@dataclass(frozen=True, eq=False)
class View:
    """One camera on the training device: viewmat (1, 4, 4), K (1, 3, 3), image (H, W, 3) in 0..1.

    `mask` (H, W) bool is False for pixels that take no part, which are black in `image`; None where all take part.
    """

    name: str
    viewmat: torch.Tensor
    K: torch.Tensor
    image: torch.Tensor
    width: int
    height: int
    mask: torch.Tensor | None = None
    index: int = 0  # among the loader's views


class ViewLoader:
    """Decodes photographs at their training size; keeps the latest ones up to `cache_bytes`.

    Photographs are kept as 8-bit RGB, a quarter of what float32 needs. One thread decodes ahead.
    """

    def __init__(
        self, views: Views, device: torch.device, cache_bytes: int, decoded: DecodedViews | None = None
    ) -> None:
        """`decoded`: photographs that are in memory already; it is emptied, so that no more is kept than the cache."""
        self.views = views
        self._device = device
        self._budget = cache_bytes
        self._used = 0
        self._cache: OrderedDict[int, Decoded] = OrderedDict()
        self._pending: dict[int, Future[Decoded]] = {}
        ready = {} if decoded is None else decoded
        for index in range(len(views)) if ready else ():
            if one := ready.pop(views.key(index), None):
                self._keep(index, one)
        ready.clear()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="decode")
        self._viewmats = torch.tensor(views.viewmats, dtype=torch.float32, device=device)
        self._Ks = torch.tensor(views.Ks, dtype=torch.float32, device=device)

    def prefetch(self, index: int) -> None:
        """Begin to decode a view that will be asked for soon."""
        if index not in self._cache and index not in self._pending:
            self._pending[index] = self._pool.submit(self.views.decode, index)

    def get(self, index: int) -> View:
        """The view at `index`. Raises `SceneError` when its photograph cannot be read."""
        found = self._decoded(index)
        pixels, mask = found.pixels, found.mask
        image = torch.from_numpy(pixels).to(self._device).float().mul_(1 / 255)
        height, width = pixels.shape[:2]
        one = slice(index, index + 1)
        part = None if mask is None else torch.from_numpy(mask).to(self._device)
        return View(self.views.names[index], self._viewmats[one], self._Ks[one], image, width, height, part, index)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _decoded(self, index: int) -> Decoded:
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        pending = self._pending.pop(index, None)
        decoded = pending.result() if pending else self.views.decode(index)
        self._keep(index, decoded)
        return decoded

    def _keep(self, index: int, decoded: Decoded) -> None:
        self._cache[index] = decoded
        self._used += decoded.nbytes
        while self._used > self._budget and len(self._cache) > 1:
            self._used -= self._cache.popitem(last=False)[1].nbytes
