"""COLMAP's binary model files, put together byte by byte in compiled loops; `binary` reads the same layouts."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from splatpipe.compiled import fast
from splatpipe.files import atomic_path
from splatpipe.scene.arrays import Intrinsics
from splatpipe.scene.model import Model, camera_models, rows_of_ids
from splatpipe.scene.tracks import group

VIEW_BYTES = 24  # of one observation in images.bin: x, y, point id
POINT_BYTES = 51  # of one point in points3D.bin: id, position, colour, error, track length; the track follows
ELEMENT_BYTES = 8  # of one element of a track: image id, index of the observation in that image


@dataclass(frozen=True, eq=False)
class Tracks:
    """T observations as CSR by point: point p is seen by `images[offsets[p] : offsets[p + 1]]`."""

    offsets: NDArray[np.int64]  # (P + 1,)
    images: NDArray[np.int32]  # (T,) rows of the observing images
    xy: NDArray[np.float32]  # (T, 2) pixels


def write_binary(folder: Path, model: Model) -> None:
    """Write the three files into `folder`. The observations of an image are numbered from 0 in the order of points."""
    order, offsets = group(rows_of_ids(model.point_ids, model.obs_points), len(model.point_ids))
    tracks = Tracks(offsets, model.obs_images[order], model.obs_xy[order])
    write_tracks(folder, model, tracks)


def write_tracks(folder: Path, model: Model, tracks: Tracks) -> None:
    """`write_binary` with the observations given as `tracks`; those of `model` are not looked at."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "cameras.bin") as path:
        path.write_bytes(_cameras_bytes(list(model.cameras.values())))
    counts = np.bincount(tracks.images, minlength=len(model.names))
    images, places = _images_frame(model, counts)
    size = 8 + POINT_BYTES * len(model.point_ids) + ELEMENT_BYTES * len(tracks.images)
    points = np.empty(size, np.uint8)
    points[:8] = np.frombuffer(struct.pack("<Q", len(model.point_ids)), np.uint8)
    table = (model.point_ids, model.points, model.colors, model.errors)
    ids = model.image_ids.astype(np.uint32)
    fast(_fill, size)(*table, tracks.offsets, tracks.images, tracks.xy, ids, images, places, points)
    for name, data in (("images.bin", images), ("points3D.bin", points)):
        with atomic_path(folder / name) as path, path.open("wb") as handle:
            handle.write(data.data)


def _cameras_bytes(cameras: Sequence[Intrinsics]) -> bytes:
    numbers = {name: number for number, (name, _) in camera_models().items()}
    rows = [
        struct.pack(f"<IiQQ{len(c.params)}d", c.id, numbers[c.model], c.width, c.height, *c.params) for c in cameras
    ]
    return struct.pack("<Q", len(rows)) + b"".join(rows)


def _images_frame(model: Model, counts: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """images.bin with room for the observations of each image, and (C,) where each of these rooms begins."""
    heads = []
    for i, name in enumerate(model.names):
        pose = (*model.quats[i].tolist(), *model.translations[i].tolist())
        head = struct.pack("<I7dI", int(model.image_ids[i]), *pose, int(model.camera_ids[i]))
        heads.append(head + name.encode("utf-8", "surrogateescape") + b"\0" + struct.pack("<Q", int(counts[i])))
    lengths = np.array([len(head) for head in heads], np.int64)
    places = 8 + np.cumsum(lengths) + VIEW_BYTES * (np.cumsum(counts) - counts)
    data = np.empty(8 + int(lengths.sum()) + VIEW_BYTES * int(counts.sum()), np.uint8)
    data[:8] = np.frombuffer(struct.pack("<Q", len(heads)), np.uint8)
    for place, head in zip(places.tolist(), heads, strict=True):
        data[place - len(head) : place] = np.frombuffer(head, np.uint8)
    return data, places


def _fill(  # type: ignore[no-untyped-def]
    point_ids, xyz, rgb, errors, offsets, rows, xy, image_ids, images, places, points
):
    """Write every point with its track into `points`, and every observation into `images` at its image's place."""
    record = np.empty(6, np.float64)  # id, position, error, track length
    whole, record_bytes = record.view(np.int64), record.view(np.uint8)
    view = np.empty(3, np.float64)  # x, y, point id
    view_id, view_bytes = view.view(np.int64), view.view(np.uint8)
    element = np.empty(2, np.uint32)
    element_bytes = element.view(np.uint8)
    used = np.zeros(len(image_ids), np.int64)
    at = 8
    for p in range(len(point_ids)):
        whole[0], record[4], whole[5] = point_ids[p], errors[p], offsets[p + 1] - offsets[p]
        for axis in range(3):
            record[1 + axis] = xyz[p, axis]
            points[at + 32 + axis] = rgb[p, axis]
        for byte in range(32):
            points[at + byte] = record_bytes[byte]
        for byte in range(16):
            points[at + 35 + byte] = record_bytes[32 + byte]
        at += 51
        view_id[2] = point_ids[p]
        for t in range(offsets[p], offsets[p + 1]):
            row = rows[t]
            element[0], element[1] = image_ids[row], used[row]
            for byte in range(8):
                points[at + byte] = element_bytes[byte]
            at += 8
            view[0], view[1] = xy[t, 0], xy[t, 1]
            place = places[row] + 24 * used[row]
            for byte in range(24):
                images[place + byte] = view_bytes[byte]
            used[row] += 1
