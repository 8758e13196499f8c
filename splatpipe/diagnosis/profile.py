"""The recommended settings as a profile under `lfs_configs/`, in the form that both trainers read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from splatpipe.files import write_text
from splatpipe.trainers.base import TrainRequest
from splatpipe.trainers.lichtfeld_config import PROFILE_FOLDER, complete

MOST_NAMES = 100


@dataclass(frozen=True)
class Profile:
    """What was recommended and where it was written. `shared` None: no lfs_configs/ folder is near."""

    changes: Mapping[str, Any]
    path: Path  # in the diagnosis
    shared: Path | None
    note: str  # what a user should do with it

    def to_json(self) -> dict[str, Any]:
        shared = str(self.shared) if self.shared else None
        return {"changes": dict(self.changes), "path": str(self.path), "shared": shared, "note": self.note}


def write_profile(
    request: TrainRequest, changes: Mapping[str, Any], path: Path, near: Sequence[Path], name: str
) -> Profile:
    """Write the request's settings with `changes` (its fields, or those of its settings) to `path`.

    A copy goes to the first `lfs_configs/` beside one of `near`, as `name`.json; where that is another file already,
    as `name`_2.json and so on: nothing of the user's is overwritten.
    """
    init_scaling = changes.get("init_scaling", request.init_scaling)
    settings = replace(request.settings, **{key: value for key, value in changes.items() if key != "init_scaling"})
    text = json.dumps(complete({}, settings, init_scaling), indent=2) + "\n"
    write_text(path, text)
    folder = next((place / PROFILE_FOLDER for place in near if (place / PROFILE_FOLDER).is_dir()), None)
    if folder is None:
        note = f"copy it into a folder {PROFILE_FOLDER}/ beside the scene, and set training.lfs_config: {path.name}"
        return Profile(changes, path, None, note)
    shared = _free(folder, name, text)
    if not shared.is_file():
        write_text(shared, text)
    return Profile(changes, path, shared, f"use it with training.lfs_config: {shared.name}")


def _free(folder: Path, name: str, text: str) -> Path:
    """The first of name.json, name_2.json ... that is not there, or holds `text` already."""
    for n in range(1, MOST_NAMES):
        place = folder / (f"{name}.json" if n == 1 else f"{name}_{n}.json")
        if not place.is_file() or place.read_text(encoding="utf-8", errors="replace") == text:
            return place
    return folder / f"{name}_{MOST_NAMES}.json"
