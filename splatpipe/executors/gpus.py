"""Whether a GPU that trains one patch has room for another."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from splatpipe.executors.base import Need

SETTLE_S = 30.0  # after an attempt began: decoding and growing come first, and say nothing about later use
BUSY = 0.85  # mean share of time with a kernel running above which a second attempt only slows the first
SPARE = 0.1  # share of the memory that stays free: Gaussians still grow, allocators round up
MEMORY_OF_USE = 0.9  # weight of what was seen before in the running mean, one look a second


@dataclass(frozen=True)
class Use:
    """One look at a GPU; bytes, and the share of the last moments with a kernel running."""

    total: int
    free: int
    busy: float


class GpuGate:
    """Admits a further attempt to a GPU by what is measured there."""

    def __init__(self, look: Callable[[str], Use | None], clock: Callable[[], float] = time.monotonic) -> None:
        """`look` measures a device ("cuda:1"); None where it cannot, and nothing is admitted then."""
        self._look, self._clock = look, clock
        self._began: dict[str, float] = {}
        self._busy: dict[str, float] = {}

    def begins(self, device: str) -> None:
        """An attempt begins there: what was measured before it counts no longer."""
        self._began[device] = self._clock()
        self._busy.pop(device, None)

    def admits(self, device: str, need: Need) -> bool:
        """Whether an attempt with this need fits beside those that run there. Asked about once a second."""
        if self._clock() - self._began.get(device, 0.0) < SETTLE_S:
            return False
        use = self._look(device)
        if use is None:
            return False
        before = self._busy.get(device, use.busy)
        self._busy[device] = MEMORY_OF_USE * before + (1 - MEMORY_OF_USE) * use.busy
        return self._busy[device] < BUSY and use.free - need.vram > SPARE * use.total


def look_at(device: str) -> Use | None:
    """The use of "cuda:1" as torch counts devices, by NVML; None without it."""
    with contextlib.suppress(ImportError):
        import pynvml
        import torch

        with contextlib.suppress(pynvml.NVMLError, RuntimeError):
            pynvml.nvmlInit()
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            busy = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
            return Use(int(memory.total), int(memory.free), busy)
    return None
