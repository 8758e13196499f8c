"""Which attempt goes next, and where: the same for every executor."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from enum import IntEnum
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from splatpipe.errors import EnvironmentProblem
from splatpipe.executors.base import NO_NEED, Executor, Need, OnEvent, Slot
from splatpipe.trainers.base import Attempt, TrainRequest

Job = TypeVar("Job")
LOOK_S = 1.0  # executors whose places come and go are asked again this often


class Rank(IntEnum):
    """Lower goes first, whatever it costs."""

    CANARY = 0
    RETRY = 1
    NEW = 2


@dataclass(frozen=True)
class Start:
    """What begins: a request, and who is told of its events."""

    request: TrainRequest
    on_event: OnEvent


@dataclass(frozen=True)
class Finished(Generic[Job]):
    """How a job's attempt ended: `attempt`, or what went wrong with us."""

    job: Job
    attempt: Attempt | None
    error: BaseException | None = None


class Scheduler(Generic[Job]):
    """Hands jobs to an executor: the canary alone, then retries, then new ones, the costliest first.

    The costliest first because of the end of a run: what is left for the last free places is then short, and they
    end at about the same time (Graham 1969: at most 4/3 of the best possible, and far less with many jobs).
    Not safe for several threads; `halt` is.
    """

    def __init__(self, executor: Executor, stop: threading.Event) -> None:
        self.stop = stop
        self._executor = executor
        self._ready: list[tuple[Rank, float, int, Job, Need]] = []
        self._order = itertools.count()
        self._running: dict[Future[Attempt], tuple[Job, Slot, Rank]] = {}
        self._ended: SimpleQueue[Future[Attempt]] = SimpleQueue()
        self._halted = threading.Event()

    def add(self, job: Job, rank: Rank = Rank.NEW, cost: float = 0.0, need: Need = NO_NEED) -> None:
        """Queue a job; among those of one rank the highest `cost` (seconds, or any other measure) goes first."""
        heapq.heappush(self._ready, (rank, -cost, next(self._order), job, need))

    def revalue(self, cost: Callable[[Job], float]) -> None:
        """Sort what waits by better estimates."""
        self._ready = [(rank, -cost(job), order, job, need) for rank, _, order, job, need in self._ready]
        heapq.heapify(self._ready)

    def halt(self) -> None:
        """Begin no new job; retries and what runs go on to their end."""
        self._halted.set()

    def run(
        self,
        begin: Callable[[Job, Slot], Start | None],
        preview: Callable[[Job], TrainRequest] | None = None,
    ) -> Iterator[Finished[Job]]:
        """Yield every attempt as it ends; the caller may `add` jobs meanwhile. Jobs left over are not yielded.

        `begin` says what a job does in the place that it gets, or None when there is nothing to do. What goes wrong
        with us is in `Finished.error` and costs only its own job, except EnvironmentProblem, which halts: the
        next job would meet it too. `preview` says about what a waiting job will be. When the caller leaves early,
        `stop` is set and running attempts are waited for.
        """
        try:
            while True:
                yield from self._hand_out(begin)
                if not self._running:
                    return
                if preview is not None:
                    self._executor.look_ahead(lambda count: [preview(job) for job in self._upcoming(count)])
                try:
                    yield self._collect(self._ended.get(timeout=LOOK_S))
                except Empty:
                    continue
        finally:
            if self._running:
                self.stop.set()
                while self._running:
                    self._collect(self._ended.get())

    def _hand_out(self, begin: Callable[[Job, Slot], Start | None]) -> Iterator[Finished[Job]]:
        while (rank := self._next_rank()) is not None:
            slot = self._executor.acquire(self._ready[0][-1])
            if slot is None:
                break
            job = heapq.heappop(self._ready)[3]
            try:
                start = begin(job, slot)
                if start is None:
                    self._executor.release(slot)
                    continue
                future = self._executor.submit(slot, start.request, start.on_event)
            except BaseException as error:
                self._executor.release(slot)
                yield self._failed(job, error)
                continue
            self._running[future] = (job, slot, rank)
            future.add_done_callback(self._ended.put)
        self._executor.flush()

    def _upcoming(self, count: int) -> list[Job]:
        """The jobs that go next."""
        if self.stop.is_set():
            return []
        most = Rank.RETRY if self._halted.is_set() else Rank.NEW
        return [entry[3] for entry in heapq.nsmallest(count, self._ready) if entry[0] <= most]

    def _next_rank(self) -> Rank | None:
        """The rank of the job that may begin now; None when none may."""
        if not self._ready or self.stop.is_set():
            return None
        rank = self._ready[0][0]
        if rank is Rank.NEW and self._halted.is_set():
            return None
        alone = any(running is Rank.CANARY for _, _, running in self._running.values())
        return None if alone else rank

    def _collect(self, future: Future[Attempt]) -> Finished[Job]:
        job, slot, _ = self._running.pop(future)
        self._executor.release(slot)
        error = future.exception()
        return self._failed(job, error) if error is not None else Finished(job, future.result())

    def _failed(self, job: Job, error: BaseException) -> Finished[Job]:
        """A bug of ours: the other patches must still be trained; a problem of the machine: they cannot be."""
        if isinstance(error, EnvironmentProblem):
            self.halt()
        return Finished(job, None, error)
