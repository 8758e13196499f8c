"""When health is measured and from where on a signal is a verdict. Imports neither torch nor numba."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

Share = Annotated[float, Ge(0), Le(1)]
Length = Annotated[float, Gt(0)]


@dataclass(frozen=True)
class HealthSettings:
    """`health:`. Each threshold belongs to one rule of `health/verdicts.py`, which names its source."""

    __pydantic_config__ = {"extra": "forbid"}

    every: Annotated[int, Ge(0)] = 100  # steps between samples; 0: no health at all
    stop: bool = True  # a verdict of severity `stop` ends the attempt with the class of its remedy
    blind_stop: bool = True  # a camera that sees nothing from the start ends the attempt; the next leaves it out
    relocated_warn: Share = 0.3  # of all Gaussians relocated at one refinement
    relocated_stop: Share = 0.5  # the same, mean of the last three refinements
    alive_fall: Share = 0.5  # alive share falls below this share of what it was, and stays there
    opacity_low: Share = 0.05  # mean opacity
    early_alive: Share = 0.85  # alive share before the first refinement; healthy trainings keep 99 %
    flung_warn: Share = 0.02  # of the Gaussians far outside the scene; healthy trainings have none
    flung_stop: Share = 0.1  # the same, in two samples in a row
    far_stop: Length = 10.0  # the farthest Gaussian in scene radii, in a scene outside `scene_scale`
    sigma_warn: Length = 1.0  # 99 % quantile of the largest sigma, in scene radii
    median_sigma_warn: Length = 0.1  # its median
    scene_scale: tuple[Length, Length] = (0.05, 100.0)  # of the cameras about their middle, training units
    loss_rise: Annotated[float, Gt(1)] = 3.0  # median loss over the lowest median loss before
    dormant_share: Share = 0.8  # of the visible Gaussians without gradient in a group or SH band,
    dormant_gradient: Annotated[float, Ge(0)] = 1e-6  # while the norm of the group's gradient is below this
    slow_start: Annotated[int, Ge(0)] = 1_000  # steps in which small Gaussians grow, and the loss falls in a line
    patience: Annotated[int, Ge(4)] = 20  # samples before progress is judged
    progress: Share = 0.1  # the loss must have fallen by this share by then
    plateau: Share = 0.005  # the loss fell by less than this over the last `patience` samples
    unseen_note: Share = 0.5  # of the Gaussians seen by no camera since the last refinement
    sinks: tuple[Literal["tensorboard", "wandb"], ...] = ()  # where signals go beside events.jsonl and the ledger

    def __post_init__(self) -> None:
        for name in ("scene_scale", "sinks"):  # lists, when they come from a request's JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))
