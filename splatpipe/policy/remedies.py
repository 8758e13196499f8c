"""What can be done about a failed attempt, and the settings that say when each is done."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt

from splatpipe.failures.classes import FailureClass

Factor = Annotated[float, Gt(0), Lt(1)]
Share = Annotated[float, Ge(0), Le(1)]


class Remedy(StrEnum):
    """One change of a request, or none."""

    UNCHANGED = "unchanged"  # the same again, in a new process
    DROP_BLIND_CAMERAS = "drop_blind_cameras"  # leave out the cameras that were seen to see nothing
    NEXT_RUNG = "next_rung"  # larger init_scaling
    STEP_DOWN = "step_down"  # init_scaling halfway down to the next smaller value, or to the largest rung
    SMALLER_INIT = "smaller_init"  # init_scaling times init_factor
    VISIBLE_ONLY = "visible_only"  # Adam touches only Gaussians that the camera sees
    SOFTER_OPACITY = "softer_opacity"  # opacity rate times lr_factor, both regularisers times reg_factor
    LOWER_MEANS_LR = "lower_means_lr"  # means_lr times lr_factor
    WARM_UP = "warm_up"  # learning rates rise over the first warm_up_share of all steps
    CLIP_GRADIENTS = "clip_gradients"  # gradients limited to clip_factor times their running mean
    MORE_VIEWS = "more_views"  # twice as many photographs in one step, at most MOST_VIEWS
    SMALLER_IMAGES = "smaller_images"  # downscale times image_factor
    SMALLER_CACHE = "smaller_cache"  # fewer decoded photographs in host memory: half, from `auto` to small_cache_gb
    LOWER_CAP = "lower_cap"  # max_cap times cap_factor
    FEWER_CAMERAS = "fewer_cameras"  # leave out the cameras that see the fewest of the initial Gaussians
    OTHER_TRAINER = "other_trainer"


R = Remedy
MOST_VIEWS = 8  # photographs in one step
OUT_OF_MEMORY = (R.SMALLER_IMAGES, R.LOWER_CAP, R.SMALLER_INIT, R.SMALLER_IMAGES, R.LOWER_CAP)
DIVERGED = (R.STEP_DOWN, R.LOWER_MEANS_LR, R.STEP_DOWN, R.LOWER_MEANS_LR)
TOO_LARGE = {FailureClass.OOM_DEVICE, FailureClass.OOM_RASTER, FailureClass.INT_OVERFLOW}
EXPLODED = {FailureClass.EXPLOSION, FailureClass.NAN_DIVERGENCE}
Remedies = tuple[Remedy, ...]


@dataclass(frozen=True)
class RetrySettings:
    """Remedies by failure class, tried in order; a remedy listed twice may be used twice. No remedies: no retry.

    An interruption has no remedy: the same request is resumed. One that comes from outside splatpipe, again and
    again before training has got further, ends the patch after `max_interruptions` times.
    """

    __pydantic_config__ = {"extra": "forbid"}

    history: bool = True  # similar patches' outcomes choose the first rung
    max_attempts: Annotated[int, Ge(1)] = 6  # per patch, interruptions not counted
    max_seconds: Annotated[float, Ge(0)] = 0.0  # of a patch's attempts together; no other is begun after; 0: no limit
    max_interruptions: Annotated[int, Ge(1)] = 20
    rungs: tuple[Annotated[float, Gt(0)], ...] = (0.1, 0.2, 0.3, 0.4)  # of init_scaling; never above the largest
    image_factor: Annotated[float, Gt(1)] = 2.0
    max_downscale: Annotated[float, Ge(1)] = 8.0  # images are not made smaller than this
    cap_factor: Factor = 2 / 3
    min_cap: Annotated[int, Ge(1)] = 10_000  # the cap is not lowered below this
    small_cache_gb: Annotated[float, Gt(0)] = 1.0  # image cache after the first lack of host memory
    weak_camera: Annotated[int, Ge(0)] = 50  # fewer_cameras: leaves out cameras that see fewer initial Gaussians,
    camera_share: Share = 0.2  # and at least this share of all, the weakest,
    min_cameras: Annotated[int, Ge(1)] = 10  # but never so many that fewer stay
    init_factor: Factor = 0.5
    lr_factor: Factor = 0.5
    reg_factor: Factor = 0.2
    warm_up_share: Factor = 0.05  # warm_up: of all steps; it, clip_gradients and more_views are in no list by default
    clip_factor: Annotated[float, Gt(1)] = 3.0  # clip_gradients
    launch_config: Remedies = (
        *(R.DROP_BLIND_CAMERAS, R.DROP_BLIND_CAMERAS),
        *(R.NEXT_RUNG, R.NEXT_RUNG, R.NEXT_RUNG, R.OTHER_TRAINER, R.FEWER_CAMERAS),
    )
    mcmc_collapse: Remedies = (
        *(R.VISIBLE_ONLY, R.NEXT_RUNG, R.SOFTER_OPACITY, R.FEWER_CAMERAS, R.SOFTER_OPACITY),
        R.OTHER_TRAINER,
    )
    explosion: Remedies = DIVERGED
    nan_divergence: Remedies = DIVERGED
    oom_device: Remedies = OUT_OF_MEMORY
    oom_raster: Remedies = OUT_OF_MEMORY
    int_overflow: Remedies = OUT_OF_MEMORY
    illegal_access: Remedies = (R.UNCHANGED, *OUT_OF_MEMORY)
    hang: Remedies = (R.UNCHANGED, *OUT_OF_MEMORY)
    killed: Remedies = (R.UNCHANGED, *OUT_OF_MEMORY)
    host_oom: Remedies = (R.SMALLER_CACHE, R.FEWER_CAMERAS)
    export_missing: Remedies = (R.UNCHANGED,)
    data_error: Remedies = ()
    config_error: Remedies = ()
    unknown: Remedies = (R.UNCHANGED, R.NEXT_RUNG)

    def remedies(self, failure: FailureClass) -> Remedies:
        """The remedies of a class; none for `environment` and `interrupted`, which are handled apart."""
        return getattr(self, failure.value, ())
