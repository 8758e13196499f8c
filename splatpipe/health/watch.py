"""The observer that a training is given: samples its health, reports it, and ends what cannot recover."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from splatpipe.health.sample import Sample, Series
from splatpipe.health.settings import HealthSettings
from splatpipe.health.signals import Signals
from splatpipe.health.verdicts import Severity, Verdict, judge
from splatpipe.splatting.loop import Report, Seen, Training, TrainingFailure


class HealthWatch:
    """A `loop.Observer`.

    `earlier` are the events of the same attempt before it was interrupted, `step` is where it goes on.
    """

    def __init__(
        self, settings: HealthSettings, report: Report, earlier: Iterable[Mapping[str, Any]] = (), step: int = 0
    ) -> None:
        self.settings, self._report = settings, report
        before = [event for event in earlier if event.get("step", 0) <= step]
        self.samples = [Sample.from_json(event) for event in before if event["event"] == "health"]
        self.verdicts = [Verdict.from_json(event) for event in before if event["event"] == "verdict"]
        self._signals = Signals()
        self._next = step + settings.every

    def after_step(self, training: Training, seen: Seen | None) -> None:
        """Raises `TrainingFailure` for a verdict of severity `stop`, with the class of its remedy.

        A sample that falls on a blind step is taken at the next one that sees something.
        """
        self._signals.step(training, seen)
        due = training.step >= self._next or training.step >= training.settings.iterations
        if seen is None or not due:
            return
        self._next = training.step + self.settings.every
        self.samples.append(self._signals.sample(training, seen))
        self._report("health", **self.samples[-1].to_json())
        health = training.health
        turns = training.step * training.settings.views_per_step
        self._judge(
            Series(
                tuple(self.samples),
                tuple(health.relocated_shares),
                blind=tuple(health.blind_cameras),
                rounds=turns / len(training.data.views),
                scene_scale=training.scene_scale,
            )
        )

    def _judge(self, series: Series) -> None:
        known = {verdict.rule for verdict in self.verdicts}
        for verdict in judge(series, self.settings):
            if verdict.rule not in known:
                self.verdicts.append(verdict)
                self._report("verdict", **verdict.to_json())
                self._end_if(verdict)

    def _end_if(self, verdict: Verdict) -> None:
        if self.settings.stop and verdict.severity is Severity.STOP and verdict.failure is not None:
            raise TrainingFailure(verdict.failure.value, verdict.message, verdict.step)
