"""From a run's merged splat to files for viewers, in scene coordinates or in the world's."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splatpipe.config import Config, config_from_dict
from splatpipe.errors import ConfigError, EnvironmentProblem, RunFolderError, SceneError
from splatpipe.export.formats import FORMATS, parse_formats
from splatpipe.export.georeference import Georeference, find_georeference, write_georeferenced
from splatpipe.export.gps import fit_gps, read_gps
from splatpipe.export.transform import find_transform
from splatpipe.export.write import Exported, export_splat
from splatpipe.files import clear_leftovers, write_json
from splatpipe.layout import RunLayout
from splatpipe.runfolder import read_run
from splatpipe.scene.colmap import read_scene
from splatpipe.scene.offset import NONE, Offset, shown
from splatpipe.splatting.ply import read_header, sample_rows

PLY = FORMATS["ply"]
GLANCE = 10  # files in the image folder that say whether photographs have GPS at all
SAMPLE = 1 << 16  # Gaussians that say where the scene's middle is


def export_run(
    run_folder: Path, to: str, georeference: Path | None, georeferenced: bool, say: Callable[[str], None]
) -> dict[str, Any]:
    """The merged splat of a run in other formats, as data: path, bytes, seconds and notes of each.

    `georeference` is a file to use instead of what the run's settings or its scene have, which is a file too, or GPS
    in the photographs. Where there is one, it is written as JSON beside the exports, and with `georeferenced` these
    are in the world's coordinates.
    Raises `ConfigError`, `RunFolderError`, `EnvironmentProblem`, `SplatFileError`.
    """
    layout, formats = RunLayout(run_folder.expanduser().resolve()), parse_formats(to)
    run = read_run(layout)
    config = config_from_dict(run["settings"], str(layout.run_yml))
    if not layout.merged_splat.is_file():
        raise RunFolderError(f"{layout.root}: nothing is merged yet; splatpipe merge {layout.root} does it")
    read_header(layout.merged_splat)
    setting = str(georeference.absolute()) if georeference else config.export.georeference
    reference = find_georeference(setting, run["scene"]) or _by_itself(run["offset"], say)
    reference = reference or _by_gps(run["scene"], config, say)
    if georeferenced and reference is None:
        raise ConfigError(
            f"--georeferenced: {run['scene']} has no georeference.json or georeference.txt, its photographs have no "
            "GPS that fits, and neither --georeference nor export.georeference names a file"
        )
    others = [one for one in formats if one is not PLY]
    with _writing_to(_target(layout, "", georeferenced)) if others or reference else contextlib.nullcontext():
        tool = find_transform(say=say) if others else None
        begin = time.perf_counter()
        splat = _place(layout, reference, run["offset"], georeferenced) if reference else layout.merged_splat
        seconds = time.perf_counter() - begin if georeferenced else 0.0
        written = [_plain(splat, seconds)] if georeferenced or PLY in formats else []
        if tool:
            written += export_splat(splat, others, lambda name: _target(layout, name, georeferenced), tool, say)
    return {"splat": str(splat), "georeferenced": georeferenced, "exports": [one.to_json() for one in written]}


@contextlib.contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    """Refuse a folder of exports that cannot be written before anything takes long, and clear what kills left in it.

    Raises `EnvironmentProblem`, also when something else has the name of an export.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        clear_leftovers(folder)
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot write exports to {folder}: {error.strerror or error}; make it a folder that can be written, or "
            "export from a copy of the run"
        ) from error
    try:
        yield
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        raise EnvironmentProblem(
            f"cannot write {error.filename2 or error.filename}: {error.strerror}; move away what has that name"
        ) from error


def _by_itself(taken: Offset, say: Callable[[str], None]) -> Georeference | None:
    """A model so far from the origin that an offset was taken off is in the world's coordinates already."""
    if taken == NONE:
        return None
    say(f"the model's own coordinates are taken for the world's; ({shown(taken)}) was taken off them for the run")
    return Georeference(1.0, np.eye(3), np.zeros(3))


def _by_gps(scene: Path, config: Config, say: Callable[[str], None]) -> Georeference | None:
    """What the photographs of a scene say, if it is still there; how well it fits goes to `say`."""
    given = config.scene
    usual = scene / (given.images or "images")
    some = [path for path in itertools.islice(usual.rglob("*"), GLANCE) if path.is_file()]
    if some and not any(read_gps(path) for path in some):
        return None  # and a large model need not be read
    try:
        found = read_scene(scene, given.images, given.missing_images, outside_links=given.outside_links).scene
    except SceneError:
        return None
    fit = fit_gps(found.centers, [found.image_dir / name for name in found.names])
    if fit:
        say(fit.sentence)
    return fit.reference if fit else None


def _target(layout: RunLayout, name: str, georeferenced: bool) -> Path:
    return layout.export(f"georeferenced/{name}" if georeferenced else name)


def _place(layout: RunLayout, of_scene: Georeference, taken: Offset, applied: bool) -> Path:
    """The splat in the coordinates that were asked for, and the JSON that leads from them to the world's.

    `taken` is what the splat's positions are less than the scene's, of which `of_scene` speaks.
    """
    reference = of_scene.after(taken)
    offset = reference.offset(_middle(layout.merged_splat)) if applied else np.zeros(3)
    splat = layout.merged_splat
    if applied:
        splat = _target(layout, PLY.file, True)
        write_georeferenced(layout.merged_splat, splat, reference, offset)
    beside = reference.to_json(applied, offset) | {"scene_to_world": of_scene.matrix.tolist()}
    write_json(_target(layout, "georeference.json", applied), beside)
    return splat


def _middle(splat: Path) -> NDArray[np.float64]:
    """(3,) median position, scene coordinates; 0 for an empty splat."""
    means = [rows[:, :3] for rows in sample_rows(read_header(splat), SAMPLE)]
    return np.median(np.concatenate(means), axis=0).astype(np.float64) if means else np.zeros(3)


def _plain(splat: Path, seconds: float) -> Exported:
    return Exported(PLY.name, splat, splat.stat().st_size, round(seconds, 2), ())
