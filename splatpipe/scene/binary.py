"""COLMAP's binary model files, read and written as whole arrays.

pycolmap gives one Python object per observation, which takes minutes for the tens of millions of a large
scene; these files are a few struct layouts (COLMAP documentation, "Output Format"), and every count in them
is checked against the size of the file before memory is taken for it. The tests let pycolmap judge both ways.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splatpipe.errors import SceneError
from splatpipe.files import atomic_path
from splatpipe.scene.arrays import Intrinsics
from splatpipe.scene.model import Model, camera_models, rows_of_ids
from splatpipe.scene.tracks import group

NO_POINT = -1  # stored as 2^64 - 1
OBSERVATION = np.dtype([("x", "<f8"), ("y", "<f8"), ("point", "<i8")])
POINT = np.dtype([("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("length", "<u8")])
TRACK_ELEMENT = np.dtype([("image", "<u4"), ("index", "<u4")])
FEW = 20_000  # records below which compiled code is not worth loading
CHUNK = 1 << 17  # points gathered at once; bounds the temporary index arrays


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
    images = read_images(folder / "images.bin")
    points = read_points(folder / "points3D.bin")
    return Model(cameras, *images, *points)


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


def read_images(path: Path) -> tuple[Any, ...]:
    """The image and observation columns of `Model`."""
    heads, names, views = [], [], []
    with _open(path) as cursor:
        for _ in range(cursor.count(73, "images")):
            heads.append(cursor.take("<I7dI"))
            names.append(cursor.text())
            (n,) = cursor.take("<Q")
            cursor.need(n * OBSERVATION.itemsize)
            view = np.frombuffer(cursor.data, OBSERVATION, n, cursor.at)
            views.append(view[view["point"] != NO_POINT])  # a copy, so that the mapping can be closed
            del view
            cursor.at += n * OBSERVATION.itemsize
        cursor.finish()
    table = np.array(heads, np.float64).reshape(-1, 9)
    observations = np.concatenate(views) if views else np.empty(0, OBSERVATION)
    rows = np.repeat(np.arange(len(views), dtype=np.int32), [len(view) for view in views])
    with np.errstate(over="ignore"):
        xy = np.stack([observations["x"], observations["y"]], axis=1).astype(np.float32)
    ids, camera_ids = table[:, 0].astype(np.int64), table[:, 8].astype(np.int64)
    return ids, tuple(names), camera_ids, table[:, 1:5], table[:, 5:8], rows, observations["point"].copy(), xy


def read_points(path: Path) -> tuple[Any, ...]:
    """The point columns of `Model`. Tracks are skipped: the images hold the same facts, with pixels."""
    with _open(path) as cursor:
        n = cursor.count(POINT.itemsize, "points")
        starts = _record_starts(cursor, n)
        data = np.frombuffer(cursor.data, np.uint8)
        table = np.empty(n, POINT)
        within = np.arange(POINT.itemsize)
        for first in range(0, n, CHUNK):
            rows = starts[first : first + CHUNK, None] + within
            table[first : first + CHUNK] = data[rows].view(POINT)[:, 0]
        del data
    order = np.argsort(table["id"], kind="stable")
    table = table[order]
    ids = table["id"].astype(np.int64)
    return ids, np.ascontiguousarray(table["xyz"]), np.ascontiguousarray(table["rgb"]), table["error"].copy()


def _record_starts(cursor: _Cursor, n: int) -> NDArray[np.int64]:
    """(n,) byte offsets of the points; each record's length stands in the record itself."""
    starts = np.empty(n, np.int64)
    data = np.frombuffer(cursor.data, np.uint8)
    walk = _walk_kernel() if n > FEW else _walk
    found, end = walk(data, cursor.at, starts, POINT.itemsize, TRACK_ELEMENT.itemsize)
    del data  # so that the mapping can be closed
    if found < n:
        raise SceneError(
            f"{cursor.path} is truncated or damaged: it announces {n:,} points, but its {cursor.size:,} bytes end "
            f"inside point number {found + 1:,}; copy the file again or export the model again"
        )
    cursor.at = int(end)
    cursor.finish()
    return starts


def _walk(data, at, starts, head, element):  # type: ignore[no-untyped-def]
    """From record to record; how many were whole, and where the last of these ends. Compiled for large files."""
    size = len(data)
    for i in range(len(starts)):
        if at + head > size:
            return i, at
        length = 0
        for byte in range(7):
            length += int(data[at + head - 8 + byte]) << (8 * byte)
        if data[at + head - 1] or length > size:  # no track is that long
            return i, at
        end = at + head + element * length
        if end > size:
            return i, at
        starts[i], at = at, end
    return len(starts), at


@cache
def _walk_kernel() -> Any:
    """`_walk` as machine code, kept beside the source or in the user's cache where one of the two is writable."""
    import numba

    try:
        return numba.njit(nogil=True, cache=True)(_walk)
    except RuntimeError:  # numba found no folder to keep it in
        return numba.njit(nogil=True)(_walk)


def write_binary(folder: Path, model: Model) -> None:
    """Write the three files into `folder`. Observations keep their order, their indices count from 0 per image."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = np.bincount(model.obs_images, minlength=len(model.names))
    starts = np.concatenate([[0], np.cumsum(counts)])
    with atomic_path(folder / "cameras.bin") as path:
        path.write_bytes(_cameras_bytes(list(model.cameras.values())))
    with atomic_path(folder / "images.bin") as path:
        path.write_bytes(_images_bytes(model, starts))
    with atomic_path(folder / "points3D.bin") as path, path.open("wb") as handle:
        handle.writelines(_points_chunks(model, starts))


def _cameras_bytes(cameras: Sequence[Intrinsics]) -> bytes:
    numbers = {name: number for number, (name, _) in camera_models().items()}
    rows = [
        struct.pack(f"<IiQQ{len(c.params)}d", c.id, numbers[c.model], c.width, c.height, *c.params) for c in cameras
    ]
    return struct.pack("<Q", len(rows)) + b"".join(rows)


def _images_bytes(model: Model, starts: NDArray[np.int64]) -> bytes:
    table = np.empty(len(model.obs_points), OBSERVATION)
    table["x"], table["y"], table["point"] = model.obs_xy[:, 0], model.obs_xy[:, 1], model.obs_points
    parts = [struct.pack("<Q", len(model.names))]
    for i, name in enumerate(model.names):
        pose = (*model.quats[i].tolist(), *model.translations[i].tolist())
        parts.append(struct.pack("<I7dI", int(model.image_ids[i]), *pose, int(model.camera_ids[i])))
        parts.append(name.encode("utf-8", "surrogateescape") + b"\0")
        parts.append(struct.pack("<Q", int(starts[i + 1] - starts[i])))
        parts.append(table[starts[i] : starts[i + 1]].tobytes())
    return b"".join(parts)


def _points_chunks(model: Model, starts: NDArray[np.int64]) -> Iterator[memoryview]:
    """points3D.bin piece by piece. Records of one track length have one layout, so they are written together."""
    rows = rows_of_ids(model.point_ids, model.obs_points)
    order, offsets = group(rows, len(model.point_ids))
    lengths = np.diff(offsets)
    elements = np.empty(len(order), TRACK_ELEMENT)
    elements["image"] = model.image_ids[model.obs_images[order]]
    elements["index"] = (np.arange(len(order)) - starts[model.obs_images])[order]
    yield memoryview(struct.pack("<Q", len(lengths)))
    for length in np.unique(lengths):
        alike = np.flatnonzero(lengths == length)
        for first in range(0, len(alike), CHUNK):
            some = alike[first : first + CHUNK]
            records = np.empty(len(some), [*POINT.descr, ("track", TRACK_ELEMENT, (int(length),))])
            records["id"], records["xyz"] = model.point_ids[some], model.points[some]
            records["rgb"] = model.colors[some]
            records["error"], records["length"] = model.errors[some], length
            records["track"] = elements[offsets[some][:, None] + np.arange(length)]
            yield records.view(np.uint8).data if len(records) else memoryview(b"")
