"""From scene coordinates to the world's: read from a file, written beside exports, applied when asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from splatpipe.errors import ConfigError
from splatpipe.export.harmonics import MAX_DEGREE, band_rotations
from splatpipe.files import parse_json
from splatpipe.splatting.ply import iter_rows, offset_comments, read_header, splat_writer, without_offset

NAMES = ("georeference.json", "georeference.txt")  # looked for in the scene folder
OFFSET_STEP = 1000.0  # world units; positions are stored in single precision, which far from 0 is too coarse
UNEVEN = 1e-4  # how far a matrix may be from a rotation times one scale
WANTED = (
    'it must hold a 4x4 matrix (text, or JSON under "matrix"), the 8 numbers that COLMAP\'s model_aligner writes to '
    "--transform_path (scale, quaternion w x y z, translation), or JSON with scale, rotation (3x3) and translation"
)


@dataclass(frozen=True, eq=False)
class Georeference:
    """x_world = scale * rotation @ x_scene + translation."""

    scale: float
    rotation: NDArray[np.float64]  # (3, 3)
    translation: NDArray[np.float64]  # (3,)
    crs: str | None = None  # name of the world's coordinates, e.g. EPSG:32630, as the file gives it

    @property
    def matrix(self) -> NDArray[np.float64]:
        """(4, 4)."""
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = self.scale * self.rotation, self.translation
        return matrix

    def after(self, offset: Sequence[float]) -> Georeference:
        """The same for positions that are less than the scene's by `offset` (3,)."""
        return replace(self, translation=self.translation + self.scale * self.rotation @ np.array(offset, np.float64))

    def offset(self, center: NDArray[np.float64]) -> NDArray[np.float64]:
        """(3,) what is taken off world positions so that they fit single precision: whole thousands at `center` (3,).

        `center` in scene coordinates.
        """
        world = self.scale * self.rotation @ center + self.translation
        return np.round(world / OFFSET_STEP) * OFFSET_STEP

    def to_json(self, applied: bool, offset: NDArray[np.float64]) -> dict[str, Any]:
        """What stands beside exports: `matrix` and `offset` lead from their coordinates to the world's."""
        left = np.eye(4) if applied else self.matrix
        return {
            "matrix": left.tolist(),
            "offset": (offset if applied else np.zeros(3)).tolist(),
            "meaning": "world = matrix @ (x, y, z, 1) + offset, with the positions x, y, z of the exported files",
            "applied": applied,
            "crs": self.crs,
        }


def find_georeference(setting: str | None, scene: Path) -> Georeference | None:
    """The file of `export.georeference`, relative to the scene or here; else one with a usual name in the scene.

    None when there is none. Raises `ConfigError` for a file that is missing or holds no similarity transform.
    """
    if setting is None:
        return next((read_georeference(scene / name) for name in NAMES if (scene / name).is_file()), None)
    path = Path(setting).expanduser()
    return read_georeference(scene / path if (scene / path).is_file() else path)


def read_georeference(path: Path) -> Georeference:
    """Raises `ConfigError` for anything that is no similarity transform."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"georeference {path} cannot be read ({getattr(error, 'strerror', None) or error})"
        ) from error
    try:
        data = parse_json(text) if text.lstrip().startswith(("{", "[")) else None
        return _from_json(data) if data is not None else _from_numbers(text)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ConfigError(f"georeference {path}: {error or 'not understood'}; {WANTED}") from error


def _from_json(data: Any) -> Georeference:
    if isinstance(data, list):
        return _from_matrix(np.array(data, np.float64))
    crs = None if data.get("crs") is None else str(data["crs"])
    if "matrix" in data:
        return _from_matrix(np.array(data["matrix"], np.float64), crs)
    missing = [name for name in ("scale", "rotation", "translation") if name not in data]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing")
    matrix = np.eye(4)
    matrix[:3, :3] = float(data["scale"]) * np.array(data["rotation"], np.float64).reshape(3, 3)
    matrix[:3, 3] = np.array(data["translation"], np.float64).reshape(3)
    return _from_matrix(matrix, crs)


def _from_numbers(text: str) -> Georeference:
    lines = (line.split("#")[0] for line in text.splitlines())
    numbers = np.array(" ".join(lines).replace(",", " ").split(), np.float64)
    if len(numbers) != 8:
        return _from_matrix(numbers)
    matrix = np.eye(4)
    quaternion = numbers[1:5]
    if not np.linalg.norm(quaternion) > 0:
        raise ValueError("the quaternion is 0")
    matrix[:3, :3] = numbers[0] * Rotation.from_quat(quaternion[[1, 2, 3, 0]]).as_matrix()
    matrix[:3, 3] = numbers[5:]
    return _from_matrix(matrix)


def _from_matrix(numbers: NDArray[np.float64], crs: str | None = None) -> Georeference:
    if numbers.size != 16:
        raise ValueError(f"{numbers.size} numbers")
    matrix = numbers.reshape(4, 4)
    if not np.isfinite(matrix).all() or not np.allclose(matrix[3], (0, 0, 0, 1)):
        raise ValueError("the last row of the matrix must be 0 0 0 1, and every number finite")
    determinant = float(np.linalg.det(matrix[:3, :3]))
    if determinant <= 0:
        raise ValueError("the matrix mirrors or flattens the scene (its determinant is not positive)")
    scale = determinant ** (1 / 3)
    rotation = matrix[:3, :3] / scale
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > UNEVEN:
        raise ValueError("the matrix is no rotation with one scale, and splats cannot be stretched or sheared")
    return Georeference(scale, rotation, matrix[:3, 3], crs)


def write_georeferenced(splat: Path, out: Path, reference: Georeference, offset: NDArray[np.float64]) -> int:
    """Write `splat` in world coordinates less `offset` (3,), chunk by chunk. Returns the number of Gaussians."""
    header = read_header(splat)
    comments = [*without_offset(header.comments), "georeferenced by splatpipe", *offset_comments(offset.tolist())]
    with splat_writer(out, header.sh_degree, comments) as writer:
        for rows in _turned(header, reference, offset):
            writer.append(rows)
    return writer.count


def _turned(header: Any, reference: Georeference, offset: NDArray[np.float64]) -> Iterator[NDArray[np.float32]]:
    bands = band_rotations(reference.rotation)[: min(header.sh_degree, MAX_DEGREE)]
    turn = Rotation.from_matrix(reference.rotation)
    for rows in iter_rows(header):
        out = rows.copy()
        means = rows[:, :3].astype(np.float64)
        out[:, :3] = means @ (reference.scale * reference.rotation).T + (reference.translation - offset)
        per_channel = (header.sh_degree + 1) ** 2 - 1
        rest = rows[:, 9 : 9 + 3 * per_channel].reshape(len(rows), 3, per_channel)
        turned = [rest[:, :, d * d - 1 : (d + 1) ** 2 - 1] @ band.T for d, band in enumerate(bands, 1)]
        if turned:
            out[:, 9 : 9 + 3 * per_channel] = np.concatenate(turned, axis=2).reshape(len(rows), -1)
        out[:, -7:-4] += np.float32(np.log(reference.scale))
        quats = rows[:, -4:].astype(np.float64)
        known = np.linalg.norm(quats, axis=1) > 0
        if known.any():
            out[known, -4:] = (turn * Rotation.from_quat(quats[known][:, [1, 2, 3, 0]])).as_quat()[:, [3, 0, 1, 2]]
        yield out
