"""The colour that neighbouring patches give to the ground they share, as cameras see it.

Renders are compared and not Gaussians: a patch may paint its ground with small Gaussians under thick haze, and its
neighbour without any, and both look the same. Places are those where a camera observed a point of both patches, so
that what stands in front of them is there in both renders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from splatpipe.merge.colors import Places
from splatpipe.merge.evaluate import HELD_AT_ONCE, renderer_of
from splatpipe.merge.ownership import touching
from splatpipe.patches.patch import Patch, Role
from splatpipe.patches.visibility import Visibility
from splatpipe.splatting import raster
from splatpipe.splatting.views import Views

VIEWS = 6  # for each two neighbours: the training views of both that see most of what they share
GLANCE = 2  # as many tell whether there is a difference
WIDTH = 400  # pixels of a render that is compared, at most
BLOCK = 5  # pixels along an edge of a place: small shifts of detail are no difference in exposure
OPAQUE = 0.7  # share of the light that both must hold back there; with less the background shows through


@dataclass(frozen=True, eq=False)
class Look:
    """One camera's look at what two patches share."""

    patches: tuple[str, str]
    camera: int
    points: NDArray[np.int64]  # of the scene, that the camera observed and both patches hold


def looks(patches: Sequence[Patch], seen: Visibility, n_points: int, views: int = VIEWS) -> list[Look]:
    """Where neighbours can be compared, in up to `views` of each two.

    `seen` is what each camera observes of the scene's `n_points`.
    """
    ordered, found = sorted(patches, key=lambda patch: patch.id), []
    for i, one in enumerate(ordered):
        for other in ordered[i + 1 :]:
            if touching(one.buffered, other.buffered):
                found += _looks(one, other, seen, n_points, views)
    return found


def _looks(one: Patch, other: Patch, seen: Visibility, n_points: int, views: int) -> list[Look]:
    near, shared = one.points_with(Role.CORE, Role.BUFFER), np.zeros(n_points, np.bool_)
    shared[np.intersect1d(near, other.points_with(Role.CORE, Role.BUFFER), assume_unique=True)] = True
    cameras = np.intersect1d(one.camera_index, other.camera_index, assume_unique=True)
    theirs = seen.of(cameras)
    camera = np.repeat(np.arange(len(cameras)), theirs.counts())
    count = np.bincount(camera, shared[theirs.points], len(cameras))
    best = [k for k in np.argsort(-count, kind="stable")[:views] if count[k]]
    points = {k: theirs.points[theirs.offsets[k] : theirs.offsets[k + 1]].astype(np.int64) for k in best}
    return [Look((one.id, other.id), int(cameras[k]), points[k][shared[points[k]]]) for k in best]


def renders(chosen: Sequence[Look]) -> int:
    """How many pictures `compare` renders."""
    return len({(patch, look.camera) for look in chosen for patch in look.patches})


def compare(
    chosen: Sequence[Look],
    splats: Mapping[str, Path],
    views: Views,
    points: NDArray[np.float64],
    device: str = "cpu",
    threads: int = 0,
    tick: Callable[[], None] = lambda: None,
    held_at_once: int = HELD_AT_ONCE,
) -> Places:
    """Render what `chosen` looks at from both patches' whole files, one patch in memory at a time.

    `views` are all of the scene, of any size; `points` (P, 3) its points. `tick` is called after each render, and may
    raise. Raises SplatFileError.
    """
    if threads and device == "cpu":
        raster.set_threads(threads)
    ids, small = tuple(sorted(splats)), views.resized(1.0, WIDTH)
    spots = [_blocks(points[look.points], small, look.camera) for look in chosen]
    colors: list[dict[str, NDArray[np.float64]]] = [{} for _ in chosen]
    for patch in ids:
        mine: dict[int, list[int]] = {}
        for number, look in enumerate(chosen):
            if patch in look.patches:
                mine.setdefault(look.camera, []).append(number)
        if not mine:
            continue
        draw = renderer_of(splats[patch], device, held_at_once)
        for camera, numbers in mine.items():
            means = _block_means(draw(*_camera(small, camera)))
            for number in numbers:
                colors[number][patch] = means[spots[number][:, 1], spots[number][:, 0]]
            tick()
    return _places(ids, chosen, colors)


def _camera(views: Views, camera: int) -> tuple[NDArray[np.float64], NDArray[np.float64], int, int]:
    width, height = (int(pixels) for pixels in views.sizes[camera])
    return views.viewmats[camera], views.Ks[camera], width, height


def _blocks(points: NDArray[np.float64], views: Views, camera: int) -> NDArray[np.int64]:
    """(B, 2) column and row of each whole block of the picture in which one of the points (N, 3) lies."""
    viewmat, K, width, height = _camera(views, camera)
    seen = points @ viewmat[:3, :3].T + viewmat[:3, 3]
    seen = seen[seen[:, 2] > 0]
    pixels = seen @ K.T
    blocks = np.floor(pixels[:, :2] / pixels[:, 2:] / BLOCK)
    inside = (blocks >= 0) & (blocks < [width // BLOCK, height // BLOCK])
    return np.unique(blocks[inside.all(axis=1)].astype(np.int64), axis=0)


def _block_means(picture: NDArray[np.float32]) -> NDArray[np.float64]:
    """(rows, columns, C) means over the whole blocks of a picture (H, W, C)."""
    rows, columns = picture.shape[0] // BLOCK, picture.shape[1] // BLOCK
    whole = picture[: rows * BLOCK, : columns * BLOCK].astype(np.float64)
    return whole.reshape(rows, BLOCK, columns, BLOCK, -1).mean(axis=(1, 3))


def _places(
    ids: tuple[str, ...], chosen: Sequence[Look], colors: Sequence[Mapping[str, NDArray[np.float64]]]
) -> Places:
    """The blocks that both patches of a look cover; the fourth channel of `colors` is the light held back."""
    none = np.zeros(0, np.int64)
    a, b, first, second = [none], [none], [np.zeros((0, 3))], [np.zeros((0, 3))]
    for look, found in zip(chosen, colors, strict=True):
        one, other = (found[patch] for patch in look.patches)
        solid = (one[:, 3] > OPAQUE) & (other[:, 3] > OPAQUE)
        a.append(np.full(int(solid.sum()), ids.index(look.patches[0])))
        b.append(np.full(int(solid.sum()), ids.index(look.patches[1])))
        first.append(one[solid, :3])
        second.append(other[solid, :3])
    return Places(ids, np.concatenate(a), np.concatenate(b), np.concatenate(first), np.concatenate(second))
