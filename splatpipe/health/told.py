"""The same verdicts from what a foreign trainer tells of itself: losses, counts and relocations, no more."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

from splatpipe.health.sample import Sample, Series
from splatpipe.health.settings import HealthSettings
from splatpipe.health.verdicts import Severity, Verdict, judge

SMOOTH = 5  # losses told are those of one view each; their running median is judged


class ToldHealth:
    """Takes in the events of docs/contracts.md, gives back what follows from them: `verdict`, and `error` to end it."""

    def __init__(self, settings: HealthSettings) -> None:
        self.settings = settings
        self.verdicts: list[Verdict] = []
        self._losses: deque[float] = deque(maxlen=SMOOTH)
        self._samples: list[Sample] = []
        self._relocated: list[float] = []

    def add(self, event: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Events to be recorded behind this one."""
        if not self.settings.every:
            return []
        match event["event"]:
            case "refine":
                before = (event.get("gaussians") or 0) - event["added"]
                self._relocated += [round(event["relocated"] / before, 4)] if before > 0 else []
            case "step":
                return self._step(event)
        return []

    def _step(self, event: Mapping[str, Any]) -> list[dict[str, Any]]:
        step, loss = event["step"], event.get("loss")
        if loss is not None:
            self._losses.append(loss)
        if self._samples and step < self._samples[-1].step + self.settings.every:
            return []
        self._samples.append(
            Sample(
                step=step,
                loss=median(self._losses) if self._losses else None,
                gaussians=event.get("gaussians"),
                relocated_share=self._relocated[-1] if self._relocated else None,
                steps_per_s=event.get("steps_per_s"),
            )
        )
        known = {verdict.rule for verdict in self.verdicts}
        series = Series(tuple(self._samples), tuple(self._relocated))
        new = [verdict for verdict in judge(series, self.settings) if verdict.rule not in known]
        self.verdicts += new
        return [told for verdict in new for told in self._tell(verdict)]

    def _tell(self, verdict: Verdict) -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = [{"event": "verdict", **verdict.to_json()}]
        if self.settings.stop and verdict.severity is Severity.STOP and verdict.failure is not None:
            failure = verdict.failure.value
            told.append({"event": "error", "class": failure, "message": verdict.message, "step": verdict.step})
        return told
