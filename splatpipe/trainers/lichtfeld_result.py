"""From what LichtFeld Studio left behind to one checked splat in scene coordinates.

LFS writes `splat_<iteration>.ply` or `splat.ply` into its output folder, in training coordinates. Exit status
0 proves nothing: it has left no PLY, half a PLY, a project file only, and a "scene" of two Gaussians with it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from splatpipe.failures.classes import FailureClass
from splatpipe.scene.arrays import Similarity
from splatpipe.splatting.guards import EXPLOSION_SHARE, FLUNG_FACTOR
from splatpipe.splatting.ply import (
    PlyHeader,
    SplatFileError,
    Splats,
    from_rows,
    iter_rows,
    read_header,
    splat_writer,
    to_rows,
    transform,
)
from splatpipe.trainers.base import CollectProblem

ITERATION = re.compile(r"_(\d+)\.ply$")
GROWTH = 1.05  # LFS's own, mcmc.cpp:201
TOO_FEW_TO_GROW = 20  # int(1.05 * n) == n below
ENOUGH = 0.9  # of the count that MCMC reaches by itself; below, it did not grow
DEAD_SHARE = 0.75  # at or below the opacity that MCMC relocates: a collapsed splat
GIANT_SHARE = 0.05  # of Gaussians with a sigma beyond the radius of the whole patch: init_scaling 1.0 ends so


@dataclass(frozen=True)
class Aim:
    """What the run should have reached."""

    iterations: int
    init_points: int
    center: NDArray[np.float64]  # (3,) of the initial points, training coordinates
    radius: float  # of the initial points about `center`
    max_cap: int
    refine_start: int
    refine_stop: int
    refine_every: int
    min_opacity: float

    @property
    def count(self) -> int:
        """Gaussians after the last refinement: each grows by 5 % up to the cap, and MCMC never prunes."""
        n = self.init_points
        first = self.refine_start // self.refine_every + 1
        last = min(self.refine_stop - 1, self.iterations) // self.refine_every
        for _ in range(first, last + 1):
            grown = max(n, min(self.max_cap, int(GROWTH * n)))
            if grown == n:
                break
            n = grown
        return n


def aim_of(config: dict[str, object], points: NDArray[np.float64]) -> Aim:
    """The aim of a run with this configuration from these (P, 3) points in training coordinates."""
    center = np.median(points, axis=0)
    radius = float(np.linalg.norm(points - center, axis=1).max()) or 1.0

    def whole(key: str) -> int:
        return int(config[key])  # type: ignore[call-overload]

    return Aim(
        iterations=whole("iterations"),
        init_points=len(points),
        center=center,
        radius=radius,
        max_cap=whole("max_cap"),
        refine_start=whole("start_refine"),
        refine_stop=whole("stop_refine"),
        refine_every=whole("refine_every"),
        min_opacity=float(config["min_opacity"]),  # type: ignore[arg-type]
    )


def find_result(output: Path, aim: Aim) -> PlyHeader:
    """The checked header of the final PLY in LFS's output folder; CollectProblem says what is there instead."""
    found = sorted(output.rglob("*.ply"))
    if not found:
        raise _no_ply(output)
    final = max(found, key=lambda path: (_iteration(path, aim.iterations), path.stat().st_mtime_ns))
    reached = _iteration(final, aim.iterations)
    if reached < aim.iterations:
        sentence = f"the newest splat is {final.name}, of iteration {reached} of {aim.iterations}."
        raise CollectProblem(FailureClass.EXPORT_MISSING, sentence)
    try:
        header = read_header(final)
    except SplatFileError as error:
        raise CollectProblem(FailureClass.EXPORT_MISSING, str(error)) from error
    return header


def _iteration(path: Path, final: int) -> int:
    number = ITERATION.search(path.name)
    return int(number[1]) if number else final


def _no_ply(output: Path) -> CollectProblem:
    projects = sorted(output.rglob("*.licht"))
    if projects:
        return CollectProblem(
            FailureClass.ENVIRONMENT,
            f"LichtFeld Studio saved only {projects[0].name} and exported no PLY; this build cannot be used "
            "unattended. Install a release (v0.5.2 or v0.5.3), or a newer build whose --help lists --export.",
        )
    return CollectProblem(FailureClass.EXPORT_MISSING, f"LichtFeld Studio left no PLY in {output}.")


def check_count(header: PlyHeader, aim: Aim, announced: int | None) -> list[str]:
    """Warnings about the number of Gaussians; CollectProblem when it cannot be the trained model.

    Fewer than 20 points never grow, so a tiny splat from a tiny patch is the data's fault and no retry helps;
    too few from enough points is what a collapsed MCMC leaves; a file that contradicts the log is not the
    exported model.
    """
    name = header.path.name
    if announced is not None and announced != header.count:
        sentence = f"{name} holds {header.count} Gaussians, LichtFeld Studio announced {announced}."
        raise CollectProblem(FailureClass.EXPORT_MISSING, sentence)
    if aim.init_points < TOO_FEW_TO_GROW and aim.max_cap > aim.init_points:
        raise CollectProblem(
            FailureClass.DATA_ERROR,
            f"{name} holds {header.count} Gaussians: the patch has {aim.init_points} points, and MCMC does not grow "
            f"from fewer than {TOO_FEW_TO_GROW}; make its buffer wider or leave the patch out.",
        )
    if header.count < ENOUGH * aim.count:
        sentence = f"{name} holds {header.count} Gaussians, MCMC reaches {aim.count} when it does not collapse."
        raise CollectProblem(FailureClass.MCMC_COLLAPSE, sentence)
    if header.count > max(aim.max_cap, aim.init_points):
        return [f"{name} holds {header.count} Gaussians, more than the cap of {aim.max_cap}"]
    return []


def convert(header: PlyHeader, aim: Aim, similarity: Similarity, target: Path, comments: Sequence[str]) -> int:
    """Write the splat of `header` to `target` in scene coordinates, atomically; returns its count.

    Nothing is written when a value is not finite, the Gaussians have faded, or they have left the scene or
    outgrown it: CollectProblem. Reads and writes in blocks.
    """
    sick = _Sick(header, aim)
    with splat_writer(target, header.sh_degree, comments) as writer:
        for splats in _blocks(header):
            sick.look(splats)
            writer.append(to_rows(transform(splats, similarity)))
        sick.judge()
    return writer.count


def _blocks(header: PlyHeader) -> Iterator[Splats]:
    for rows in iter_rows(header):
        yield from_rows(rows)


class _Sick:
    """Counts the Gaussians of a file that are dead, flung away or giant."""

    def __init__(self, header: PlyHeader, aim: Aim) -> None:
        self._header, self._aim = header, aim
        self._dead = self._flung = self._giant = 0
        # logit; 1 % above min_opacity, because MCMC leaves relocated Gaussians exactly there
        self._dead_logit = math.log(aim.min_opacity * 1.01 / (1 - aim.min_opacity * 1.01))

    def look(self, splats: Splats) -> None:
        rows = to_rows(splats)
        bad = int((~np.isfinite(rows)).any(axis=1).sum())
        if bad:
            sentence = f"{self._header.path.name}: values of {bad} Gaussians are not finite."
            raise CollectProblem(FailureClass.NAN_DIVERGENCE, sentence)
        away = np.linalg.norm(splats.means - self._aim.center, axis=1)
        self._flung += int((away > FLUNG_FACTOR * self._aim.radius).sum())
        self._giant += int((splats.scales.max(axis=1) > math.log(self._aim.radius)).sum())
        self._dead += int((splats.opacities <= self._dead_logit).sum())

    def judge(self) -> None:
        n = self._header.count
        for count, share, failure, what in (
            (self._flung, EXPLOSION_SHARE, FailureClass.EXPLOSION, "lie outside the scene"),
            (self._giant, GIANT_SHARE, FailureClass.EXPLOSION, "are larger than the whole patch"),
            (self._dead, DEAD_SHARE, FailureClass.MCMC_COLLAPSE, f"are at or below opacity {self._aim.min_opacity:g}"),
        ):
            if count > share * n:
                raise CollectProblem(failure, f"{count} of {n} Gaussians {what}.")
