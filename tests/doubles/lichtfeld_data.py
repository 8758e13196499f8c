"""The data set that LichtFeld Studio reads and the PLY that it writes: part of the double."""

from __future__ import annotations

import math
import os
import statistics
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PINHOLE = (0, 1)
PARAMETERS = {0: 3, 1: 4, 2: 4, 3: 5, 4: 8, 5: 8}  # of COLMAP's camera models, by number
SH_C0 = 0.28209479177387814

Point = tuple[tuple[float, float, float], tuple[int, int, int]]


@dataclass
class Dataset:
    """What was read; `distorted` is found out at the first training step."""

    cameras: int
    names: list[str]
    centers: list[tuple[float, ...]]
    distorted: bool
    points: list[Point] = field(default_factory=list)

    @property
    def scene_scale(self) -> float:
        """Median distance of the points to the mean camera centre."""
        mean = [statistics.fmean(axis) for axis in zip(*self.centers, strict=True)]
        return statistics.median(math.dist(mean, xyz) for xyz, _ in self.points)


def read_dataset(root: Path, images: str) -> tuple[Dataset | None, str]:
    """The data set below `root`, or the loader's message."""
    sparse = next((f for f in (root / "sparse/0", root / "sparse", root) if (f / "cameras.bin").exists()), None)
    if sparse is None or not (sparse / "images.bin").exists():
        found = "found" if sparse else "missing"
        return (
            None,
            f"Failed to load COLMAP dataset: Missing required COLMAP files. cameras.bin: {found}, images.bin: missing",
        )
    if not (root / images).is_dir():
        return None, f"Failed to load COLMAP dataset: Images directory '{root / images}' not found"
    try:
        cameras = _cameras((sparse / "cameras.bin").read_bytes())
        names, used, centers = _images((sparse / "images.bin").read_bytes())
        points = _points((sparse / "points3D.bin").read_bytes()) if (sparse / "points3D.bin").exists() else []
    except (struct.error, ValueError, KeyError) as error:
        return None, f"Failed to load COLMAP dataset: {error}"
    if missing := [camera for camera in used if camera not in cameras]:
        return None, f"Failed to load COLMAP dataset: Camera ID {missing[0]} not found"
    if absent := [name for name in names if not (root / images / name).exists()]:
        return None, f"Failed to load image: {absent[0]}"
    distorted = any(model not in PINHOLE for model in cameras.values())
    return Dataset(len(cameras), names, centers, distorted, points), ""


def _cameras(data: bytes) -> dict[int, int]:
    found, at = {}, 8
    for _ in range(struct.unpack_from("<Q", data)[0]):
        number, model = struct.unpack_from("<Ii", data, at)
        if model not in PARAMETERS:
            raise ValueError(f"Unsupported camera-model id {model}")
        found[number] = model
        at += 24 + 8 * PARAMETERS[model]
    if at != len(data):
        raise ValueError("cameras.bin: trailing bytes")
    return found


def _images(data: bytes) -> tuple[list[str], list[int], list[tuple[float, ...]]]:
    names, cameras, centers, at = [], [], [], 8
    for _ in range(struct.unpack_from("<Q", data)[0]):
        *pose, camera = struct.unpack_from("<7dI", data, at + 4)
        end = data.index(b"\0", at + 64)
        names.append(data[at + 64 : end].decode())
        cameras.append(camera)
        centers.append(_center(pose))
        at = end + 9 + 24 * struct.unpack_from("<Q", data, end + 1)[0]
    if at != len(data):
        raise ValueError("images.bin: trailing bytes")
    return names, cameras, centers


def _center(pose: list[float]) -> tuple[float, ...]:
    """-R^T t for quaternion wxyz and translation."""
    w, x, y, z, *t = pose
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return tuple(-sum(rows[i][axis] * t[i] for i in range(3)) for axis in range(3))


def _points(data: bytes) -> list[Point]:
    points, at = [], 8
    for _ in range(struct.unpack_from("<Q", data)[0]):
        x, y, z, r, g, b = struct.unpack_from("<3d3B", data, at + 8)
        points.append(((x, y, z), (r, g, b)))
        at += 51 + 8 * struct.unpack_from("<Q", data, at + 43)[0]
    if at != len(data):
        raise ValueError("points3D.bin: trailing bytes")
    return points


def write_result(path: Path, data: Dataset, count: int, config: dict[str, Any], end: str) -> None:
    """A PLY in INRIA's layout: the points, over and over, as Gaussians of LFS's initial size for a distance of 0.05."""
    import numpy as np  # here, so that runs that write nothing start quickly

    if end in ("two_splats", "other_count"):
        count = 2 if end == "two_splats" else count // 2
    rest = 3 * ((config["sh_degree"] + 1) ** 2 - 1)
    rows = np.zeros((count, 17 + rest), "<f4")
    source = np.arange(count) % len(data.points)
    rows[:, :3] = np.array([xyz for xyz, _ in data.points])[source]
    rows[:, 6:9] = (np.array([rgb for _, rgb in data.points])[source] / 255 - 0.5) / SH_C0
    rows[:, 9 + rest] = 1.0
    rows[:, 10 + rest : 13 + rest] = math.log(config["init_scaling"] * math.sqrt(0.05))
    rows[:, 13 + rest] = 1.0
    half = slice(0, count * 4 // 5)
    if end == "not_finite":
        rows[count // 2, 0] = np.nan
    elif end == "flung":
        rows[half, :3] *= 2e7
    elif end == "giant":
        rows[half, 10 + rest : 13 + rest] = 5.0
    elif end == "faded":
        rows[half, 9 + rest] = -8.0
    names = ["x", "y", "z", "nx", "ny", "nz", *(f"f_dc_{i}" for i in range(3)), *(f"f_rest_{i}" for i in range(rest))]
    names += ["opacity", *(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {count}"]
    header += [f"property float {name}" for name in names] + ["end_header", ""]
    path.write_bytes("\n".join(header).encode() + rows.tobytes())
    if end == "half_ply":
        os.truncate(path, path.stat().st_size // 2)
