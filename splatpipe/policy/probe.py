"""Short trainings that decide the first rung: when they are worth it, of which rungs, and what they say. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from splatpipe.failures.classes import FailureClass
from splatpipe.policy.init_scaling import FirstRung
from splatpipe.policy.remedies import EXPLODED, TOO_LARGE

APART = 1.5  # factor between a patch's extent and its coverage, each over the median of the scene's patches
OF_THE_RUNG = {
    *(FailureClass.LAUNCH_CONFIG, FailureClass.MCMC_COLLAPSE, FailureClass.EXPLOSION, FailureClass.NAN_DIVERGENCE),
    *(FailureClass.OOM_DEVICE, FailureClass.OOM_RASTER, FailureClass.INT_OVERFLOW, FailureClass.ILLEGAL_ACCESS),
}


@dataclass(frozen=True)
class ProbeSettings:
    """`probe:`"""

    __pydantic_config__ = {"extra": "forbid"}

    mode: Literal["auto", "always", "never"] = "auto"  # auto: where preflight doubts and no outcome of the past decides
    steps: Annotated[int, Ge(1)] = 300
    max_width: Annotated[int, Ge(0)] = 400  # pixels of a probe's images; 0: as in training
    rungs: Annotated[int, Ge(1)] = 3  # values of init_scaling that are tried, at most, until one survives
    max_seconds: Annotated[float, Ge(0)] = 900.0  # for the probes of one patch together; 0: no limit


@dataclass(frozen=True)
class Probed:
    """How a short training went. `psnr` of the hold-out views; None without any, or where it did not survive."""

    init_scaling: float
    failure: FailureClass | None
    step: int
    psnr: float | None

    @property
    def died(self) -> bool:
        """Of something that another rung may not die of."""
        return self.failure in OF_THE_RUNG

    def sentence(self) -> str:
        if self.failure is not None:
            return f"{self.init_scaling:g} ended with {self.failure} at step {self.step}"
        return f"{self.init_scaling:g} " + (f"reached {self.psnr:.2f} dB" if self.psnr is not None else "survived")


@dataclass(frozen=True)
class Choice:
    """The rung that probes decided on, and why."""

    init_scaling: float
    reason: str


def doubts(kinds: Sequence[str], rung: FirstRung) -> tuple[str, ...]:
    """Why the planned rung may be wrong. `kinds`: the findings of preflight; empty when nothing speaks against it.

    Extent and coverage disagree where a patch is unlike the others of its scene by the one and not by the other.
    """
    words = {
        "relative_size": "the size of the initial Gaussians is unusual",
        "seldom_seen": "most Gaussians are seldom seen",
        "blind_cameras": "cameras see nothing at a small init_scaling",
    }
    found = [sentence for kind, sentence in words.items() if kind in kinds]
    extent, coverage = rung.extent_ratio, rung.coverage_ratio
    if extent and coverage and max(extent / coverage, coverage / extent) >= APART:
        found.append(f"the extent is {extent:.2f} times the median, the init_scaling that covers images {coverage:.2f}")
    return tuple(found)


def next_probe(planned: float, probed: Sequence[Probed], rungs: Sequence[float]) -> float | None:
    """The rung to try next: the planned one, then away from what died. None when one has survived, or none is left."""
    if not probed:
        return planned
    if not all(one.died for one in probed):
        return None
    large = TOO_LARGE | EXPLODED
    floor = max((one.init_scaling for one in probed if one.failure not in large), default=0.0)
    ceiling = min((one.init_scaling for one in probed if one.failure in large), default=math.inf)
    between = [rung for rung in rungs if floor < rung < ceiling]
    return (max if probed[-1].failure in large else min)(between, default=None)


def decide(planned: float, probed: Sequence[Probed]) -> Choice:
    """The rung that survived; the planned one where none did.

    Only survival counts. After a few hundred steps larger Gaussians always look better, by 3 dB and more, and after
    a few thousand it has come to nothing (docs/scaling.md).
    """
    told = "; ".join(one.sentence() for one in probed)
    alive = next((one.init_scaling for one in probed if one.failure is None), None)
    if alive is None:
        return Choice(planned, f"no probe survived ({told}), so init_scaling {planned:g} as planned")
    return Choice(alive, f"a probe of init_scaling {alive:g} survived: {told}")
