"""Children that are ready when a place becomes free: when they are started, and with how much memory."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import psutil

from splatpipe.errors import EnvironmentProblem
from splatpipe.executors.base import Upcoming
from splatpipe.executors.slots import MEMORY_SHARE
from splatpipe.machine import memory_limit
from splatpipe.trainers.base import StandbyTrainer, Trainer, TrainRequest
from splatpipe.trainers.standby import Standby

LEAD_S = 60.0  # before an attempt ends, by its own rate: importing takes seconds, decoding up to a minute
CHILD_BYTES = 1 << 30  # of a child without photographs: Python, torch, kernels
MOST_PHOTOGRAPHS = 16 << 30  # bytes


class Standbys:
    """At most one child that waits for each device. `heard` is safe for several threads, nothing else is."""

    def __init__(self, trainers: Sequence[Trainer], room: Callable[[int, int], int]) -> None:
        """`room`: bytes for the photographs of one child while so many attempts run on so many devices.

        Below 0 there is none even for a child without photographs.
        """
        self._trainers = {one.name: one for one in trainers if isinstance(one, StandbyTrainer)}
        self._room = room
        self._ends: dict[str, float] = {}  # by device, when the attempt there will have made its last step
        self._waiting: dict[str, Standby] = {}

    def begins(self, device: str) -> None:
        """An attempt begins there; nothing is known of its end yet."""
        self._ends[device] = math.inf

    def heard(self, device: str, event: dict[str, Any]) -> None:
        """An event of the attempt there."""
        rate = event.get("steps_per_s")
        if event.get("event") == "step" and rate:
            self._ends[device] = time.monotonic() + (event["total"] - event["step"]) / rate

    def look_ahead(self, running: int, upcoming: Upcoming) -> None:
        """Start a child where an attempt is about to end and another will follow; end those that nobody needs."""
        soon = time.monotonic() + LEAD_S
        due = [device for device, end in sorted(self._ends.items(), key=lambda one: one[1]) if end <= soon]
        missing = [device for device in due if device not in self._waiting]
        if not self._trainers or (not missing and not self._waiting):
            return
        wanted = upcoming(len(self._waiting) + len(missing))
        while len(self._waiting) > len(wanted):
            self._waiting.popitem()[1].cancel()
        for device, request in zip(missing, wanted[len(self._waiting) :], strict=False):
            self._start(replace(request, device=device), self._room(running, len(self._ends)))

    def take(self, request: TrainRequest) -> Standby | None:
        """The child that waits for this request's device, if it is of its trainer."""
        standby = self._waiting.get(request.device)
        if standby is None or not standby.suits(request):
            return None
        return self._waiting.pop(request.device)

    def close(self) -> None:
        """End all that wait."""
        while self._waiting:
            self._waiting.popitem()[1].cancel()

    def _start(self, request: TrainRequest, room: int) -> None:
        trainer = self._trainers.get(request.trainer)
        if trainer is None or room < 0:
            return
        with contextlib.suppress(EnvironmentProblem):  # the attempt itself will meet it, and say so
            self._waiting[request.device] = Standby(trainer, request, room)


def photograph_room(running: int, devices: int, need: int) -> int:
    """Bytes for the photographs of a child that waits beside `running` attempts that may grow to `need` bytes each.

    One such child may wait for each of the `devices`.
    """
    left = int(memory_limit() * MEMORY_SHARE) - running * need
    share = min(left, psutil.virtual_memory().available // 2) // devices
    return min(share - CHILD_BYTES, MOST_PHOTOGRAPHS)
