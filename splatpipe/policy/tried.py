"""What was tried, read off the requests of consecutive attempts: a remedy is the difference between two of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise

from splatpipe.policy.remedies import EXPLODED, Remedy
from splatpipe.trainers.base import Attempt, TrainRequest


def changes(before: TrainRequest, after: TrainRequest) -> list[str]:
    """What differs between two requests, `name before -> after`; where and on what it runs does not count."""
    names = ("trainer", "init_scaling")
    found = [_change(name, getattr(before, name), getattr(after, name)) for name in names]
    for item in fields(before.settings):
        found.append(_change(item.name, getattr(before.settings, item.name), getattr(after.settings, item.name)))
    found.append(_change("skip_cameras", len(before.skip_cameras), len(after.skip_cameras)))
    return [change for change in found if change]


def changed(before: TrainRequest, after: TrainRequest) -> set[str]:
    """The names of what differs."""
    return {change.partition(" ")[0] for change in changes(before, after)}


def _change(name: str, before: object, after: object) -> str:
    def text(value: object) -> str:
        return f"{value:.6g}" if isinstance(value, float) else str(value)

    return "" if before == after else f"{name} {text(before)} -> {text(after)}"


SIGNS = {
    Remedy.VISIBLE_ONLY: "visible_only",
    Remedy.SOFTER_OPACITY: "opacities_lr",
    Remedy.LOWER_MEANS_LR: "means_lr",
    Remedy.WARM_UP: "warmup_steps",
    Remedy.CLIP_GRADIENTS: "clip_gradients",
    Remedy.MORE_VIEWS: "views_per_step",
    Remedy.SMALLER_IMAGES: "downscale",
    Remedy.SMALLER_CACHE: "image_cache_gb",
    Remedy.LOWER_CAP: "max_cap",
    Remedy.OTHER_TRAINER: "trainer",
}


def used(tried: Sequence[Attempt]) -> Counter[Remedy]:
    """How often each remedy was used, read off the differences of consecutive requests."""
    counts: Counter[Remedy] = Counter()
    blind = {str(name) for attempt in tried for name in attempt.health.get("blind_cameras", ())}
    for before, after in pairwise(tried):
        names = changed(before.request, after.request)
        counts.update(remedy for remedy, sign in SIGNS.items() if sign in names)
        if "skip_cameras" in names:
            gone = set(after.request.skip_cameras) - set(before.request.skip_cameras)
            counts[Remedy.DROP_BLIND_CAMERAS if gone <= blind else Remedy.FEWER_CAMERAS] += 1
        if "init_scaling" in names and "trainer" not in names:
            counts[_init_remedy(before, after)] += 1
    return counts


def _init_remedy(before: Attempt, after: Attempt) -> Remedy:
    if after.request.init_scaling > before.request.init_scaling:
        return Remedy.NEXT_RUNG
    return Remedy.STEP_DOWN if before.failure in EXPLODED else Remedy.SMALLER_INIT


def used_unchanged(tried: Sequence[Attempt]) -> int:
    """How often this class of failure was answered with the same request."""
    return sum(
        before.failure is tried[-1].failure and not changes(before.request, after.request)
        for before, after in pairwise(tried)
    )
