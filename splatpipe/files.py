"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")  # as `atomic_path` names them: .NAME.PROCESS.tmp


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable (a rename is only on disk once its folder is)."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; fsync and rename it onto `path` when the block succeeds.

    The temporary file is removed when the block raises, so a reader sees the old file or the
    whole new one. Creates the parent folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _named(path):
            yield temporary
            with temporary.open("rb+") as handle:
                os.fsync(handle.fileno())
            _rename(temporary, path)
            sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):  # a later run clears it; what went wrong first is what must be told
            temporary.unlink(missing_ok=True)
        raise


def _rename(source: Path, target: Path) -> None:
    """Rename, again when a signal came between: Python does so for reads and writes, not for names."""
    while True:
        try:
            source.replace(target)
            return
        except InterruptedError:
            continue


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let an error of the operating system say which file it was about, where it does not know."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def clear_leftovers(folder: Path) -> None:
    """Remove what `atomic_path` could not, anywhere below `folder`: the process that wrote it was killed.

    Files of processes that are alive stay; symbolic links are not followed.
    """
    for root, _, names in os.walk(folder):
        for name in names:
            match = _TEMPORARY.fullmatch(name)
            if match and not psutil.pid_exists(int(match[1])):
                Path(root, name).unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` atomically, as indented JSON; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises `OSError`, or `ValueError` for anything that is no JSON."""
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str | bytes) -> Any:
    """The data of a JSON text. Raises `ValueError` for anything else, however it is nested."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary sibling of `path`; rename it onto `path` when the block succeeds.

    An older folder at `path` is replaced. After a kill there is the old folder, the new one or none, never half
    of one; what a killed process left behind is cleared by the next call. Creates the parent folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with _named(path):
            yield temporary
            shutil.rmtree(old, ignore_errors=True)
            if path.exists():
                _rename(path, old)
            _rename(temporary, path)
            sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
