"""Attempts made on this machine: as many at a time as there are slots."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from splatpipe.executors.base import Need, OnEvent, Slot, Work
from splatpipe.executors.gpus import GpuGate
from splatpipe.trainers.base import Attempt, TrainRequest


class LocalExecutor:
    """Children of this process. With a `gate`, a GPU's second slot and those after it open when the gate says so."""

    def __init__(self, slots: Sequence[Slot], work: Work, stop: threading.Event, gate: GpuGate | None = None) -> None:
        if not slots:
            raise ValueError("an executor needs at least one slot")
        self._free = list(slots)
        self._busy: list[Slot] = []
        self._work, self._stop, self._gate = work, stop, gate
        self._pool = ThreadPoolExecutor(len(slots), thread_name_prefix="slot")

    def acquire(self, need: Need) -> Slot | None:
        """The free slot on the device with the fewest attempts."""
        for slot in sorted(self._free, key=lambda slot: self._busy.count(slot)):
            neighbours = self._busy.count(slot)
            if not neighbours or self._gate is None or self._gate.admits(slot.device, need):
                self._free.remove(slot)
                self._busy.append(slot)
                return slot
        return None

    def submit(self, slot: Slot, request: TrainRequest, on_event: OnEvent) -> Future[Attempt]:
        if self._gate is not None:
            self._gate.begins(slot.device)
        return self._pool.submit(self._work.run, request, on_event, self._stop)

    def flush(self) -> None:
        """Everything was begun when it was submitted."""

    def release(self, slot: Slot) -> None:
        self._busy.remove(slot)
        self._free.append(slot)

    def close(self) -> None:
        self._pool.shutdown()
