"""Patches trained on this machine: as many at a time as there are slots."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Generic, TypeVar

from splatpipe.errors import EnvironmentProblem

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Slot:
    """A place where one child trains at a time."""

    device: str  # "cpu", "cuda:0"
    threads: int = 0  # CPU threads of the child; 0: all


@dataclass(frozen=True)
class Finished(Generic[Job, Result]):
    """How a job ended: with a result, or with what its work raised."""

    job: Job
    slot: Slot
    result: Result | None
    error: BaseException | None = None


class LocalExecutor:
    """Hands jobs to slots in order; `stop` ends the handing out, and the work is expected to watch it too."""

    def __init__(self, slots: Sequence[Slot], stop: threading.Event | None = None) -> None:
        if not slots:
            raise ValueError("an executor needs at least one slot")
        self.slots = tuple(slots)
        self.stop = stop or threading.Event()
        self._halted = threading.Event()

    def halt(self) -> None:
        """Hand out no further job; what runs goes on to its end."""
        self._halted.set()

    def run(self, jobs: Sequence[Job], work: Callable[[Job, Slot], Result]) -> Iterator[Finished[Job, Result]]:
        """Yield each job as it finishes. Jobs that were never handed out are not yielded.

        What `work` raises is in `Finished.error` and costs only its own job, except EnvironmentProblem, which
        halts: the next job would meet it too. When the caller leaves the loop early, `stop` is set and the
        running jobs are waited for.
        """
        waiting, finished = iter(jobs), SimpleQueue[Finished[Job, Result] | None]()
        lock = threading.Lock()

        def serve(slot: Slot) -> None:
            try:
                while (item := self._next(waiting, lock)) is not None:
                    finished.put(self._do(item[0], slot, work))
            finally:
                finished.put(None)

        with ThreadPoolExecutor(len(self.slots), thread_name_prefix="slot") as pool:
            for slot in self.slots:
                pool.submit(serve, slot)
            serving = len(self.slots)
            try:
                while serving:
                    done = finished.get()
                    if done is None:
                        serving -= 1
                    else:
                        yield done
            finally:
                if serving:
                    self.stop.set()

    def _next(self, waiting: Iterator[Job], lock: threading.Lock) -> tuple[Job] | None:
        with lock:
            if self.stop.is_set() or self._halted.is_set():
                return None
            for job in waiting:
                return (job,)
            return None

    def _do(self, job: Job, slot: Slot, work: Callable[[Job, Slot], Result]) -> Finished[Job, Result]:
        try:
            return Finished(job, slot, work(job, slot))
        except EnvironmentProblem as error:
            self.halt()
            return Finished(job, slot, None, error)
        except BaseException as error:  # a bug of ours: the other patches must still be trained
            return Finished(job, slot, None, error)
