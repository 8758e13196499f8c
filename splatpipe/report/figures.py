"""Figures of the whole run as places in per cent: when each attempt ran, and which rung each extent needed."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from splatpipe.report import words

SHORTEST = 0.4  # per cent of the width; a bar below it would not be seen
ROOM = 0.06  # of the axis, left free at both ends


def schedule(patches: Sequence[dict[str, Any]], many: bool = False) -> dict[str, Any] | None:
    """Each patch's attempts as bars over the run's time; None before the first attempt.

    Of many patches those come first that began first, and those that have not begun are left out.
    """
    if many:
        begun = [patch for patch in patches if patch["attempts"]]
        patches = sorted(begun, key=lambda patch: patch["attempts"][0]["started"])
    attempts = [one for patch in patches for one in patch["attempts"]]
    if not attempts:
        return None
    begin = min(one["started"] for one in attempts)
    end = max(one["ended"] or time.time() for one in attempts)
    span = max(end - begin, 1e-3)
    rows = [
        {
            "id": patch["id"],
            "bars": [
                {
                    "left": round(100 * (one["started"] - begin) / span, 2),
                    "width": round(max(100 * ((one["ended"] or end) - one["started"]) / span, SHORTEST), 2),
                    "kind": one["kind"],
                    "text": f"attempt {one['n']}, init_scaling {one['init_scaling']:g}: {one['title']}, "
                    f"{words.duration((one['ended'] or end) - one['started'])}",
                }
                for one in patch["attempts"]
            ],
        }
        for patch in patches
    ]
    ticks = [{"at": share, "text": words.duration(span * share / 100)} for share in (0, 25, 50, 75, 100)]
    return {"rows": rows, "ticks": ticks, "begin": begin}


def extent_against_rung(patches: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """One dot for each attempt; None where no attempt has ended."""
    dots = [
        (patch["extent"], one["init_scaling"], one["kind"], f"{patch['id']}, attempt {one['n']}: {one['title']}")
        for patch in patches
        for one in patch["attempts"]
        if patch["extent"] and one["kind"] in ("trained", "failed")
    ]
    if not dots:
        return None
    x = _Axis([dot[0] for dot in dots])
    y = _Axis([dot[1] for dot in dots] + [0.0, 0.4])
    return {
        "dots": [{"x": x.at(a), "y": 100 - y.at(b), "kind": kind, "text": text} for a, b, kind, text in dots],
        "x": [{"at": x.at(tick), "text": words.number(tick)} for tick in x.ticks],
        "y": [{"at": 100 - y.at(tick), "text": words.number(tick)} for tick in y.ticks],
    }


class _Axis:
    """Values to per cent of a length, with round ticks."""

    def __init__(self, values: Sequence[float]) -> None:
        low, high = min(values), max(values)
        spare = ROOM * (high - low) or 0.1 * abs(high) or 1.0
        self.low, self.high = low - spare, high + spare

    def at(self, value: float) -> float:
        return round(100 * (value - self.low) / (self.high - self.low), 2)

    @property
    def ticks(self) -> list[float]:
        wanted = (self.high - self.low) / 4
        power = 10 ** math.floor(math.log10(wanted))
        step = next(n * power for n in (1, 2, 5, 10) if n * power >= wanted)
        first = math.ceil(self.low / step)
        return [round(i * step, 10) for i in range(first, math.floor(self.high / step) + 1)]
