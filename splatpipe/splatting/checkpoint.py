"""Checkpoints of one training: everything needed to continue as if nothing had happened.

Camera order, relocation draws and noise are functions of (seed, step), so no generator state is stored.
"""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from splatpipe.files import atomic_path

FULL_BYTES = 8 << 20  # a disk with less free than this is taken to be full
KEEP = 2  # the newest may turn out to be unreadable
_NAME = re.compile(r"step_(\d+)\.pt$")


@dataclass(frozen=True)
class Checkpoint:
    """State after `step` finished steps; `key` says which request it belongs to."""

    step: int
    key: str
    params: dict[str, torch.Tensor]
    adam: dict[str, Any]
    health: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)  # state of options by name; of those in use only


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `checkpoint` atomically and drop all but the newest two. Raises `OSError` when the disk is full."""
    path = folder / f"step_{checkpoint.step:07d}.pt"
    with atomic_path(path) as temporary:
        try:
            torch.save(vars(checkpoint), temporary)
        except RuntimeError as error:  # torch's own writer does not say that the disk is full
            if shutil.disk_usage(folder).free < FULL_BYTES:
                raise OSError(errno.ENOSPC, "the disk is full", str(path)) from error
            raise
    for old in _newest_first(folder)[KEEP:]:
        old.unlink(missing_ok=True)
    return path


def load_latest(folder: Path, key: str, device: torch.device) -> Checkpoint | None:
    """The newest checkpoint of the same request that can be read, or None."""
    for path in _newest_first(folder):
        # Whatever is wrong with a damaged file (zip, pickle, missing key), the next older one is tried.
        with contextlib.suppress(Exception):
            checkpoint = _load(path, device)
            if checkpoint.key == key:
                return checkpoint
    return None


def _load(path: Path, device: torch.device) -> Checkpoint:
    """torch reads a zip file without comparing its check sums, so damaged numbers would be trained on."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{path}: {damaged} is damaged")
    return Checkpoint(**torch.load(path, map_location=device, weights_only=True))


def _newest_first(folder: Path) -> list[Path]:
    return sorted((p for p in folder.glob("step_*.pt") if _NAME.search(p.name)), reverse=True)
