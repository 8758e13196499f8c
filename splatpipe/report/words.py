"""Numbers and outcomes as a reader says them."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

NOTHING = "–"
OUTCOMES = {
    "trained": "trained",
    "trained_with_warnings": "trained, with warnings",
    "failed": "failed",
    "skipped": "skipped",
    "interrupted": "interrupted",
    "pending": "waiting",
    "running": "training now",
}
FAILURES = {
    "launch_config": "The rasteriser was given nothing to draw",
    "oom_device": "The GPU ran out of memory",
    "oom_raster": "The rasteriser ran out of memory",
    "int_overflow": "Too many Gaussians on screen for 32-bit counting",
    "illegal_access": "The GPU reported an illegal memory access",
    "nan_divergence": "Training diverged",
    "mcmc_collapse": "The Gaussians died out",
    "explosion": "The Gaussians flew apart",
    "hang": "Training stopped making progress",
    "killed": "The process was killed",
    "host_oom": "The machine ran out of memory",
    "export_missing": "Training ended without a usable splat",
    "data_error": "The patch's data cannot be trained",
    "config_error": "The settings were refused",
    "environment": "This machine cannot run the trainer",
    "interrupted": "Interrupted",
    "unknown": "An error that splatpipe does not know",
}


def outcome(name: str) -> str:
    return OUTCOMES.get(name, name)


def failure(name: str | None) -> str:
    """What a failure class means, in a few words; the end of an attempt without one."""
    return "Trained" if name is None else FAILURES.get(name, name)


def number(value: float | None, digits: int = 3) -> str:
    """At least `digits` significant ones; thin spaces between thousands."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if float(value).is_integer() or abs(value) >= 10**digits:
        return f"{value:,.0f}".replace(",", "\u202f")
    return f"{value:.{digits}g}"


def fixed(value: float | None, places: int = 2) -> str:
    return NOTHING if value is None or not math.isfinite(value) else f"{value:.{places}f}"


def percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1%}" if 0 < value < 0.1 else f"{value:.0%}"


def duration(seconds: float | None) -> str:
    """`42 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds is None:
        return NOTHING
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.0f} s" if seconds >= 10 or whole == seconds else f"{seconds:.1f} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def memory(count: float | None) -> str:
    """Bytes in decimal units; nothing for none."""
    if not count:
        return NOTHING
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def moment(seconds: float | None) -> str:
    """Seconds since the epoch as a date and time, UTC."""
    return NOTHING if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%d %B %Y, %H:%M UTC")


FILTERS: dict[str, Callable[..., Any]] = {
    one.__name__: one for one in (outcome, failure, number, fixed, percent, duration, memory, moment)
}
