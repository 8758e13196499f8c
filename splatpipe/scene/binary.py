"""COLMAP's binary model files, read as whole arrays; `writing` writes them.

pycolmap gives one Python object per observation, which takes minutes for the tens of millions of a large
scene; these files are a few struct layouts (COLMAP documentation, "Output Format"), and every count in them
is checked against the size of the file before memory is taken for it. The tests let pycolmap judge both ways.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splatpipe.compiled import fast, in_parts
from splatpipe.errors import SceneError
from splatpipe.scene.arrays import Intrinsics
from splatpipe.scene.model import Model, camera_models
from splatpipe.scene.writing import POINT_BYTES, VIEW_BYTES


class _Cursor:
    """Reads structs from a mapped file and refuses to read past its end."""

    def __init__(self, path: Path, data: mmap.mmap | bytes) -> None:
        self.path, self.data, self.at, self.size = path, data, 0, len(data)

    def take(self, layout: str) -> tuple[Any, ...]:
        length = struct.calcsize(layout)
        self.need(length)
        values = struct.unpack_from(layout, self.data, self.at)
        self.at += length
        return values

    def need(self, length: int) -> None:
        if length > self.size - self.at:
            raise SceneError(
                f"{self.path} is truncated or damaged: it ends at byte {self.size:,}, but an entry that starts at "
                f"byte {self.at:,} needs {length:,} bytes; copy the file again or export the model again"
            )

    def count(self, smallest: int, what: str) -> int:
        """A leading count, refused if the rest of the file cannot hold that many entries of `smallest` bytes."""
        (n,) = self.take("<Q")
        if n * smallest > self.size - self.at:
            raise SceneError(
                f"{self.path} is truncated or damaged: it announces {n:,} {what}, but its {self.size:,} bytes "
                f"hold at most {(self.size - self.at) // smallest:,}; copy the file again or export the model again"
            )
        return int(n)

    def text(self) -> str:
        end = self.data.find(b"\0", self.at)
        if end < 0:
            raise SceneError(f"{self.path} is truncated or damaged: the name at byte {self.at:,} does not end")
        raw = bytes(self.data[self.at : end])
        self.at = end + 1
        return raw.decode("utf-8", "surrogateescape")

    def finish(self) -> None:
        if self.at != self.size:
            raise SceneError(
                f"{self.path} is damaged: {self.size - self.at:,} bytes follow its last entry; export the model again"
            )


@contextmanager
def _open(path: Path) -> Iterator[_Cursor]:
    try:
        with path.open("rb") as handle:
            if not path.stat().st_size:
                raise SceneError(f"{path} is empty; copy the file again or export the model again")
            with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield _Cursor(path, data)
    except OSError as error:
        raise SceneError(f"{path} cannot be read: {error.strerror or error}") from error


def read_binary(folder: Path) -> Model:
    """The model of cameras.bin, images.bin and points3D.bin in `folder`.

    The poses are those of images.bin; COLMAP 4 writes there what its rigs.bin and frames.bin say.
    Raises `SceneError` naming the file for anything truncated, damaged or of an unknown camera model.
    """
    cameras = read_cameras(folder / "cameras.bin")
    with ThreadPoolExecutor(1) as pool:
        points = pool.submit(read_points, folder / "points3D.bin")  # one thread's work, while the images take the rest
        images = read_images(folder / "images.bin")
        return Model(cameras, *images, *points.result())


def read_cameras(path: Path) -> dict[int, Intrinsics]:
    """Intrinsics by camera id."""
    models = camera_models()
    cameras = {}
    with _open(path) as cursor:
        for _ in range(cursor.count(24, "cameras")):
            camera_id, model, width, height = cursor.take("<IiQQ")
            if model not in models:
                raise SceneError(f"{path}: camera {camera_id} has the unknown camera model number {model}")
            name, n_params = models[model]
            cameras[camera_id] = Intrinsics(camera_id, name, width, height, cursor.take(f"<{n_params}d"))
        cursor.finish()
    return cameras


def count_images(path: Path) -> int:
    """How many images the file announces."""
    with _open(path) as cursor:
        return cursor.count(73, "images")


def read_images(path: Path) -> tuple[Any, ...]:
    """The image and observation columns of `Model`."""
    heads, names, starts, lengths = [], [], [], []
    with _open(path) as cursor:
        for _ in range(cursor.count(73, "images")):
            heads.append(cursor.take("<I7dI"))
            names.append(cursor.text())
            (n,) = cursor.take("<Q")
            cursor.need(n * VIEW_BYTES)
            starts.append(cursor.at)
            lengths.append(n)
            cursor.at += n * VIEW_BYTES
        cursor.finish()
        data = np.frombuffer(cursor.data, np.uint8)
        with np.errstate(over="ignore"):
            rows, seen, xy = _views(data, np.array(starts, np.int64), np.array(lengths, np.int64))
        del data  # so that the mapping can be closed
    table = np.array(heads, np.float64).reshape(-1, 9)
    ids, camera_ids = table[:, 0].astype(np.int64), table[:, 8].astype(np.int64)
    return ids, tuple(names), camera_ids, table[:, 1:5], table[:, 5:8], rows, seen, xy


def _views(data: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
    """Image row, point id and pixel of all observations that have a point; the records of an image are at `starts`."""
    found = np.empty(len(starts), np.int64)
    count = fast(_count_views, int(lengths.sum()))
    in_parts(lambda i, j: count(data, starts[i:j], lengths[i:j], found[i:j]), lengths)
    rows = np.repeat(np.arange(len(starts), dtype=np.int32), found)
    ends, seen, xy = np.cumsum(found), np.empty(len(rows), np.int64), np.empty((len(rows), 2), np.float32)
    fill = fast(_fill_views, int(lengths.sum()))
    in_parts(lambda i, j: fill(data, starts[i:j], lengths[i:j], ends[i:j] - found[i:j], seen, xy), lengths)
    return rows, seen, xy


def _count_views(data, starts, lengths, found):  # type: ignore[no-untyped-def]
    """How many observations of each image have a point. Compiled for large files."""
    for i in range(len(starts)):
        n = 0
        for k in range(lengths[i]):
            at = starts[i] + 24 * k + 16
            for byte in range(7, -1, -1):  # the highest is not 255 wherever there is a point
                if data[at + byte] != 255:
                    n += 1
                    break
        found[i] = n


def _fill_views(data, starts, lengths, first, seen, xy):  # type: ignore[no-untyped-def]
    """Point ids and pixels of the observations that have a point. Compiled for large files."""
    record = np.empty(24, np.uint8)
    numbers, ids = record.view(np.float64), record.view(np.int64)
    for i in range(len(starts)):
        place = first[i]
        for k in range(lengths[i]):
            at = starts[i] + 24 * k
            for byte in range(24):
                record[byte] = data[at + byte]
            if ids[2] != -1:
                seen[place] = ids[2]
                xy[place, 0] = numbers[0]
                xy[place, 1] = numbers[1]
                place += 1


def read_points(path: Path) -> tuple[Any, ...]:
    """The point columns of `Model`. Tracks are skipped: the images hold the same facts, with pixels."""
    with _open(path) as cursor:
        n = cursor.count(POINT_BYTES, "points")
        ids, xyz = np.empty(n, np.int64), np.empty((n, 3))
        rgb, errors = np.empty((n, 3), np.uint8), np.empty(n)
        data = np.frombuffer(cursor.data, np.uint8)
        found, end = fast(_walk, n)(data, cursor.at, ids, xyz, rgb, errors)
        del data  # so that the mapping can be closed
        if found < n:
            raise SceneError(
                f"{path} is truncated or damaged: it announces {n:,} points, but its {cursor.size:,} bytes end "
                f"inside point number {found + 1:,}; copy the file again or export the model again"
            )
        cursor.at = int(end)
        cursor.finish()
    if (ids[1:] < ids[:-1]).any():
        order = np.argsort(ids, kind="stable")
        return ids[order], xyz[order], rgb[order], errors[order]
    return ids, xyz, rgb, errors


def _walk(data, at, ids, xyz, rgb, errors):  # type: ignore[no-untyped-def]
    """From record to record; how many were whole, and where the last of these ends. Compiled for large files."""
    record = np.empty(48, np.uint8)  # id, position, error, track length: all but the colour
    whole, numbers, size = record.view(np.int64), record.view(np.float64), len(data)
    for i in range(len(ids)):
        if at + 51 > size:
            return i, at
        for byte in range(32):
            record[byte] = data[at + byte]
        for byte in range(16):
            record[32 + byte] = data[at + 35 + byte]
        length = whole[5]
        if length < 0 or length > size or at + 51 + 8 * length > size:
            return i, at
        ids[i], errors[i] = whole[0], numbers[4]
        for axis in range(3):
            xyz[i, axis] = numbers[1 + axis]
            rgb[i, axis] = data[at + 32 + axis]
        at += 51 + 8 * length
    return len(ids), at
