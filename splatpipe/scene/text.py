"""COLMAP's text model files. Slower than binary, but every complaint names its file and line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from splatpipe.errors import SceneError
from splatpipe.scene.arrays import Intrinsics
from splatpipe.scene.model import Model, camera_models


def read_text(folder: Path) -> Model:
    """The model of cameras.txt, images.txt and points3D.txt in `folder`.

    Raises `SceneError` naming file and line for a line that is not what COLMAP writes.
    """
    cameras = _read_cameras(folder / "cameras.txt")
    images = _read_images(folder / "images.txt")
    points = _read_points(folder / "points3D.txt")
    return Model(cameras, *images, *points)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is no comment; an empty line is kept, since an image may see nothing."""
    try:
        with path.open(encoding="utf-8", errors="surrogateescape") as handle:
            for number, line in enumerate(handle, 1):
                if not line.startswith("#"):
                    yield number, line.strip()
    except OSError as error:
        raise SceneError(f"{path} cannot be read: {error.strerror or error}") from error


def _broken(path: Path, number: int, line: str, expected: str) -> SceneError:
    shown = line if len(line) <= 60 else line[:57] + "..."
    return SceneError(f"{path}:{number}: expected {expected}, found {shown!r}; mend the line or export the model again")


def _read_cameras(path: Path) -> dict[int, Intrinsics]:
    n_params = {name: n for name, n in camera_models().values()}
    cameras = {}
    for number, line in _lines(path):
        if not line:
            continue
        fields = line.split()
        try:
            camera_id, model, width, height = int(fields[0]), fields[1], int(fields[2]), int(fields[3])
            params = tuple(float(field) for field in fields[4:])
        except (ValueError, IndexError):
            raise _broken(path, number, line, "CAMERA_ID MODEL WIDTH HEIGHT PARAMS") from None
        if model not in n_params:
            raise SceneError(f"{path}:{number}: unknown camera model {model!r}")
        if len(params) != n_params[model]:
            raise _broken(path, number, line, f"{n_params[model]} parameters for {model}")
        cameras[camera_id] = Intrinsics(camera_id, model, width, height, params)
    return cameras


def _read_images(path: Path) -> tuple[Any, ...]:
    """The image and observation columns of `Model`; two lines an image."""
    heads, names, views = [], [], []
    lines = _lines(path)
    for number, line in lines:
        if not line:
            continue
        fields = line.split(None, 9)
        try:
            heads.append([int(fields[0]), *map(float, fields[1:8]), int(fields[8])])
            names.append(fields[9])
        except (ValueError, IndexError):
            raise _broken(path, number, line, "IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME") from None
        views.append(_observations(path, *next(lines, (number + 1, ""))))
    table = np.array(heads, np.float64).reshape(-1, 9)
    all_views = np.concatenate(views) if views else np.empty((0, 3))
    rows = np.repeat(np.arange(len(views), dtype=np.int32), [len(view) for view in views])
    ids, camera_ids = table[:, 0].astype(np.int64), table[:, 8].astype(np.int64)
    xy, seen = all_views[:, :2].astype(np.float32), all_views[:, 2].astype(np.int64)
    return ids, tuple(names), camera_ids, table[:, 1:5], table[:, 5:8], rows, seen, xy


def _observations(path: Path, number: int, line: str) -> np.ndarray:
    """(n, 3) x, y, point id of the observations that have a point."""
    try:
        table = np.array(line.split(), np.float64).reshape(-1, 3)
    except ValueError:
        raise _broken(path, number, line, "X Y POINT3D_ID for each feature of the image above") from None
    if not np.isfinite(table).all():
        raise _broken(path, number, line, "finite numbers")
    return table[table[:, 2] >= 0]


def _read_points(path: Path) -> tuple[Any, ...]:
    """The point columns of `Model`, sorted by id."""
    ids, heads = [], []
    for number, line in _lines(path):
        if not line:
            continue
        fields = line.split()
        try:
            ids.append(int(fields[0]))
            colour = [int(field) for field in fields[4:7]]
            heads.append((float(fields[1]), float(fields[2]), float(fields[3]), *colour, float(fields[7])))
            if len(fields) % 2 or not all(0 <= value <= 255 for value in colour):
                raise ValueError
        except (ValueError, IndexError):
            raise _broken(path, number, line, "POINT3D_ID X Y Z R G B ERROR TRACK") from None
    point_ids, table = np.array(ids, np.int64), np.array(heads, np.float64).reshape(-1, 7)
    order = np.argsort(point_ids, kind="stable")
    table = table[order]
    return point_ids[order], table[:, :3].copy(), table[:, 3:6].astype(np.uint8), table[:, 6].copy()
