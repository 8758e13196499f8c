"""Opening a run folder: one run at a time, and never with settings that its patches were not made with."""

from __future__ import annotations

import contextlib
import hashlib
import platform
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from splatpipe import __version__
from splatpipe.config import Config
from splatpipe.errors import RunFolderError
from splatpipe.files import clear_leftovers, write_text
from splatpipe.layout import RunLayout
from splatpipe.runlock import run_lock
from splatpipe.scene.arrays import Scene
from splatpipe.scene.offset import NONE, Offset, checked
from splatpipe.storage.address import without_password
from splatpipe.yamltext import load_yaml

RESULT_SECTIONS = ("scene", "patching", "init_scaling", "training")  # what a trained patch depends on
RETRAINABLE = ("init_scaling", "training")  # of these, what --retrain can change in a folder
IRRELEVANT = {("training", name) for name in ("threads", "device", "image_cache_gb", "lfs_binary")} | {
    ("scene", "outside_links")
}
LIBRARIES = ("numpy", "scipy", "pycolmap", "torch", "numba", "gsplat")


@contextlib.contextmanager
def locked(layout: RunLayout, say: Callable[[str], None] = lambda sentence: None) -> Iterator[None]:
    """Hold the run folder, cleared of what killed runs left half written.

    Raises `RunFolderError` that names the owner when another run holds it, `EnvironmentProblem` when it cannot be
    written.
    """
    with run_lock(layout, say):
        clear_leftovers(layout.root)
        yield


def read_run(layout: RunLayout) -> dict[str, Any]:
    """run.yml of an existing run. Raises `RunFolderError` when this is not a run folder."""
    if not layout.run_yml.is_file():
        runs = [str(path.parent) for path in sorted(layout.root.glob("splatpipe/*/run.yml"))]
        advice = f"its runs are {', '.join(runs)}" if runs else "start with `splatpipe run SCENE`"
        raise RunFolderError(f"{layout.root} is not a run folder: it has no run.yml ({advice})")
    try:
        run = load_yaml(layout.run_yml.read_text(encoding="utf-8"))
        scene, settings = Path(run["scene"]), dict(run["settings"].items())
        offset = checked(run.get("offset", NONE))  # a run from before there were offsets has none
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise RunFolderError(
            f"{layout.run_yml} cannot be read ({error}); move it away and run again with the same scene and settings: "
            "what is trained is kept"
        ) from error
    return {**run, "scene": scene, "settings": settings, "offset": offset}


def offset_of(layout: RunLayout) -> Offset | None:
    """What an existing run has taken off its scene's positions, which stays so; None where it has no patches yet."""
    return read_run(layout)["offset"] if layout.run_yml.is_file() and _was_cut(layout) else None


def check_place(layout: RunLayout, root: Path, scene: Scene) -> None:
    """Raise `RunFolderError` for a new run folder that would hold, or lie in, what the scene at `root` is made of."""
    if layout.run_yml.exists():
        return
    run, root = layout.root.resolve(), root.resolve()
    advice = f"choose another folder with --out, for example {root / 'splatpipe' / 'default'}"
    for place in (root, scene.image_dir.resolve(), scene.model_dir.resolve()):
        if place.is_relative_to(run):
            raise RunFolderError(f"{run} cannot be the run folder, because the scene's own {place} is in it; {advice}")
        if run.is_relative_to(place) and not root.is_relative_to(place):
            raise RunFolderError(f"{run} cannot be the run folder, because it is in the scene's own {place}; {advice}")


def record_run(layout: RunLayout, path: Path, scene: Scene, config: Config, retrain: bool) -> None:
    """Write run.yml; where the folder has patches, check first that they fit the scene at `path` and `config`.

    Raises `RunFolderError` that lists the settings that differ when they do not.
    """
    model = fingerprint(scene)
    if layout.run_yml.exists() and _was_cut(layout):
        _check_same(layout, read_run(layout), path, model, config, retrain)
    run = {
        "scene": str(path),
        "model": model,
        "offset": list(scene.offset),
        "settings_hash": config.hash(),
        "command": command_line(),
        "started": _now(),
        "versions": library_versions(),
        "settings": config.to_dict(),
    }
    write_text(layout.run_yml, yaml.safe_dump(run, sort_keys=False, allow_unicode=True))


def command_line() -> list[str]:
    """The words that started this process, without passwords."""
    return [without_password(word) for word in sys.argv]


def fingerprint(scene: Scene) -> str:
    """Sixteen hex digits that identify the model: names, intrinsics, poses, points."""
    digest = hashlib.sha256(repr((scene.names, scene.intrinsics)).encode("utf-8", "surrogateescape"))
    for array in (scene.viewmats, scene.Ks, scene.points):
        digest.update(np.ascontiguousarray(array).tobytes())
    if scene.offset != NONE:
        digest.update(repr(scene.offset).encode())
    return digest.hexdigest()[:16]


def _was_cut(layout: RunLayout) -> bool:
    """Whether the folder holds anything of its scene. One whose images could not be undistorted may begin anew."""
    return any(place.exists() for place in (layout.patches, layout.attempts, layout.ledger))


def _check_same(
    layout: RunLayout, before: dict[str, Any], path: Path, model: str, config: Config, retrain: bool
) -> None:
    if before["scene"] != path and before["scene"].exists():
        raise RunFolderError(f"{layout.root} belongs to the scene {before['scene']}; choose another folder with --out")
    if before.get("model") != model:
        raise RunFolderError(
            f"the model of {path} is not the one that {layout.root} was made from; choose another folder with --out"
        )
    allowed = RETRAINABLE if retrain else ()
    now = config.to_dict()
    defaults = Config().to_dict()  # which a run was made with from before a setting existed
    changed = [
        f"{section}.{key} {old!r} -> {value!r}"
        for section in RESULT_SECTIONS
        if section not in allowed
        for key, value in now[section].items()
        if (old := before["settings"].get(section, {}).get(key, defaults[section][key])) != value
        and (section, key) not in IRRELEVANT
    ]
    if changed:
        advice = "choose another folder with --out, or give the old values"
        if not retrain and all(line.split(".")[0] in RETRAINABLE for line in changed):
            advice += ", or name the patches to train anew with --retrain"
        raise RunFolderError(f"{layout.root} was made with other settings ({'; '.join(changed)}): {advice}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def library_versions() -> dict[str, str]:
    found = {"splatpipe": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
