"""The next attempt, from the failure of the last one. Pure: reads no file and starts nothing.

Each failure class has its own list of remedies (DESIGN.md, Contracts). Which of them were tried is read off the
requests of the history (`policy.tried`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from splatpipe.failures.classes import FailureClass
from splatpipe.layout import RunLayout
from splatpipe.policy.remedies import EXPLODED, MOST_VIEWS, TOO_LARGE, Remedy, RetrySettings
from splatpipe.policy.tried import changed, changes, used, used_unchanged
from splatpipe.trainers.base import Attempt, TrainRequest

GOES_ON = {FailureClass.KILLED, FailureClass.HANG, FailureClass.HOST_OOM}  # what was trained until then is sound
NO_MATTER = {"image_cache_gb"}  # settings that do not change what is trained
NAMED = 3  # cameras that a reason names


@dataclass(frozen=True)
class Decision:
    """What to do next. `request` None: no further attempt. `remedy` None: first attempt, resumption or end."""

    request: TrainRequest | None
    remedy: Remedy | None
    reason: str  # one sentence
    stop_run: bool = False  # every other patch would fail the same way


Convert = Callable[[TrainRequest], TrainRequest | None]


@dataclass(frozen=True)
class Resources:
    """What the remedies of one patch can draw on.

    `other_trainer` turns a request into one for the other trainer, init_scaling included, if there is one.
    """

    other_trainer: Convert | None = None
    ignored: Mapping[str, frozenset[str]] = field(default_factory=dict)  # by trainer: settings that it does not know
    visible: Mapping[float, Mapping[str, int]] = field(default_factory=dict)  # rung -> image -> initial Gaussians seen


def next_request(
    request: TrainRequest,
    history: Sequence[Attempt],
    settings: RetrySettings,
    resources: Resources = Resources(),
) -> Decision:
    """Decide on the next attempt of a patch.

    `request` is what the first attempt would be; `history` the patch's attempts so far, oldest first.
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
    return _remedy(request, history, tried, settings, resources)


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
    resources: Resources,
) -> Decision:
    """The first remedy of the class that is neither used up nor without effect here."""
    last = tried[-1]
    assert last.failure is not None
    spent, offered = used(tried), Counter[Remedy]()
    for remedy in settings.remedies(last.failure):
        offered[remedy] += 1
        times = used_unchanged(tried) if remedy is Remedy.UNCHANGED else spent[remedy]
        request = _apply(remedy, tried, settings, resources) if offered[remedy] > times else None
        if request is None or _without_effect(last.request, request, resources):
            continue
        number = max(attempt.request.attempt for attempt in history) + 1
        request = replace(_placed(request, number, first), continues=_continued(last, request))
        return Decision(request, remedy, _reason(last, remedy, request, resources))
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


def _without_effect(before: TrainRequest, after: TrainRequest, resources: Resources) -> bool:
    """Whether the trainer knows none of what was changed."""
    names = changed(before, after)
    return bool(names) and names <= resources.ignored.get(after.trainer, frozenset())


def _continued(last: Attempt, request: TrainRequest) -> tuple[int, ...]:
    """The attempts whose checkpoints `request` may go on from: nothing that decides the result has changed."""
    if last.failure not in GOES_ON or not changed(last.request, request) <= NO_MATTER:
        return ()
    return (*last.request.continues, last.request.attempt)


def _reason(last: Attempt, remedy: Remedy, request: TrainRequest, resources: Resources) -> str:
    what = ", ".join(changes(last.request, request)) or "nothing changed"
    if remedy is Remedy.FEWER_CAMERAS:
        what += _fewest(last.request, request, resources)
    if request.continues:
        what += f", from the last checkpoint of attempt {request.continues[-1]} if it left one"
    return f"{last.failure} at step {last.last_step} ({last.line}): {remedy}, {what}"


def _fewest(before: TrainRequest, after: TrainRequest, resources: Resources) -> str:
    """Which cameras were left out and why."""
    counts = _seen(after, resources)
    gone = sorted(set(after.skip_cameras) - set(before.skip_cameras), key=lambda name: (counts[name], name))
    named = ", ".join(f"{name} ({counts[name]})" for name in gone[:NAMED])
    more = f" and {len(gone) - NAMED} more" if len(gone) > NAMED else ""
    return f", those that see the fewest initial Gaussians: {named}{more}"


def _apply(
    remedy: Remedy, tried: Sequence[Attempt], settings: RetrySettings, resources: Resources
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
            return resources.other_trainer(request) if resources.other_trainer else None
        case Remedy.FEWER_CAMERAS:
            return _with_fewer_cameras(request, settings, resources)
        case Remedy.VISIBLE_ONLY:
            return None if train.visible_only else replace(request, settings=replace(train, visible_only=True))
        case Remedy.SOFTER_OPACITY:
            softer = {name: getattr(train, name) * settings.reg_factor for name in ("opacity_reg", "scale_reg")}
            softer["opacities_lr"] = train.opacities_lr * settings.lr_factor
            return replace(request, settings=replace(train, **softer))
        case Remedy.LOWER_MEANS_LR:
            return replace(request, settings=replace(train, means_lr=train.means_lr * settings.lr_factor))
        case Remedy.WARM_UP:
            steps = 0 if train.warmup_steps else round(train.iterations * settings.warm_up_share)
            return replace(request, settings=replace(train, warmup_steps=steps)) if steps else None
        case Remedy.CLIP_GRADIENTS:
            clipped = replace(request, settings=replace(train, clip_gradients=settings.clip_factor))
            return None if train.clip_gradients else clipped
        case Remedy.MORE_VIEWS:
            views = min(2 * train.views_per_step, MOST_VIEWS)
            more = views > train.views_per_step
            return replace(request, settings=replace(train, views_per_step=views)) if more else None
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


def _with_fewer_cameras(request: TrainRequest, settings: RetrySettings, resources: Resources) -> TrainRequest | None:
    """Without the cameras that teach least: their steps cost every Gaussian the regularisers and a few a lesson."""
    counts = _seen(request, resources)
    left = sorted(set(counts) - set(request.skip_cameras), key=lambda name: (counts[name], name))
    weak = sum(counts[name] < settings.weak_camera for name in left)
    gone = min(max(weak, math.ceil(settings.camera_share * len(left))), len(left) - settings.min_cameras)
    if gone <= 0:
        return None
    return replace(request, skip_cameras=tuple(sorted({*request.skip_cameras, *left[:gone]})))


def _seen(request: TrainRequest, resources: Resources) -> Mapping[str, int]:
    """Initial Gaussians that each camera sees, at the largest counted rung that is not above the request's."""
    rungs = sorted(resources.visible)
    below = [rung for rung in rungs if rung <= request.init_scaling * (1 + 1e-9)]
    return resources.visible[below[-1] if below else rungs[0]] if rungs else {}


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
    """Halfway to the next smaller rung or value that was tried; half when there is none.

    From above all rungs at once to the largest: halfway there Gaussians are still far too large, and die instead.
    """
    current, largest = tried[-1].request.init_scaling, max(settings.rungs, default=math.inf)
    if current > largest * (1 + 1e-9):
        return largest
    values = [*settings.rungs, *(attempt.request.init_scaling for attempt in _of_last_trainer(tried))]
    below = max((value for value in values if value < current * (1 - 1e-9)), default=0.0)
    return round((current + below) / 2, 6)
