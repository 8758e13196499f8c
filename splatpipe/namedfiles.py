"""Files that settings name and that are needed only after training: they are looked at before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from splatpipe.errors import ConfigError
from splatpipe.export.settings import ExportSettings
from splatpipe.merge.settings import EvaluationSettings
from splatpipe.mistakes import Keys, Origins


def wrong_files(export: ExportSettings, evaluation: EvaluationSettings, scene: Path, origins: Origins) -> Iterator[str]:
    """A line for each file that is missing or not what it should be. What is heavy is loaded for those named only."""
    if export.georeference is not None:
        yield from _problem(("export", "georeference"), origins, lambda: _georeference(export.georeference, scene))
    if evaluation.lpips_weights:
        yield from _problem(("evaluation", "lpips_weights"), origins, lambda: check_lpips(evaluation.lpips_weights))


def _problem(keys: Keys, origins: Origins, check: Callable[[], None]) -> Iterator[str]:
    try:
        check()
    except ConfigError as error:
        name = ".".join(keys)
        yield f"{origins.place(keys)}: {name}: {str(error).removeprefix(f'{name}: ')}"


def _georeference(setting: str | None, scene: Path) -> None:
    from splatpipe.export.georeference import find_georeference

    find_georeference(setting, scene)


def check_lpips(folder: str | None) -> None:
    """Raises `ConfigError` for a folder of LPIPS weights that is none; None is no folder."""
    from splatpipe.splatting.lpips import Lpips

    if folder:
        Lpips(Path(folder).expanduser())
