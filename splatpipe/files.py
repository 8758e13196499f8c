"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

_TEMPORARY = re.compile(r"\.(.+)\.(\d{1,9})\.(tmp|old)")  # .NAME.PROCESS.tmp, and folders .NAME.PROCESS.old

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
    temporary = _beside(path, "tmp")
    try:
        with _named(path):
            yield temporary
            put_file(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # a later run clears it; what went wrong first is what must be told
            temporary.unlink(missing_ok=True)
        raise


def put_file(source: Path, path: Path) -> None:
    """Rename a file that was written on the same disk onto `path`, durably: there is the old file or the new one."""
    with _named(path):
        with source.open("rb+") as handle:
            os.fsync(handle.fileno())
        _rename(source, path)
        sync_folder(path.parent)


def _beside(path: Path, kind: str) -> Path:
    """A name beside `path` that no other living process uses for it."""
    return path.with_name(f".{path.name}.{os.getpid()}.{kind}")


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
    """Remove what `atomic_path` and the folders below could not, anywhere in `folder`: their process was killed.

    What belongs to processes that are alive stays; symbolic links are not followed. A folder that was about to be
    replaced and has no successor gets its name back.
    """
    for root, folders, names in os.walk(folder):
        for name in [*names, *folders]:
            match, left = _TEMPORARY.fullmatch(name), Path(root, name)
            if not match or (match[3] == "old" and name in names):
                continue
            if name in folders:
                folders.remove(name)
            if psutil.pid_exists(int(match[2])):
                continue
            if name in names:
                left.unlink(missing_ok=True)
            elif match[3] == "old":
                _put_back(left, left.with_name(match[1]))
            else:
                shutil.rmtree(left, ignore_errors=True)


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
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`, for what is going to be it; removed when the block ends, however it ends.

    What a killed process leaves behind is cleared by `clear_leftovers`. Creates the parent folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, "tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with _named(path):
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary sibling of `path`; rename it onto `path` when the block succeeds.

    An older folder at `path` is replaced, and stays when the block raises. After a kill there is the old folder or
    the new one, if need be under its temporary name until `clear_leftovers`; never half of one.
    """
    with scratch_folder(path) as temporary:
        yield temporary
        put_folder(temporary, path)


def put_folder(source: Path, path: Path) -> None:
    """Rename a folder that was written on the same disk onto `path`, in place of an older one.

    Others may do the same at once: the last one's stays. Raises `NotADirectoryError` when `path` is a file.
    """
    old = _beside(path, "old")
    try:
        with _named(path):
            while not _renamed(source, path):
                shutil.rmtree(old, ignore_errors=True)
                with contextlib.suppress(FileNotFoundError):
                    _rename(path, old)
            sync_folder(path.parent)
    finally:
        _put_back(old, path)


def _renamed(source: Path, path: Path) -> bool:
    """Whether a folder could be renamed: not onto one that holds something."""
    try:
        _rename(source, path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _put_back(old: Path, path: Path) -> None:
    """Give a folder that was to be replaced its name back where nothing has it now; otherwise remove it."""
    if not path.exists():
        with contextlib.suppress(OSError):
            _rename(old, path)
    shutil.rmtree(old, ignore_errors=True)
