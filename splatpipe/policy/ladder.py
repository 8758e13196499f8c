"""The next attempt, from the failure of the last one. Pure: reads no file and starts nothing.

Each failure class has its own list of remedies (DESIGN.md, Contracts). Which of them were tried is read off
the requests of the history: a remedy is the difference between two consecutive requests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from itertools import pairwise
from typing import Annotated

from annotated_types import Ge, Gt, Lt

from splatpipe.failures.classes import FailureClass
from splatpipe.layout import RunLayout
from splatpipe.trainers.base import Attempt, TrainRequest

Factor = Annotated[float, Gt(0), Lt(1)]


class Remedy(StrEnum):
    """One change of a request, or none."""

    UNCHANGED = "unchanged"  # the same again, in a new process
    DROP_BLIND_CAMERAS = "drop_blind_cameras"  # leave out the cameras that were seen to see nothing
    NEXT_RUNG = "next_rung"  # larger init_scaling
    STEP_DOWN = "step_down"  # init_scaling halfway down to the next smaller value
    SMALLER_INIT = "smaller_init"  # init_scaling times init_factor
    VISIBLE_ONLY = "visible_only"  # Adam touches only Gaussians that the camera sees
    SOFTER_OPACITY = "softer_opacity"  # opacity rate times lr_factor, both regularisers times reg_factor
    LOWER_MEANS_LR = "lower_means_lr"  # means_lr times lr_factor
    SMALLER_IMAGES = "smaller_images"  # downscale times image_factor
    SMALLER_CACHE = "smaller_cache"  # fewer decoded photographs in host memory: half, from `auto` to small_cache_gb
    LOWER_CAP = "lower_cap"  # max_cap times cap_factor
    OTHER_TRAINER = "other_trainer"


R = Remedy
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
    init_factor: Factor = 0.5
    lr_factor: Factor = 0.5
    reg_factor: Factor = 0.2
    launch_config: Remedies = (
        *(R.DROP_BLIND_CAMERAS, R.DROP_BLIND_CAMERAS),
        *(R.NEXT_RUNG, R.NEXT_RUNG, R.NEXT_RUNG, R.OTHER_TRAINER),
    )
    mcmc_collapse: Remedies = (R.VISIBLE_ONLY, R.SOFTER_OPACITY, R.SOFTER_OPACITY, R.NEXT_RUNG)
    explosion: Remedies = DIVERGED
    nan_divergence: Remedies = DIVERGED
    oom_device: Remedies = OUT_OF_MEMORY
    oom_raster: Remedies = OUT_OF_MEMORY
    int_overflow: Remedies = OUT_OF_MEMORY
    illegal_access: Remedies = (R.UNCHANGED, *OUT_OF_MEMORY)
    hang: Remedies = (R.UNCHANGED, *OUT_OF_MEMORY)
    killed: Remedies = (R.UNCHANGED, *OUT_OF_MEMORY)
    host_oom: Remedies = (R.SMALLER_CACHE,)
    export_missing: Remedies = (R.UNCHANGED,)
    data_error: Remedies = ()
    config_error: Remedies = ()
    unknown: Remedies = (R.UNCHANGED, R.NEXT_RUNG)

    def remedies(self, failure: FailureClass) -> Remedies:
        """The remedies of a class; none for `environment` and `interrupted`, which are handled apart."""
        return getattr(self, failure.value, ())


@dataclass(frozen=True)
class Decision:
    """What to do next. `request` None: no further attempt. `remedy` None: first attempt, resumption or end."""

    request: TrainRequest | None
    remedy: Remedy | None
    reason: str  # one sentence
    stop_run: bool = False  # every other patch would fail the same way


Convert = Callable[[TrainRequest], TrainRequest | None]


def next_request(
    request: TrainRequest, history: Sequence[Attempt], settings: RetrySettings, other_trainer: Convert | None = None
) -> Decision:
    """Decide on the next attempt of a patch.

    `request` is what the first attempt would be; `history` the patch's attempts so far, oldest first.
    `other_trainer` turns a request into one for the other trainer, init_scaling included, if there is one.
    """
    if not history:
        return Decision(request, None, "first attempt")
    last = history[-1]
    failure = last.failure
    if failure is None:
        return Decision(None, None, f"trained in attempt {last.request.attempt}")
    if failure is FailureClass.INTERRUPTED:
        return _resume(request, history, settings)
    if failure is FailureClass.ENVIRONMENT and last.request.trainer != request.trainer:
        return Decision(None, None, f"{last.request.trainer}, which took over, cannot train here: {last.line}")
    if failure is FailureClass.ENVIRONMENT:
        return Decision(None, None, f"the machine is at fault, no patch can train: {last.line}", stop_run=True)
    tried = [attempt for attempt in history if attempt.failure is not FailureClass.INTERRUPTED]
    if not settings.remedies(failure):
        return Decision(None, None, f"{failure}: another attempt would fail the same way ({last.line})")
    if len(tried) >= settings.max_attempts:
        return Decision(None, None, f"{failure}: gave up after {len(tried)} attempts ({last.line})")
    seconds = sum(attempt.seconds for attempt in history)
    if settings.max_seconds and seconds >= settings.max_seconds:
        spent = f"gave up after {seconds:.0f} s of training in {len(tried)} attempts"
        return Decision(None, None, f"{failure}: {spent} ({last.line})")
    return _remedy(request, history, tried, settings, other_trainer)


def _resume(first: TrainRequest, history: Sequence[Attempt], settings: RetrySettings) -> Decision:
    last, streak = history[-1], 0
    for attempt in reversed(history):
        if attempt.failure is not FailureClass.INTERRUPTED:
            break
        streak += 1 + attempt.stalled
    if streak >= settings.max_interruptions:
        return Decision(None, None, f"interrupted {streak} times in a row without getting further: {last.line}")
    resumed = _placed(last.request, last.request.attempt, first)
    return Decision(resumed, None, f"attempt {resumed.attempt} goes on where it was interrupted")


def _remedy(
    first: TrainRequest,
    history: Sequence[Attempt],
    tried: Sequence[Attempt],
    settings: RetrySettings,
    other: Convert | None,
) -> Decision:
    """The first remedy of the class that is neither used up nor without effect here."""
    last = tried[-1]
    assert last.failure is not None
    used, offered = _used(tried), Counter[Remedy]()
    for remedy in settings.remedies(last.failure):
        offered[remedy] += 1
        spent = _used_unchanged(tried) if remedy is Remedy.UNCHANGED else used[remedy]
        changed = _apply(remedy, tried, settings, other) if offered[remedy] > spent else None
        if changed is not None:
            number = max(attempt.request.attempt for attempt in history) + 1
            return Decision(_placed(changed, number, first), remedy, _reason(last, remedy, changed))
    return Decision(None, None, f"{last.failure}: no remedy is left after {len(tried)} attempts ({last.line})")


def _placed(request: TrainRequest, number: int, first: TrainRequest) -> TrainRequest:
    """`request` as attempt `number`, with the places of `first`: the run may have moved since the last attempt."""
    run = RunLayout(first.out.parents[2])
    return replace(
        request,
        attempt=number,
        out=run.attempt(first.patch_id, number).root,
        **{name: getattr(first, name) for name in ("dataset", "similarity", "device", "threads", "limits")},
    )


def _reason(last: Attempt, remedy: Remedy, request: TrainRequest) -> str:
    what = ", ".join(_changes(last.request, request)) or "nothing changed"
    return f"{last.failure} at step {last.last_step} ({last.line}): {remedy}, {what}"


def _apply(
    remedy: Remedy, tried: Sequence[Attempt], settings: RetrySettings, other: Convert | None
) -> TrainRequest | None:
    """The last request with the remedy applied; None where it would change nothing or must not be used."""
    last = tried[-1]
    request, train = last.request, last.request.settings
    match remedy:
        case Remedy.UNCHANGED:
            return None if last.health.get("ended_by") == "wall" else request
        case Remedy.DROP_BLIND_CAMERAS:
            return _without_blind(tried)
        case Remedy.NEXT_RUNG:
            return _with_init(request, _next_rung(tried, settings))
        case Remedy.STEP_DOWN:
            return _with_init(request, _step_down(tried, settings))
        case Remedy.SMALLER_INIT:
            return _with_init(request, request.init_scaling * settings.init_factor)
        case Remedy.OTHER_TRAINER:
            return other(request) if other else None
        case Remedy.VISIBLE_ONLY:
            return None if train.visible_only else replace(request, settings=replace(train, visible_only=True))
        case Remedy.SOFTER_OPACITY:
            softer = {name: getattr(train, name) * settings.reg_factor for name in ("opacity_reg", "scale_reg")}
            softer["opacities_lr"] = train.opacities_lr * settings.lr_factor
            return replace(request, settings=replace(train, **softer))
        case Remedy.LOWER_MEANS_LR:
            return replace(request, settings=replace(train, means_lr=train.means_lr * settings.lr_factor))
        case Remedy.SMALLER_IMAGES:
            downscale = min(train.downscale * settings.image_factor, settings.max_downscale)
            larger = downscale > train.downscale
            return replace(request, settings=replace(train, downscale=downscale)) if larger else None
        case Remedy.SMALLER_CACHE:
            cache = min(train.image_cache_gb / 2 or settings.small_cache_gb, settings.small_cache_gb)
            return replace(request, settings=replace(train, image_cache_gb=cache))
        case Remedy.LOWER_CAP:
            cap = max(int(train.max_cap * settings.cap_factor), settings.min_cap)
            return replace(request, settings=replace(train, max_cap=cap)) if cap < train.max_cap else None


def _with_init(request: TrainRequest, value: float | None) -> TrainRequest | None:
    return None if value is None else replace(request, init_scaling=value)


def _without_blind(tried: Sequence[Attempt]) -> TrainRequest | None:
    request = tried[-1].request
    known = {str(name) for attempt in tried for name in attempt.health.get("blind_cameras", ())}
    skip = tuple(sorted(known | set(request.skip_cameras)))
    return replace(request, skip_cameras=skip) if len(skip) > len(request.skip_cameras) else None


def _next_rung(tried: Sequence[Attempt], settings: RetrySettings) -> float | None:
    """The next larger rung, below everything that exploded; nothing that ran out of memory gets larger."""
    current = tried[-1].request.init_scaling
    tried = _of_last_trainer(tried)
    if any(attempt.failure in TOO_LARGE for attempt in tried):
        return None
    exploded = [attempt.request.init_scaling for attempt in tried if attempt.failure in EXPLODED]
    above = [rung for rung in settings.rungs if rung > current * (1 + 1e-9) and all(rung < bad for bad in exploded)]
    return min(above, default=None)


def _of_last_trainer(tried: Sequence[Attempt]) -> list[Attempt]:
    """Trainers mean different things by init_scaling: values are only compared within one."""
    return [attempt for attempt in tried if attempt.request.trainer == tried[-1].request.trainer]


def _step_down(tried: Sequence[Attempt], settings: RetrySettings) -> float:
    """Halfway to the next smaller rung or value that was tried; half when there is none."""
    current = tried[-1].request.init_scaling
    values = [*settings.rungs, *(attempt.request.init_scaling for attempt in _of_last_trainer(tried))]
    below = max((value for value in values if value < current * (1 - 1e-9)), default=0.0)
    return round((current + below) / 2, 6)


def _changes(before: TrainRequest, after: TrainRequest) -> list[str]:
    """What differs between two requests, `name before -> after`; where and on what it runs does not count."""
    names = ("trainer", "init_scaling")
    found = [_change(name, getattr(before, name), getattr(after, name)) for name in names]
    for item in fields(before.settings):
        found.append(_change(item.name, getattr(before.settings, item.name), getattr(after.settings, item.name)))
    found.append(_change("skip_cameras", len(before.skip_cameras), len(after.skip_cameras)))
    return [change for change in found if change]


def _change(name: str, before: object, after: object) -> str:
    def text(value: object) -> str:
        return f"{value:.6g}" if isinstance(value, float) else str(value)

    return "" if before == after else f"{name} {text(before)} -> {text(after)}"


SIGNS = {
    Remedy.DROP_BLIND_CAMERAS: "skip_cameras",
    Remedy.VISIBLE_ONLY: "visible_only",
    Remedy.SOFTER_OPACITY: "opacities_lr",
    Remedy.LOWER_MEANS_LR: "means_lr",
    Remedy.SMALLER_IMAGES: "downscale",
    Remedy.SMALLER_CACHE: "image_cache_gb",
    Remedy.LOWER_CAP: "max_cap",
    Remedy.OTHER_TRAINER: "trainer",
}


def _used(tried: Sequence[Attempt]) -> Counter[Remedy]:
    """How often each remedy was used, read off the differences of consecutive requests."""
    used: Counter[Remedy] = Counter()
    for before, after in pairwise(tried):
        changed = {change.partition(" ")[0] for change in _changes(before.request, after.request)}
        used.update(remedy for remedy, sign in SIGNS.items() if sign in changed)
        if "init_scaling" in changed and "trainer" not in changed:
            used[_init_remedy(before, after)] += 1
    return used


def _init_remedy(before: Attempt, after: Attempt) -> Remedy:
    if after.request.init_scaling > before.request.init_scaling:
        return Remedy.NEXT_RUNG
    return Remedy.STEP_DOWN if before.failure in EXPLODED else Remedy.SMALLER_INIT


def _used_unchanged(tried: Sequence[Attempt]) -> int:
    """How often this class of failure was answered with the same request."""
    return sum(
        before.failure is tried[-1].failure and not _changes(before.request, after.request)
        for before, after in pairwise(tried)
    )
