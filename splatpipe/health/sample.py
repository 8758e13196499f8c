"""One measurement of a training's health, and the series of them that verdicts are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Sample:
    """Signals at one step, taken before that step's refinement. None: not known, or not a finite number.

    Lengths are in scene radii: the distance from the points' median to the farthest point at the start.
    """

    step: int
    loss: float | None  # median over the steps since the last sample
    psnr: float | None  # of the fixed training view, when it last came by; dB
    gaussians: int
    alive_share: float  # above min_opacity
    seen_share: float  # visible in at least one step since the last refinement
    opacity_mean: float
    floor_share: float  # of Gaussians below twice min_opacity
    sigmas: tuple[float | None, ...]  # each Gaussian's largest sigma: 5, 50, 95, 99 % quantile and maximum
    farthest: float | None  # mean farthest from the scene's centre
    flung_share: float  # farther than `loop.FLUNG_FACTOR`
    gradients: dict[str, float | None]  # norm of the gradient per group and SH band
    quiet: dict[str, float]  # share of the visible Gaussians without gradient, per group and SH band
    updates: dict[str, float | None]  # norm of the Adam step over norm of the parameters, per group
    intersections: int  # Gaussian-tile pairs of the step's view
    steps_per_s: float
    memory_bytes: int  # peak on the GPU; resident on the CPU

    def to_json(self) -> dict[str, Any]:
        """The keys of a `health` event (docs/contracts.md)."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Sample:
        """Raises KeyError when a signal is missing."""
        values = {field.name: data[field.name] for field in fields(cls)}
        return cls(**values | {"sigmas": tuple(values["sigmas"])})


@dataclass(frozen=True)
class Series:
    """Everything known so far, oldest first; `relocated` is the relocated share of every refinement."""

    samples: tuple[Sample, ...]
    relocated: tuple[float, ...]
