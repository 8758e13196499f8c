"""The first rung of a patch, from how similar patches fared. Pure: reads no file and starts nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from splatpipe.failures.classes import FailureClass
from splatpipe.policy.remedies import EXPLODED, TOO_LARGE

ALIKE = 0.5  # largest `distance` at which two patches are held to be alike
SHOWN = 3  # outcomes that a choice names


@dataclass(frozen=True)
class Likeness:
    """What makes patches alike: numbers without a unit."""

    trainer: str
    size: float  # initial sigma over the distance to the neighbours, at init_scaling 1
    extent_ratio: float  # extent over the median extent of the patches of its run
    visibility: float  # share of the cameras that see the median initial Gaussian

    def distance(self, other: Likeness) -> float:
        """0 for equal ones; a factor of e in any of the numbers is 1. Infinite between trainers."""
        if self.trainer != other.trainer:
            return math.inf
        pairs = (
            (self.size, other.size),
            (self.extent_ratio, other.extent_ratio),
            (self.visibility + 0.01, other.visibility + 0.01),
        )
        return sum(abs(math.log(a / b)) if a > 0 and b > 0 else math.inf for a, b in pairs)


@dataclass(frozen=True)
class Trial:
    """One attempt: its rung, and how it ended (None: it trained)."""

    init_scaling: float
    failure: FailureClass | None


@dataclass(frozen=True)
class Past:
    """What became of one patch, in this run or another: its trials with one trainer, oldest first."""

    run: str
    patch: str
    same_scene: bool
    when: float  # seconds since the epoch
    likeness: Likeness
    trials: tuple[Trial, ...]

    @property
    def trained_at(self) -> float | None:
        """The rung that worked."""
        return self.trials[-1].init_scaling if self.trials and self.trials[-1].failure is None else None

    def sentence(self) -> str:
        failed = ", ".join(f"{t.failure} at {t.init_scaling:g}" for t in self.trials if t.failure)
        return f"{self.patch} of run {self.run} ({failed}; trained at {self.trained_at:g})"


@dataclass(frozen=True)
class Learned:
    """A first rung that rests on outcomes, and the sentence that names them."""

    init_scaling: float
    reason: str


def likeness(statistics: Mapping[str, Any], median_extent: float, trainer: str) -> Likeness | None:
    """From `PatchStats.to_json()`; None when a number is missing there."""
    try:
        size = float(statistics["relative_size"][trainer]) / float(statistics["init_scaling"])
        ratio = float(statistics["extent"]) / median_extent
        return Likeness(trainer, size, ratio, float(statistics["seen_share"]["q50"]))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def learned_rung(patch: Likeness, planned: float, past: Sequence[Past]) -> Learned | None:
    """The rung at which the most similar patch trained, if what it went through speaks against `planned`.

    Patches of the same scene come before others, then the nearest, then the latest. None when no similar
    patch has trained, or the nearest one trained where `planned` would start as well.
    """
    alike = [one for one in past if one.trained_at is not None and patch.distance(one.likeness) <= ALIKE]
    if not alike:
        return None
    alike.sort(key=lambda one: (not one.same_scene, round(patch.distance(one.likeness), 2), -one.when))
    rung = alike[0].trained_at
    if rung is None or not _speaks_against(planned, alike[0], rung):
        return None
    agreeing = [one for one in alike if one.trained_at == rung and _speaks_against(planned, one, rung)]
    named = "; ".join(one.sentence() for one in agreeing[:SHOWN])
    more = f" and {len(agreeing) - SHOWN} more" if len(agreeing) > SHOWN else ""
    return Learned(rung, f"init_scaling {rung:g} instead of {planned:g}, as similar patches taught: {named}{more}")


def _speaks_against(planned: float, past: Past, rung: float) -> bool:
    """Whether a failure of `past` lies between `planned` and the rung that worked, in the direction it points to."""
    for trial in past.trials:
        if trial.failure is None:
            continue
        too_large = trial.failure in TOO_LARGE | EXPLODED
        if too_large and rung < trial.init_scaling <= planned:
            return True
        if not too_large and planned <= trial.init_scaling < rung:
            return True
    return False
