"""A merged splat in the formats that viewers on the web load."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from splatpipe.errors import EnvironmentProblem
from splatpipe.export.formats import LEVELS, Format, Recipe, recipe
from splatpipe.export.transform import SplatTransform
from splatpipe.files import atomic_folder, atomic_path
from splatpipe.splatting.ply import read_header


@dataclass(frozen=True)
class Exported:
    """One format, written. `path` is what a viewer opens."""

    format: str
    path: Path
    size: int  # bytes, all files together
    seconds: float
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"path": str(self.path)}


def export_splat(
    splat: Path, formats: Sequence[Format], place: Callable[[str], Path], tool: SplatTransform
) -> list[Exported]:
    """Write `splat`, a PLY, in each format, to `place(format.file)`; every one appears whole or not at all.

    Raises SplatFileError for a file that is no splat, EnvironmentProblem when splat-transform fails.
    """
    header = read_header(splat)
    recipes = [recipe(wanted, header.count, header.sh_degree, tool.gpu) for wanted in formats]
    unique = {one.format.name: one for one in recipes}
    if header.antialiased is not None:
        note = "trained antialiased, which the format does not say: switch antialiasing on in the viewer"
        unique = {name: replace(one, notes=(*one.notes, note)) for name, one in unique.items()}
    return [_write(splat, one, place(one.format.file), tool) for one in unique.values()]


def _write(splat: Path, made: Recipe, path: Path, tool: SplatTransform) -> Exported:
    begin = time.perf_counter()
    if made.format.name == "lod":
        with atomic_folder(path.parent) as folder:
            tool.run([*_levels(splat, made), str(folder / path.name)])
            _check(folder / path.name, made)
        size = sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())
    else:
        with atomic_path(path) as temporary:
            # splat-transform goes by the ending, which the temporary name lacks.
            written = temporary.with_name(f".{temporary.name.strip('.')}.{path.name}")
            try:
                tool.run([str(splat), *made.arguments, str(written)])
                _check(written, made)
                shutil.move(written, temporary)
            finally:
                written.unlink(missing_ok=True)
        size = path.stat().st_size
    return Exported(made.format.name, path, size, round(time.perf_counter() - begin, 2), made.notes)


def _levels(splat: Path, made: Recipe) -> list[str]:
    """The input once for each level of detail, coarser each time."""
    arguments: list[str] = []
    for level, percent in enumerate(LEVELS[: made.inputs]):
        thinning = [] if percent == 100 else ["--decimate", f"{percent}%"]
        arguments += [str(splat), *made.arguments, *thinning, "--lod", str(level)]
    return arguments


def _check(path: Path, made: Recipe) -> None:
    if not path.is_file() or not path.stat().st_size:
        raise EnvironmentProblem(f"splat-transform left no {made.format.name} file, though it said nothing was wrong")
