"""One bar for a whole run on a terminal, one line a minute anywhere else."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

LINE_EVERY_S = 60.0


class RunProgress:
    """Steps of all patches of a run. Methods may be called from several threads; prints to stderr."""

    def __init__(self, steps: Mapping[str, int]) -> None:
        """`steps`: patch id to the number of its steps."""
        self._lock = threading.Lock()
        self._terminal = sys.stderr.isatty()
        self._planned, self._total = dict(steps), sum(steps.values())
        self._steps: dict[str, int] = {}  # patch -> finished steps of its present attempt
        self._first: dict[str, int] = {}  # patch -> steps it had when this process first heard of it
        self._started = self._last_line = time.monotonic()
        self._bar = tqdm(total=self._total, unit="step", dynamic_ncols=True, disable=not self._terminal)

    def say(self, text: str) -> None:
        """A line above the bar."""
        with self._lock:
            if self._terminal:
                self._bar.write(text, file=sys.stderr)
            else:
                print(text, file=sys.stderr, flush=True)

    def event(self, patch_id: str, event: Mapping[str, Any]) -> None:
        """Take in one event of docs/contracts.md."""
        kind = event.get("event")
        if kind == "compiling":
            self.say(f"{patch_id}: {event.get('what', 'compiling')}")
        elif kind == "start":
            with self._lock:
                self._set(patch_id, event.get("resumed_from") or 0)
                self._first.setdefault(patch_id, self._steps[patch_id])
            if event.get("resumed_from"):
                self.say(f"{patch_id}: continues at step {event['resumed_from']}")
        elif kind == "step":
            with self._lock:
                self._set(patch_id, int(event["step"]))
                self._show(patch_id, event)

    def finished(self, patch_id: str) -> None:
        """The patch needs no more steps, whether it trained or not."""
        with self._lock:
            self._set(patch_id, self._planned.get(patch_id, 0))

    def close(self) -> None:
        self._bar.close()

    def _set(self, patch_id: str, step: int) -> None:
        self._steps[patch_id] = step
        self._bar.n = min(sum(self._steps.values()), self._total)

    def _show(self, patch_id: str, event: Mapping[str, Any]) -> None:
        loss = event.get("loss")
        shown = f"loss {loss:.4f}" if loss is not None else "loss -"
        state = f"{patch_id} {event['step']}/{event['total']} {shown} {event['gaussians']} Gaussians"
        if self._terminal:
            self._bar.set_description_str(state, refresh=False)
            self._bar.refresh()
        elif time.monotonic() - self._last_line >= LINE_EVERY_S:
            self._last_line = time.monotonic()
            rate = event.get("steps_per_s") or 0
            print(f"{state} {rate:.1f} steps/s, {self._remaining()}", file=sys.stderr, flush=True)

    def _remaining(self) -> str:
        done = sum(self._steps.values())
        fresh = done - sum(self._first.values())
        if fresh <= 0:
            return "time left unknown"
        seconds = (self._total - done) * (time.monotonic() - self._started) / fresh
        return f"about {tqdm.format_interval(seconds)} left"
