"""Curves as data that the pages' script draws with uPlot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

MOST_POINTS = 600  # of one curve; a chart is about as many pixels wide


@dataclass(frozen=True)
class Line:
    """One curve. `values` go with the chart's `x`; None: not measured there. Empty color: the next of the palette."""

    label: str
    values: Sequence[float | None]
    color: str = ""


@dataclass(frozen=True)
class Mark:
    """A place on the x axis that a reader should see. `severity`: note, warning, stop."""

    x: float
    severity: str
    text: str


@dataclass(frozen=True)
class Chart:
    """Curves over one x axis; `title` says what is drawn, `unit` what it is counted in, `help` how to read it."""

    title: str
    x: Sequence[float]
    lines: Sequence[Line]
    unit: str = ""
    x_label: str = "training step"
    help: str = ""
    marks: Sequence[Mark] = ()
    log: bool = False  # logarithmic y axis; values that are not above 0 are left out then
    share: bool = False  # y begins at 0 and is shown in per cent

    def to_json(self, most: int = MOST_POINTS) -> dict[str, Any]:
        """Thinned to `most` points and the last, with numbers that JSON can say."""
        step = max(1, -(-len(self.x) // most))
        kept = sorted({*range(0, len(self.x), step), *([len(self.x) - 1] if len(self.x) else [])})
        lines = [
            {"label": line.label, "color": line.color, "values": [self._shown(line.values[i]) for i in kept]}
            for line in self.lines
        ]
        plain = {name: getattr(self, name) for name in ("title", "unit", "x_label", "help", "log", "share")}
        marks = [asdict(mark) for mark in self.marks]
        return {**plain, "x": [self.x[i] for i in kept], "lines": lines, "marks": marks}

    def _shown(self, value: float | None) -> float | None:
        if value is None or not math.isfinite(value) or (self.log and value <= 0):
            return None
        return float(f"{value:.5g}")
