"""One bar for a whole run on a terminal, one line a minute anywhere else."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

LINE_EVERY_S = 60.0
NAMED = 4  # patches that a line names, those heard of last


class Counter:
    """Things done of a known number, with the time left. Prints to stderr."""

    def __init__(self, what: str, unit: str, total: int, every_s: float = LINE_EVERY_S) -> None:
        self._what, self._unit, self._total, self._every = what, unit, total, every_s
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total, desc=what, unit=unit, dynamic_ncols=True, leave=False, disable=not self._terminal)
        self._done, self._started = 0, time.monotonic()
        self._told = self._started

    def step(self) -> None:
        """One more is done."""
        self._done += 1
        self._bar.update()
        now = time.monotonic()
        if not self._terminal and now - self._told >= self._every:
            self._told = now
            left = tqdm.format_interval((now - self._started) / self._done * (self._total - self._done))
            print(f"{self._what}: {self._done} of {self._total} {self._unit}s; about {left} left", file=sys.stderr)

    def close(self) -> None:
        self._bar.close()


class RunProgress:
    """Steps of all patches of a run. Methods may be called from several threads; prints to stderr."""

    def __init__(
        self, steps: Mapping[str, int], batch: bool = False, every_s: float = LINE_EVERY_S, what: str = "patches"
    ) -> None:
        """`steps`: patch id to the number of its steps. `batch`: lines, even on a terminal. `what` they are."""
        self._lock, self._what = threading.Lock(), what
        self._terminal = sys.stderr.isatty() and not batch
        self._planned, self._total = dict(steps), sum(steps.values())
        self._costs: dict[str, float] = {patch: float(count) for patch, count in steps.items()}
        self._steps: dict[str, int] = {}  # patch -> finished steps of its present attempt
        self._first: dict[str, int] = {}  # patch -> steps it had when this process first heard of it
        self._sum = 0
        self._states: dict[str, str] = {}  # of the patches that train, the one heard of last at the end
        self._over: set[str] = set()
        self._started = time.monotonic()
        self._bar = tqdm(total=self._total, unit="step", dynamic_ncols=True, disable=not self._terminal)
        self._closed = threading.Event()
        self._ticker = threading.Thread(target=self._tick, args=(every_s,), name="progress", daemon=True)
        if not self._terminal:
            self._ticker.start()

    def say(self, text: str) -> None:
        """A line above the bar."""
        with self._lock:
            if self._terminal:
                self._bar.write(text, file=sys.stderr)
            else:
                print(text, file=sys.stderr, flush=True)

    def weigh(self, costs: Mapping[str, float]) -> None:
        """What each patch is expected to take, in any unit: a step of a large patch is more of the work."""
        with self._lock:
            self._costs.update(costs)

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
            self._states.pop(patch_id, None)
            self._over.add(patch_id)

    def close(self) -> None:
        self._closed.set()
        self._bar.close()

    def line(self) -> str:
        """Where the run stands: patches that came to an end, those that train, and the time left."""
        with self._lock:
            states = list(self._states.values())
            shown = [*states[-NAMED:], *([f"{len(states) - NAMED} more"] if len(states) > NAMED else [])]
            now = f", training: {'; '.join(shown)}" if shown else ""
            return f"{len(self._over)} of {len(self._planned)} {self._what} done{now}; {self._remaining()}"

    def _tick(self, every_s: float) -> None:
        while not self._closed.wait(every_s):
            print(self.line(), file=sys.stderr, flush=True)

    def _set(self, patch_id: str, step: int) -> None:
        self._sum += step - self._steps.get(patch_id, 0)
        self._steps[patch_id] = step
        self._bar.n = min(self._sum, self._total)

    def _show(self, patch_id: str, event: Mapping[str, Any]) -> None:
        loss = event.get("loss")
        shown = f"loss {loss:.4f}" if loss is not None else "loss -"
        state = f"{patch_id} {event['step']}/{event['total']} {shown} {event['gaussians']} Gaussians"
        self._states.pop(patch_id, None)
        self._states[patch_id] = f"{state} {event.get('steps_per_s') or 0:.1f} steps/s"
        if self._terminal:
            self._bar.set_description_str(f"{state}, {self._remaining()}", refresh=False)
            self._bar.refresh()

    def _remaining(self) -> str:
        """At the rate so far, in work as `weigh` counts it."""
        work = sum(self._costs.values())
        done = sum(map(self._work, self._steps, self._steps.values()))
        fresh = done - sum(map(self._work, self._first, self._first.values()))
        if fresh <= 0:
            return "time left unknown"
        seconds = (work - done) * (time.monotonic() - self._started) / fresh
        return f"about {tqdm.format_interval(max(seconds, 0.0))} left"

    def _work(self, patch_id: str, steps: int) -> float:
        return self._costs.get(patch_id, 0.0) * steps / max(self._planned.get(patch_id, 0), 1)
