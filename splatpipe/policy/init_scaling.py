"""The first `init_scaling` rung of each patch, from its extent relative to the scene's other patches.

Measured on the patches that taught it: extent 0.85 trained at 0.1 (and the scene's median was about
that), extent 1.31 crashed at 0.1 and trained at 0.3, and 1.0 exploded on every patch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from annotated_types import Gt, Le, MinLen

Rung = Annotated[float, Gt(0), Le(0.4)]  # above 0.4 initial Gaussians explode under MCMC
Ratio = Annotated[float, Gt(0)]


@dataclass(frozen=True)
class InitScalingSettings:
    """`init_scaling:`; `ratios[i]` is the extent ratio from which `rungs[i + 1]` is used."""

    __pydantic_config__ = {"extra": "forbid"}

    rungs: Annotated[tuple[Rung, ...], MinLen(1)] = (0.1, 0.2, 0.3, 0.4)  # ascending; also the ladder's rungs
    ratios: tuple[Ratio, ...] = (1.25, 1.5, 2.0)  # patch extent over the median extent of the scene's patches
    fixed: Rung | None = None  # one rung for every patch, whatever its extent
    policy: Literal["extent", "coverage"] = "extent"  # which opinion decides; both are recorded

    def __post_init__(self) -> None:
        if list(self.rungs) != sorted(set(self.rungs)):
            raise ValueError(f"init_scaling.rungs must ascend, got {list(self.rungs)}")
        if list(self.ratios) != sorted(set(self.ratios)) or len(self.ratios) != len(self.rungs) - 1:
            raise ValueError(
                f"init_scaling.ratios must ascend and hold one number less than rungs ({len(self.rungs) - 1}), "
                f"got {list(self.ratios)}"
            )


@dataclass(frozen=True)
class RungChoice:
    """What was chosen for one patch and why. `ratio` and `median` are None where they do not exist."""

    init_scaling: float
    ratio: float | None
    median: float | None
    reason: str

    def to_json(self) -> dict[str, Any]:
        return {
            "init_scaling": self.init_scaling,
            "ratio": self.ratio,
            "median": self.median,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class FirstRung:
    """The rung to start with, and the opinions it comes from."""

    init_scaling: float
    by_extent: float
    by_coverage: float | None  # the first rung at which initial Gaussians cover the image once, or the last
    by_preflight: float | None
    reason: str
    extent_ratio: float | None = None  # over the median of the scene's patches
    coverage_ratio: float | None = None  # the same of the init_scaling that covers the image once

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def first_rung(extents: Mapping[str, float], settings: InitScalingSettings) -> dict[str, RungChoice]:
    """A choice for each patch id, from the patches' extents in any common unit.

    Only ratios count, so the scene's units do not matter. An extent that is not a positive number
    starts on the first rung, and does not take part in the median.
    """
    if settings.fixed is not None:
        reason = f"init_scaling.fixed is {settings.fixed:g}"
        return {patch: RungChoice(settings.fixed, None, None, reason) for patch in extents}
    usable = [extent for extent in extents.values() if _is_extent(extent)]
    median = statistics.median(usable) if usable else None
    return {patch: _choose(extent, median, settings) for patch, extent in extents.items()}


def rung_for(
    choice: RungChoice,
    preflight_floor: float | None,
    coverage_scaling: float | None = None,
    settings: InitScalingSettings | None = None,
    median_coverage: float | None = None,
) -> FirstRung:
    """The larger of what `settings.policy` says and the smallest rung at which preflight saw no blind camera.

    `coverage_scaling` is the init_scaling at which the initial Gaussians cover the image once, `median_coverage` its
    median over the scene's patches; None where unknown.
    """
    settings = settings or InitScalingSettings()
    coverage = _by_coverage(coverage_scaling, settings)
    rung, reason = choice.init_scaling, choice.reason
    if settings.policy == "coverage" and settings.fixed is None and coverage is not None:
        rung = coverage
        reason = f"initial Gaussians cover the image once at {coverage_scaling:.3g}, so init_scaling {rung:g}"
    if preflight_floor is not None and preflight_floor > rung:
        rung, reason = preflight_floor, f"{reason}; preflight asks for {preflight_floor:g}, which is larger"
    ratio = coverage_scaling / median_coverage if coverage_scaling and median_coverage else None
    return FirstRung(rung, choice.init_scaling, coverage, preflight_floor, reason, choice.ratio, ratio)


def _by_coverage(scaling: float | None, settings: InitScalingSettings) -> float | None:
    if scaling is None:
        return None
    return next((rung for rung in settings.rungs if rung >= scaling), settings.rungs[-1])


def _is_extent(extent: float) -> bool:
    return math.isfinite(extent) and extent > 0


def _choose(extent: float, median: float | None, settings: InitScalingSettings) -> RungChoice:
    if median is None or not _is_extent(extent):
        rung = settings.rungs[0]
        return RungChoice(rung, None, median, f"extent {extent:g} says nothing, so the first rung {rung:g}")
    ratio = extent / median
    rung = settings.rungs[sum(ratio >= limit for limit in settings.ratios)]
    reason = f"extent {extent:.4g} is {ratio:.2f} times the scene's median {median:.4g}, so init_scaling {rung:g}"
    return RungChoice(rung, ratio, median, reason)
