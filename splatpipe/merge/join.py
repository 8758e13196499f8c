"""Many trained patches become one splat file, in chunks: memory does not grow with the size."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splatpipe.errors import EnvironmentProblem, RunFolderError
from splatpipe.files import DISK_FULL
from splatpipe.merge.clean import NOT_FINITE, RULES, Cleaning, no_cleaning
from splatpipe.merge.colors import ColorFit
from splatpipe.merge.coverage import Coverage, CoverageTally
from splatpipe.merge.grid import Grid
from splatpipe.merge.neighbours import spacing
from splatpipe.merge.ownership import Claim, Ownership, Territory, reach
from splatpipe.merge.rows import Rows, faded
from splatpipe.merge.settings import MergeSettings
from splatpipe.merge.survey import cells_for, find_loans, survey
from splatpipe.patches.frame import Frame
from splatpipe.splatting.ply import (
    CHUNK_ROWS,
    PlyHeader,
    SplatWriter,
    antialiased_comment,
    iter_rows,
    read_header,
    sample_rows,
    splat_writer,
)

GRID_SAMPLE = 1 << 14  # rows of each part that say where the ground is


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
    foreign: int  # belong to another patch, or to nobody
    dropped: dict[str, int]  # by cleaning rule: of those it owns, and every one that is not finite
    filled: dict[str, int]  # of those kept, how many lie in the core of a patch that is missing
    borrowed: int  # of those kept, how many stand in for a neighbour that is too thin there
    shared: int  # of those kept, how many are wide and count by their mass in the core, at reduced opacity


@dataclass(frozen=True)
class Loan:
    """Ground of `owner` that is filled by `neighbour`, because the owner is too thin there."""

    owner: str
    neighbour: str
    cells: int


@dataclass(frozen=True)
class MergeReport:
    """A merged splat file and where its Gaussians come from."""

    path: Path
    gaussians: int
    sh_degree: int
    parts: tuple[PartReport, ...]
    holes: tuple[str, ...]  # patches without a splat
    loans: tuple[Loan, ...]
    coverage: Coverage

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

    def damage_sentences(self) -> list[str]:
        """For each patch with numbers that are none: a trainer writes no such rows, whatever changed the file does."""
        return [
            f"{part.patch_id}: {part.dropped[NOT_FINITE]} of its {part.read} Gaussians are not finite, and are left "
            "out of the merged splat."
            for part in self.parts
            if part.dropped[NOT_FINITE]
        ]

    def to_json(self) -> dict[str, Any]:
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain = {name: fields[name] for name in ("gaussians", "sh_degree", "holes")}
        lists = {name: [dataclasses.asdict(one) for one in fields[name]] for name in ("parts", "loans")}
        covered = {"cells": self.coverage.covered_cells, "holes": int(self.coverage.holes.sum())}
        return {"path": str(self.path), **plain, **lists, "dropped": self.dropped, "coverage": covered}


@dataclass(frozen=True)
class Borders:
    """How places and Gaussians between patches are dealt with; `MergeSettings` has the meaning of each."""

    thin_owner: float = 0.0
    share_wide: bool = False

    @classmethod
    def of(cls, settings: MergeSettings) -> Borders:
        return cls(settings.thin_owner, settings.share_wide)


def merge_splats(
    parts: Sequence[MergePart],
    out: Path,
    patches: Sequence[Territory],
    frame: Frame,
    cleaning: Cleaning | None = None,
    comments: Sequence[str] = (),
    chunk_rows: int = CHUNK_ROWS,
    borders: Borders | None = None,
    fits: Mapping[str, ColorFit] | None = None,
    check: Callable[[], None] = lambda: None,
) -> MergeReport:
    """Write to `out` what each part owns, in the order of the patch ids.

    `patches` are all patches of the scene, trained or not, cut in `frame`; a patch without a part is a hole,
    which its neighbours' buffers fill as far as they reach. The parts are looked at by sample first, then read once.
    SH degrees may differ: missing bands are zero. `fits` correct the colours of the parts that they name. Peak memory
    is a few chunks, whatever the size, and 120 bytes for each Gaussian of the largest part when the cleaning needs
    spacing. `out` may be one of the parts. `check` is called with each chunk, and may raise.
    Raises SplatFileError for a part that is not whole, RunFolderError when there is no part,
    EnvironmentProblem when the disk is full; `out` is then as it was.
    """
    if not parts:
        raise RunFolderError(f"{out}: nothing to merge, because no patch has a trained splat.")
    headers = {part.patch_id: read_header(part.path) for part in sorted(parts, key=lambda part: part.patch_id)}
    trained = [patch for patch in patches if patch.id in headers]
    holes = [patch for patch in patches if patch.id not in headers]
    if len(headers) != len(parts) or len(trained) != len(parts):
        raise ValueError("every part must have the id of a patch of its own")
    modes = {header.antialiased for header in headers.values()}
    if len(modes) > 1:
        one, other = (next(i for i, h in headers.items() if h.antialiased == mode) for mode in list(modes)[:2])
        raise RunFolderError(
            f"{out}: {one} and {other} were not both trained with the same antialiasing, so no viewer can show them "
            "together; train them again with the same training.antialiased (--retrain)"
        )
    comments = [*comments, *(antialiased_comment(blur) for blur in modes if blur is not None)]
    borders = borders or Borders()
    cleaning = cleaning or no_cleaning()
    surveyed = survey(headers, patches, frame, _grid(headers, frame), cleaning)
    loans = find_loans(surveyed, borders.thin_owner)
    ownership = Ownership(frame, trained, holes, loans, borders.share_wide)
    degree = max(header.sh_degree for header in headers.values())
    tally = CoverageTally(surveyed.grid, reach(patches) / 3)
    with _room(out), splat_writer(out, degree, comments) as writer:
        join = _Join(ownership, cleaning, writer, tally, degree, chunk_rows, check)
        matched = fits or {}
        reports = tuple(join.append(patch_id, header, matched.get(patch_id)) for patch_id, header in headers.items())
    lent = tuple(Loan(owner, neighbour, len(cells)) for (owner, neighbour), cells in loans.cells.items())
    coverage = tally.against(surveyed.best())
    return MergeReport(out, writer.count, degree, reports, ownership.holes, lent, coverage)


@contextlib.contextmanager
def _room(out: Path) -> Iterator[None]:
    """Turns a full disk into a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise EnvironmentProblem(
                f"{out}: the merged splat does not fit there ({error.strerror}); make room and merge again."
            ) from error
        raise


def _grid(headers: Mapping[str, PlyHeader], frame: Frame) -> Grid:
    """Over the ground that the patches' Gaussians cover, as a small sample of each shows it."""
    samples = [rows[:, :3] for header in headers.values() for rows in sample_rows(header, GRID_SAMPLE)]
    means = np.concatenate([*samples, np.zeros((1, 3), np.float32)][: len(samples) or 1])
    points = frame.apply(means[np.isfinite(means).all(axis=1)])
    return Grid.over(points if len(points) else np.zeros((1, 3)), cells_for(headers))


@dataclass(frozen=True)
class _Join:
    ownership: Ownership
    cleaning: Cleaning
    writer: SplatWriter
    tally: CoverageTally
    sh_degree: int
    chunk_rows: int
    check: Callable[[], None]

    def append(self, patch_id: str, header: PlyHeader, fit: ColorFit | None) -> PartReport:
        """Write what the patch owns of its own file, and count the rest."""
        distances = spacing(header) if self.cleaning.needs_spacing else None
        read = kept = foreign = borrowed = shared = 0
        dropped = dict.fromkeys(RULES, 0)
        filled = dict.fromkeys(self.ownership.holes, 0)
        for rows in iter_rows(header, self.sh_degree, self.chunk_rows):
            self.check()
            claim = self.ownership.claim(patch_id, rows)
            mine = claim.shares > 0
            masks = self.cleaning.dropped(rows, distances.part(read, read + len(rows)) if distances else None)
            mine |= masks[NOT_FINITE]  # a place that is no number lies in no core; count it here
            foreign += len(rows) - int(mine.sum())
            for rule, mask in masks.items():
                dropped[rule] += int((mask & mine).sum())
                mine &= ~mask
            for hole, mask in claim.filled.items():
                filled[hole] += int((mask & mine).sum())
            parted = mine & (claim.shares < 1)
            read, kept, shared = read + len(rows), kept + int(mine.sum()), shared + int(parted.sum())
            borrowed += int((claim.borrowed & mine).sum())
            self._write(rows, mine, claim, parted, fit)
        return PartReport(patch_id, header.count, kept, foreign, dropped, filled, borrowed, shared)

    def _write(
        self,
        rows: Rows,
        mine: NDArray[np.bool_],
        claim: Claim,
        parted: NDArray[np.bool_],
        fit: ColorFit | None,
    ) -> None:
        out = rows if mine.all() else rows[mine]
        if parted.any():
            part = parted[mine]
            out = out.copy()
            out[part] = faded(out[part], claim.shares[parted])
        out = fit.apply(out) if fit else out
        self.tally.add(claim.points[mine], out)
        self.writer.append(out)
