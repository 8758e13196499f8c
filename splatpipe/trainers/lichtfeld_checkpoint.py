"""Checkpoints that LichtFeld Studio writes and can go on from: the `.resume` files of v0.3 to v0.5.3.

Every build with `--resume` and without `--export` writes one at each of the configuration's `save_steps`, in
`checkpoints/` of its output folder: v0.3 to v0.5.0 `checkpoint_<step>.resume`, later ones `checkpoint.resume`, over and
over. Newer builds keep their state in `project.licht` instead; some of those put the result of a resumed run into
the file that it was resumed from, so they start again (LFS #1911).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from splatpipe.files import read_json

# Checkpoint format 1: magic, version, iteration, Gaussians, SH degree, flags, where its parameters begin, their bytes.
HEADER = struct.Struct("<IIiIiIQQ")
MAGIC = 0x4C464B50
SAVES = 5  # in one run: each also writes a PLY, together about 1 kB for each Gaussian, while training waits


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint and the step it was written at."""

    path: Path
    step: int

    def moved(self, folder: Path) -> Checkpoint:
        """The same in `folder`, on the same file system."""
        return Checkpoint(self.path.replace(folder / self.path.name), self.step)


def can_resume(flags: frozenset[str]) -> bool:
    """Whether a build with these long flags goes on from `.resume` files."""
    return "resume" in flags and "export" not in flags


def save_steps(iterations: int, every: int) -> list[int]:
    """When to write checkpoints: each `every` steps where that is `SAVES` times at most, else `SAVES` times."""
    spacing = max(every, -(-iterations // (SAVES + 1)))
    return list(range(spacing, iterations, spacing))


def newest(folders: Iterable[Path], iterations: int) -> Checkpoint | None:
    """The whole checkpoint below `folders` that is furthest, of those that leave something to train."""
    paths = (path for folder in folders for path in folder.rglob("*.resume"))
    whole = (Checkpoint(path, step) for path in paths if (step := _step(path)) is not None and step < iterations)
    return max(whole, key=lambda one: one.step, default=None)


def same_training(config: Path, wanted: dict[str, object]) -> bool:
    """Whether the configuration kept at `config` trains what `wanted` does."""
    try:
        return bool(read_json(config) == wanted)
    except (OSError, ValueError):
        return False


def _step(path: Path) -> int | None:
    """The step of a checkpoint; None for one that is not whole: its header, written last, says where it ends."""
    try:
        with path.open("rb") as handle:
            magic, _, step, count, _, _, begin, length = HEADER.unpack(handle.read(HEADER.size))
            whole = begin + length == os.fstat(handle.fileno()).st_size
    except (OSError, struct.error):
        return None
    return step if magic == MAGIC and whole and length and count and step > 0 else None
