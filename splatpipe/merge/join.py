"""Many trained patches become one splat file, in chunks: memory does not grow with the size."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splatpipe.errors import EnvironmentProblem, RunFolderError
from splatpipe.merge.clean import NOT_FINITE, RULES, Cleaning, no_cleaning
from splatpipe.merge.ownership import Ownership, Territory
from splatpipe.patches.frame import Frame
from splatpipe.splatting.ply import CHUNK_ROWS, PlyHeader, SplatWriter, iter_rows, read_header, splat_writer


@dataclass(frozen=True)
class MergePart:
    """A trained patch: its splat in scene coordinates."""

    patch_id: str
    path: Path


@dataclass(frozen=True)
class PartReport:
    """What became of one patch's Gaussians: read == kept + foreign + sum(dropped)."""

    patch_id: str
    read: int
    kept: int
    foreign: int  # belong to another patch's core, or to nobody
    dropped: dict[str, int]  # by cleaning rule: of those it owns, and every one that is not finite
    filled: dict[str, int]  # of those kept, how many lie in the core of a patch that is missing


@dataclass(frozen=True)
class MergeReport:
    """A merged splat file and where its Gaussians come from."""

    path: Path
    gaussians: int
    sh_degree: int
    parts: tuple[PartReport, ...]
    holes: tuple[str, ...]  # patches without a splat

    @property
    def dropped(self) -> dict[str, int]:
        """By cleaning rule, over all patches."""
        return {rule: sum(part.dropped[rule] for part in self.parts) for rule in RULES}

    def filled(self, hole: str) -> dict[str, int]:
        """How many Gaussians of which patch stand in for a missing one."""
        return {part.patch_id: part.filled[hole] for part in self.parts if part.filled.get(hole)}

    def hole_sentences(self) -> list[str]:
        """For each missing patch, who stands in for it."""
        sentences = []
        for hole in self.holes:
            fill = self.filled(hole)
            neighbours = ", ".join(f"{n} Gaussians of {patch}" for patch, n in fill.items())
            end = (
                f"its core is covered only by the buffers of its neighbours ({neighbours})."
                if fill
                else "it is a hole."
            )
            sentences.append(f"{hole} is missing from the merged splat: {end}")
        return sentences

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "path": str(self.path), "dropped": self.dropped}


def merge_splats(
    parts: Sequence[MergePart],
    out: Path,
    patches: Sequence[Territory],
    frame: Frame,
    cleaning: Cleaning | None = None,
    comments: Sequence[str] = (),
    chunk_rows: int = CHUNK_ROWS,
) -> MergeReport:
    """Write to `out` what each part owns, in the order of the patch ids.

    `patches` are all patches of the scene, trained or not, cut in `frame`; a patch without a part is a hole,
    which its neighbours' buffers fill as far as they reach.
    SH degrees may differ: missing bands are zero. Peak memory is a few chunks, whatever the size. `out` may be
    one of the parts. Raises SplatFileError for a part that is not whole, RunFolderError when there is no part,
    EnvironmentProblem when the disk is full; `out` is then as it was.
    """
    if not parts:
        raise RunFolderError(f"{out}: nothing to merge, because no patch has a trained splat.")
    headers = {part.patch_id: read_header(part.path) for part in sorted(parts, key=lambda part: part.patch_id)}
    trained = [patch for patch in patches if patch.id in headers]
    holes = [patch for patch in patches if patch.id not in headers]
    if len(headers) != len(parts) or len(trained) != len(parts):
        raise ValueError("every part must have the id of a patch of its own")
    ownership = Ownership(frame, trained, holes)
    degree = max(header.sh_degree for header in headers.values())
    try:
        with splat_writer(out, degree, comments) as writer:
            join = _Join(ownership, cleaning or no_cleaning(), writer, degree, chunk_rows)
            reports = tuple(join.append(patch_id, header) for patch_id, header in headers.items())
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise EnvironmentProblem(
                f"{out}: the merged splat does not fit there ({error.strerror}); make room and merge again."
            ) from error
        raise
    return MergeReport(out, writer.count, degree, reports, ownership.holes)


@dataclass(frozen=True)
class _Join:
    ownership: Ownership
    cleaning: Cleaning
    writer: SplatWriter
    sh_degree: int
    chunk_rows: int

    def append(self, patch_id: str, header: PlyHeader) -> PartReport:
        """Write what the patch owns of its own file, and count the rest."""
        kept = foreign = 0
        dropped = dict.fromkeys(RULES, 0)
        filled = dict.fromkeys(self.ownership.holes, 0)
        for rows in iter_rows(header, self.sh_degree, self.chunk_rows):
            mine, fills = self.ownership.owned(patch_id, rows[:, :3])
            for mask in fills.values():
                mine |= mask
            masks = self.cleaning.dropped(rows)
            mine |= masks[NOT_FINITE]  # a place that is no number lies in no core; count it here
            foreign += len(rows) - int(mine.sum())
            for rule, mask in masks.items():
                dropped[rule] += int((mask & mine).sum())
                mine &= ~mask
            for hole, mask in fills.items():
                filled[hole] += int((mask & mine).sum())
            kept += int(mine.sum())
            self.writer.append(rows if mine.all() else rows[mine])
        return PartReport(patch_id, header.count, kept, foreign, dropped, filled)
