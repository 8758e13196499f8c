"""What an executor is asked: places for attempts, and attempts made there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from splatpipe.failures.classify import Catalogue
from splatpipe.trainers.base import Attempt, Trainer, TrainRequest
from splatpipe.trainers.standby import Standby
from splatpipe.trainers.supervise import run_attempt

OnEvent = Callable[[dict[str, Any]], None]
Upcoming = Callable[[int], list[TrainRequest]]
"""The requests, about, of the jobs that go next, at most so many; with any device."""


@dataclass(frozen=True)
class Slot:
    """A place where one child trains at a time."""

    device: str  # "cpu", "cuda:0"
    threads: int = 0  # CPU threads of the child; 0: all


@dataclass(frozen=True)
class Need:
    """What an attempt is expected to take, for executors that share a device; bytes."""

    vram: int = 0


NO_NEED = Need()


class Executor(Protocol):
    """Makes attempts somewhere, in the manner of concurrent.futures.

    Used by one thread, the scheduler's. An attempt that fails is a result; what a future raises is a bug of ours
    or an EnvironmentProblem, which all other attempts would meet too. When the run's `stop` event is set, attempts
    that are being made end with a checkpoint and come back as interrupted.
    """

    def acquire(self, need: Need) -> Slot | None:
        """A place that is free now, or None; it is taken until `release`."""
        ...

    def submit(self, slot: Slot, request: TrainRequest, on_event: OnEvent) -> Future[Attempt]:
        """Make the attempt there. `on_event` is called from any thread, with every event of docs/contracts.md."""
        ...

    def look_ahead(self, upcoming: Upcoming) -> None:
        """Asked about once a second: time to get ready for what comes next, where that is of use."""
        ...

    def flush(self) -> None:
        """Nothing more will be submitted for now: what was collected to be sent together can go."""
        ...

    def release(self, slot: Slot) -> None:
        """The attempt is over."""
        ...

    def close(self) -> None:
        """Let go of threads and connections; nothing is running any more."""
        ...


@dataclass(frozen=True)
class Work:
    """How requests become attempts in this process: the trainers by name, and what their messages mean."""

    trainers: tuple[Trainer, ...]
    catalogue: Catalogue

    def run(
        self, request: TrainRequest, on_event: OnEvent, stop: threading.Event, standby: Standby | None = None
    ) -> Attempt:
        """Make one attempt; see `run_attempt`."""
        trainer = next(one for one in self.trainers if one.name == request.trainer)
        return run_attempt(trainer, request, on_event=on_event, stop=stop, catalogue=self.catalogue, standby=standby)
