"""Attempts made on this machine: as many at a time as there are slots."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from splatpipe.executors.base import Need, OnEvent, Slot, Upcoming, Work
from splatpipe.executors.gpus import GpuGate
from splatpipe.executors.standbys import Standbys
from splatpipe.trainers.base import Attempt, TrainRequest
from splatpipe.trainers.standby import Standby


class LocalExecutor:
    """Children of this process. With a `gate`, a GPU's second slot and those after it open when the gate says so."""

    def __init__(
        self,
        slots: Sequence[Slot],
        work: Work,
        stop: threading.Event,
        gate: GpuGate | None = None,
        standbys: Standbys | None = None,
    ) -> None:
        """With `standbys`, a place's next child begins before the place is free."""
        if not slots:
            raise ValueError("an executor needs at least one slot")
        self._free = list(slots)
        self._busy: list[Slot] = []
        self._work, self._stop, self._gate, self._standbys = work, stop, gate, standbys
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
        if self._standbys is None:
            return self._pool.submit(self._work.run, request, on_event, self._stop)
        standby = self._standbys.take(request)
        self._standbys.begins(slot.device)
        return self._pool.submit(self._run, request, on_event, self._standbys, standby)

    def look_ahead(self, upcoming: Upcoming) -> None:
        """Have children wait for the places that become free soon."""
        if self._standbys is not None:
            self._standbys.look_ahead(len(self._busy), upcoming)

    def flush(self) -> None:
        """Everything was begun when it was submitted."""

    def release(self, slot: Slot) -> None:
        self._busy.remove(slot)
        self._free.append(slot)

    def close(self) -> None:
        if self._standbys is not None:
            self._standbys.close()
        self._pool.shutdown()

    def _run(self, request: TrainRequest, on_event: OnEvent, standbys: Standbys, standby: Standby | None) -> Attempt:
        def heard(event: dict[str, Any]) -> None:
            standbys.heard(request.device, event)
            on_event(event)

        try:
            return self._work.run(request, heard, self._stop, standby)
        finally:
            if standby is not None:
                standby.cancel()
