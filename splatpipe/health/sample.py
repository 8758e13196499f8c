"""One measurement of a training's health, and the series of them that verdicts are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Sample:
    """Signals at one step, taken before that step's refinement. None: not known, or not a finite number.

    Lengths are in scene radii: the distance from the points' median to the farthest point at the start.
    A trainer that is not ours tells few of them.
    """

    step: int
    loss: float | None = None  # median over the steps since the last sample
    psnr: float | None = None  # of the fixed training view, when it last came by; dB
    gaussians: int | None = None
    alive_share: float | None = None  # above min_opacity
    seen_share: float | None = None  # visible in at least one step since the last refinement
    relocated_share: float | None = None  # of all Gaussians, at the last refinement
    opacity_mean: float | None = None
    floor_share: float | None = None  # of Gaussians below twice min_opacity
    sigmas: tuple[float | None, ...] = ()  # each Gaussian's largest sigma: 5, 50, 95, 99 % quantile and maximum
    farthest: float | None = None  # mean farthest from the scene's centre
    flung_share: float | None = None  # farther than `loop.FLUNG_FACTOR`
    gradients: dict[str, float | None] = field(default_factory=dict)  # norm of the gradient per group and SH band
    quiet: dict[str, float] = field(default_factory=dict)  # share of the visible Gaussians without gradient, likewise
    updates: dict[str, float | None] = field(default_factory=dict)  # norm of the Adam step over the parameters' norm
    intersections: int | None = None  # Gaussian-tile pairs of the step's view
    blind_share: float | None = None  # of the steps since the last sample whose camera saw no Gaussian
    steps_per_s: float | None = None
    memory_bytes: int | None = None  # peak on the GPU; resident on the CPU

    def to_json(self) -> dict[str, Any]:
        """The keys of a `health` event (docs/contracts.md)."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Sample:
        """The inverse; signals that are missing are not known. Raises KeyError without a step."""
        values = {item.name: data[item.name] for item in fields(cls) if item.name in data}
        return cls(**values | {"step": data["step"], "sigmas": tuple(data.get("sigmas") or ())})


@dataclass(frozen=True)
class Series:
    """Everything known so far, oldest first."""

    samples: tuple[Sample, ...]
    relocated: tuple[float, ...]  # share of all Gaussians that was dead, at every refinement
    blind: tuple[str, ...] = ()  # images whose camera was seen to see no Gaussian
    rounds: float = 0.0  # how many times each camera has had its turn
    scene_scale: float | None = None  # 1.1 x the largest distance of a camera to the mean camera, training units
