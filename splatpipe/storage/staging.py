"""A remote scene as a local copy: fetched once, file by file, and gone on with where it was cut off."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from splatpipe.errors import EnvironmentProblem, SceneError
from splatpipe.files import read_json, write_json
from splatpipe.storage.store import PART, RemoteFile, Store

RUNS = "splatpipe/"  # where runs are kept below a scene; no part of it
MANIFEST = ".staged.json"
NOTE_EVERY = 200  # files


def stage_scene(store: Store, folder: Path, say: Callable[[str], None]) -> Path:
    """Bring `folder` up to date with the scene in `store`. Raises `SceneError` when there is none."""
    files = {key: file for key, file in store.files().items() if not key.startswith(RUNS)}
    if not files:
        raise SceneError(f"{store.address} holds no file; name a folder with a COLMAP model and its images")
    stage(store, files, folder, say)
    _forget(folder, set(_manifest(folder)) - set(files))
    return folder


def stage(store: Store, files: Mapping[str, RemoteFile], folder: Path, say: Callable[[str], None]) -> None:
    """Fetch those of `files` (by key) that are missing, or of which the store's size, check sum or version changed."""
    had = _manifest(folder)
    wanted = [file for key, file in sorted(files.items()) if not _is_here(file, folder / key, had.get(key))]
    if wanted:
        size = sum(file.size for file in wanted)
        say(f"fetching {len(wanted)} of {len(files)} files ({size / 1e6:,.0f} MB) of {store.address} into {folder}")
        fetch_all(store, wanted, folder, had, say)


def fetch_all(
    store: Store, files: Sequence[RemoteFile], folder: Path, had: dict[str, Any], say: Callable[[str], None]
) -> None:
    """Fetch `files` side by side, noting each in the manifest as it comes, in batches."""
    for start in range(0, len(files), NOTE_EVERY):
        batch = files[start : start + NOTE_EVERY]
        for file in batch:
            _drop_stale_part(file, folder, had)
        write_json(folder / MANIFEST, had | {file.key: _note(file, whole=False) for file in batch})
        with ThreadPoolExecutor(store.streams) as pool:
            list(pool.map(lambda file: store.fetch(file, folder / file.key), batch))
        had |= {file.key: _note(file, whole=True) for file in batch}
        write_json(folder / MANIFEST, had)
        if len(files) > NOTE_EVERY:
            say(f"fetched {min(start + NOTE_EVERY, len(files))} of {len(files)} files")


def _note(file: RemoteFile, *, whole: bool) -> dict[str, Any]:
    return asdict(file) | {"whole": whole}


def _drop_stale_part(file: RemoteFile, folder: Path, had: Mapping[str, Any]) -> None:
    """What was fetched of another version must not become the beginning of this one."""
    part = folder / (file.key + PART)
    if part.exists() and {**had.get(file.key, {}), "whole": False} != _note(file, whole=False):
        part.unlink()


def _is_here(file: RemoteFile, path: Path, noted: Mapping[str, Any] | None) -> bool:
    return noted == _note(file, whole=True) and path.is_file() and path.stat().st_size == file.size


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        data = read_json(folder / MANIFEST)
        return data if isinstance(data, dict) else {}
    except (FileNotFoundError, ValueError):
        return {}
    except OSError as error:
        raise EnvironmentProblem(f"{folder}: cannot be used ({error.strerror or error}); see storage.work") from error


def _forget(folder: Path, gone: set[str]) -> None:
    """Remove what the store no longer has, as far as we fetched it."""
    if not gone:
        return
    for key in gone:
        (folder / key).unlink(missing_ok=True)
    left = {key: note for key, note in _manifest(folder).items() if key not in gone}
    write_json(folder / MANIFEST, left)
