"""The curves of a patch, from the events of its attempts: what happened while it trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from splatpipe.report.charts import MOST_POINTS, Chart, Line, Mark
from splatpipe.trainers.tail import read_events

Event = Mapping[str, Any]
Value = Callable[[Event], float | None]
GROUPS = {
    "means": "positions",
    "scales": "sizes",
    "quats": "rotations",
    "opacities": "opacities",
    "sh0": "base colour",
    "sh1": "view-dependent colour, band 1",
    "sh2": "view-dependent colour, band 2",
    "sh3": "view-dependent colour, band 3",
}
SIGMAS = ("5 % are smaller", "half are smaller", "95 % are smaller", "99 % are smaller", "the largest")


def read_attempt(path: Path) -> list[dict[str, Any]]:
    """The events of one attempt that a chart can use; none where there is no file."""
    wanted = ("step", "health", "refine", "verdict", "error")
    return [event for event in read_events(path) if event.get("event") in wanted and event.get("step") is not None]


def health_charts(attempts: Mapping[int, Sequence[Event]], most: int = MOST_POINTS) -> list[dict[str, Any]]:
    """Charts of a patch, given the events of its attempts by number. Charts without a value are left out.

    `most`: points of one curve.
    """
    if not attempts:
        return []
    last = max(attempts)
    charts = [*_across(attempts), *_within(attempts[last], f"attempt {last}" if len(attempts) > 1 else "")]
    return [chart.to_json(most) for chart in charts if any(v is not None for line in chart.lines for v in line.values)]


def _across(attempts: Mapping[int, Sequence[Event]]) -> list[Chart]:
    """Signals that are one number each: one curve for each attempt."""
    sampled = any(event["event"] == "health" for events in attempts.values() for event in events)
    source = "health" if sampled else "step"
    marks = _marks(attempts)

    def chart(title: str, help: str, kind: str, value: Value, unit: str = "", **options: Any) -> Chart:
        x, lines = _lines(attempts, kind, value)
        return Chart(title, x, lines, unit, help=help, **options)

    return [
        chart("Loss", "lower is better; falls fast, then slowly", source, _get("loss"), marks=marks),
        chart("Match of one training view", "higher is better", "health", _get("psnr"), "dB PSNR"),
        chart("Gaussians", "grows to its limit", source, _get("gaussians")),
        chart("Alive", "opaque enough to count; should stay near 100 %", "health", _get("alive_share"), share=True),
        chart(
            "Relocated at each refinement",
            "dead Gaussians moved to a new place; above 30 % something is wrong",
            "refine",
            lambda event: event["relocated"] / event["gaussians"] if event.get("gaussians") else None,
            share=True,
        ),
        chart("Seen by a camera", "since the last refinement", "health", _get("seen_share"), share=True),
        chart("Mean opacity", "0 is invisible, 1 is solid", "health", _get("opacity_mean"), share=True),
        chart("Far outside the scene", "should stay near 0 %", "health", _get("flung_share"), share=True),
        chart("Speed", "", source, _get("steps_per_s"), "steps per second"),
    ]


def _within(events: Sequence[Event], of: str) -> list[Chart]:
    """Signals with several numbers each: of the last attempt."""
    health = [event for event in _newest(events, "health")]
    steps = [event["step"] for event in health]
    gradients, updates = (
        [Line(text, [(event.get(key) or {}).get(name) for event in health]) for name, text in GROUPS.items()]
        for key in ("gradients", "updates")
    )
    sigmas = [Line(text, [_item(event.get("sigmas"), i) for event in health]) for i, text in enumerate(SIGMAS)]

    def chart(title: str, lines: list[Line], help: str, unit: str) -> Chart:
        filled = [line for line in lines if any(value is not None for value in line.values)]
        name = f"{title}, {of}" if of else title
        return Chart(name, steps, filled, f"{unit}, on a logarithmic scale", help=help, log=True)

    return [
        chart("Gradient", gradients, "a group whose curve ends near 0 no longer learns", "norm"),
        chart("Change per step", updates, "how far one step moves each group", "share of its value"),
        chart("Size of the Gaussians", sigmas, "largest sigma of each", "scene radii"),
    ]


def _lines(attempts: Mapping[int, Sequence[Event]], kind: str, value: Value) -> tuple[list[int], list[Line]]:
    """The steps of all attempts together, and a curve of each over them."""
    curves = {n: {event["step"]: value(event) for event in _newest(events, kind)} for n, events in attempts.items()}
    steps = sorted({step for curve in curves.values() for step in curve})
    many = len(curves) > 1
    return steps, [
        Line(f"attempt {n}" if many else "this patch", [curve.get(step) for step in steps])
        for n, curve in curves.items()
        if curve
    ]


def _newest(events: Sequence[Event], kind: str) -> list[Event]:
    """One event for each step, in order: what an interrupted attempt did twice counts as done last."""
    by_step = {event["step"]: event for event in events if event["event"] == kind}
    return [by_step[step] for step in sorted(by_step)]


def _marks(attempts: Mapping[int, Sequence[Event]]) -> list[Mark]:
    """Verdicts, and the errors that ended an attempt without one."""
    marks: dict[tuple[int, int, str], Mark] = {}
    for n, events in attempts.items():
        name = f"attempt {n}: " if len(attempts) > 1 else ""
        for event in events:
            if event["event"] in ("verdict", "error"):
                text = str(event.get("message") or event.get("class") or "")
                severity = str(event.get("severity", "stop"))
                marks.setdefault((n, event["step"], text), Mark(event["step"], severity, name + text))
    return list(marks.values())


def _get(name: str) -> Value:
    return lambda event: event.get(name)


def _item(values: Sequence[float | None] | None, i: int) -> float | None:
    return values[i] if values and i < len(values) else None
