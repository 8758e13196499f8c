"""A merged splat in the formats that viewers on the web load."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from splatpipe.errors import EnvironmentProblem
from splatpipe.export.formats import LEVELS, Format, Recipe, recipe
from splatpipe.export.transform import SplatTransform
from splatpipe.files import put_file, put_folder, scratch_folder
from splatpipe.splatting.ply import SplatFileError, read_header


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
    splat: Path,
    formats: Sequence[Format],
    place: Callable[[str], Path],
    tool: SplatTransform,
    say: Callable[[str], None] = lambda sentence: None,
) -> list[Exported]:
    """Write `splat`, a PLY, in each format, to `place(format.file)`; every one appears whole or not at all.

    `say` is told what is being written, because a format may take minutes.
    Raises SplatFileError for a file that is no splat or is empty, EnvironmentProblem when splat-transform fails.
    """
    header = read_header(splat)
    if not header.count:
        raise SplatFileError(
            f"{splat}: holds no Gaussians, and only ply can say so; splatpipe status shows what became of the patches"
        )
    recipes = [recipe(wanted, header.count, header.sh_degree, tool.gpu) for wanted in formats]
    unique = {one.format.name: one for one in recipes}
    if header.antialiased is not None:
        note = "trained antialiased, which the format does not say: switch antialiasing on in the viewer"
        unique = {name: replace(one, notes=(*one.notes, note)) for name, one in unique.items()}
    written = []
    for number, one in enumerate(unique.values(), 1):
        say(f"writing {one.format.name} ({number} of {len(unique)})")
        written.append(_write(splat, one, place(one.format.file), tool))
    return written


def _write(splat: Path, made: Recipe, path: Path, tool: SplatTransform) -> Exported:
    """In a folder of its own first: splat-transform goes by the ending of a name, and a killed one leaves files."""
    begin, tiles = time.perf_counter(), made.format.name == "lod"
    target = path.parent if tiles else path
    with scratch_folder(target) as folder:
        sources = _levels(splat, made) if tiles else [str(splat), *made.arguments]
        tool.run([*sources, str(folder / path.name)])
        _check(folder / path.name, made)
        if tiles:
            put_folder(folder, target)
        else:
            put_file(folder / path.name, target)
    files = target.rglob("*") if tiles else [path]
    size = sum(file.stat().st_size for file in files if file.is_file())
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
