"""A run as a batch job of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from splatpipe.config import find_config, load_config
from splatpipe.console import say
from splatpipe.executors.sbatch import NodeShare, sbatch_script
from splatpipe.storage.address import parse_address


def slurm_script(
    scene: str, out: str | None, config_file: Path | None, overrides: Sequence[str], nodes: NodeShare
) -> str:
    """A batch script for sbatch that makes this run on one node; scene and run folder are paths or addresses."""
    here = None if parse_address(scene) else Path(scene).expanduser().resolve()
    if here and not here.is_dir():
        say(f"warning: {here} does not exist on this machine; is it the scene that the job will find?")
    found = config_file or find_config(here)
    config = load_config(found, overrides)
    places = [_everywhere(scene), *(["--out", _everywhere(out)] if out else [])]
    settings = ["--config", str(found.resolve())] if found else []
    command = [sys.executable, "-m", "splatpipe.cli", "run", "--batch", *places, *settings, *overrides]
    name = (here or Path(scene)).name
    return sbatch_script(command, name, config.executor, nodes, config.limits.grace_s)


def _everywhere(place: str) -> str:
    """A path that holds in any working folder; addresses do anyway."""
    return place if parse_address(place) else str(Path(place).expanduser().resolve())
