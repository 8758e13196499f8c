"""Hyper-parameters of one training, with gsplat's `mcmc` preset as defaults. Imports neither torch nor numba."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt

Positive = Annotated[float, Gt(0)]
Share = Annotated[float, Ge(0), Le(1)]


@dataclass(frozen=True)
class TrainSettings:
    """MCMC training as gsplat 1.5.3 `examples/simple_trainer.py mcmc` does it (trainers.md, B7)."""

    __pydantic_config__ = {"extra": "forbid", "strict": False}

    iterations: Annotated[int, Ge(1)] = 30_000
    scale_schedule: bool = True  # multiply all step numbers by k = max(images / 300, 1)
    max_cap: Annotated[int, Ge(1)] = 1_000_000
    downscale: Annotated[float, Ge(1)] = 1.0
    max_width: Annotated[int, Ge(0)] = 0  # pixels; 0: no limit
    sh_degree: Annotated[int, Ge(0), Le(3)] = 3
    sh_degree_interval: Annotated[int, Ge(1)] = 1_000
    init_opacity: Annotated[float, Gt(0), Lt(1)] = 0.5
    means_lr: Positive = 1.6e-4  # times the scene scale of the normalised patch
    means_lr_final: Positive = 0.01  # share of means_lr left at the last step, reached exponentially
    scales_lr: Positive = 5e-3
    opacities_lr: Positive = 5e-2
    quats_lr: Positive = 1e-3
    sh0_lr: Positive = 2.5e-3
    shN_lr: Positive = 2.5e-3 / 20
    ssim_lambda: Share = 0.2
    opacity_reg: Annotated[float, Ge(0)] = 0.01
    scale_reg: Annotated[float, Ge(0)] = 0.01
    refine_start: Annotated[int, Ge(0)] = 500
    refine_stop: Annotated[int, Ge(0)] = 25_000
    refine_every: Annotated[int, Ge(1)] = 100
    growth: Annotated[float, Ge(1)] = 1.05  # count after a refinement over count before, at most
    min_opacity: Annotated[float, Gt(0), Lt(1)] = 0.005
    noise_lr: Annotated[float, Ge(0)] = 5e5
    visible_only: bool = False  # Adam touches only the Gaussians that the step's camera sees
    views_per_step: Annotated[int, Ge(1), Le(10)] = 1  # photographs whose gradients one step averages
    warmup_steps: Annotated[int, Ge(0)] = 0  # in which all learning rates rise linearly
    clip_gradients: Annotated[float, Ge(0)] = 0.0  # times a parameter group's running mean gradient norm; 0: no limit
    antialiased: bool = False  # opacity makes up for the blur of small Gaussians, as in Mip-Splatting
    pose_lr: Annotated[float, Ge(0)] = 0.0  # of camera poses, falling as means_lr does; 0: poses stay as they are
    depth_weight: Annotated[float, Ge(0)] = 0.0  # of the depths of observed points in the loss
    bilateral_lr: Annotated[float, Ge(0)] = 0.0  # of a grid of colour transforms for each photograph; 0: none
    random_background: bool = False  # a new colour behind the Gaussians in every step
    checkpoint_every: Annotated[int, Ge(1)] = 1_000
    image_cache_gb: Annotated[float, Ge(0)] = 0.0  # decoded photographs kept in memory; 0: half of what is free
    seed: Annotated[int, Ge(0)] = 42

    def scaled(self, images: int) -> TrainSettings:
        """The same schedule for `images` training images: every step number times k = max(images / 300, 1)."""
        k = max(images / 300, 1.0) if self.scale_schedule else 1.0
        return replace(self, scale_schedule=False, **{name: round(getattr(self, name) * k) for name in STEPS})

    def options(self) -> dict[str, Any]:
        """The options in use, by name; the others change nothing, not even what a checkpoint belongs to."""
        default = TrainSettings()
        values = {name: getattr(self, name) for name in OPTIONS}
        return {name: value for name, value in values.items() if value != getattr(default, name)}


# Settings that are step numbers, which the schedule stretches.
STEPS = (
    *("iterations", "sh_degree_interval", "refine_start", "refine_stop", "refine_every"),
    *("warmup_steps", "checkpoint_every"),
)
# What a training can do beyond gsplat's preset, each off by default. See docs/training.md.
OPTIONS = (
    *("views_per_step", "warmup_steps", "clip_gradients", "antialiased", "random_background"),
    *("pose_lr", "depth_weight", "bilateral_lr"),
)
