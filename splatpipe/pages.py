"""The pages of a run: its report, and its merged splat in 3D beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from splatpipe.config import Config
from splatpipe.console import say
from splatpipe.errors import EnvironmentProblem, SplatpipeError
from splatpipe.export.transform import find_transform
from splatpipe.layout import RunLayout
from splatpipe.report.splat_page import is_current, write_splat_page
from splatpipe.report.write import RunReport
from splatpipe.runlock import in_use


def write_pages(run_folder: Path, splat: bool) -> dict[str, Any]:
    """Write the page of a run, which may be going on, and with `splat` that of its merged splat; gives both paths.

    Raises `RunFolderError` for a run without patches. That there is no Node.js for the splat is said, not raised.
    """
    layout, made = RunLayout(run_folder.expanduser().resolve()), None
    page = RunReport(layout, Config().to_dict())
    page.write(in_use(layout))
    if splat and layout.merged_splat.is_file():
        try:
            made = write_splat_page(layout, say)
            page.write(in_use(layout))  # with a link to it
        except EnvironmentProblem as problem:
            say(f"warning: no page of the merged splat: {problem}")
    return {"report": str(layout.report), "splat": str(made) if made else None}


def add_splat_page(layout: RunLayout) -> None:
    """The merged splat in 3D beside the run's page, where splat-transform is installed already.

    A run installs nothing for it, and is not the worse without: the run's page says how to get it.
    """
    if not layout.merged_splat.is_file() or is_current(layout):
        return
    try:
        find_transform(install=False)
    except EnvironmentProblem:
        return
    try:
        print(f"merged splat in 3D: {write_splat_page(layout, say)}", flush=True)
        RunReport(layout, Config().to_dict()).write(in_use(layout))  # with a link to it
    except (SplatpipeError, OSError) as problem:  # a disk that is full must not make a finished run a failed one
        say(f"warning: no page of the merged splat: {problem}")
