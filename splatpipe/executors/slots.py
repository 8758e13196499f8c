"""How many attempts this machine makes at once."""

from __future__ import annotations

from splatpipe.executors.base import Slot

CORES_EACH = 8  # of one attempt on the CPU, when nobody says how many: two small ones train faster than one large
MEMORY_SHARE = 0.8  # of what this process may use; the rest is for splitting, merging and the file cache
MOST_PER_GPU = 4


def cpu_slots(jobs: int, threads: int, cores: int, memory: int, need: int) -> list[Slot]:
    """`jobs` slots, or as many as cores and memory allow; `need`: bytes of the largest attempt.

    `threads` 0 shares the cores out.
    """
    if not jobs:
        by_cores = cores // (threads or CORES_EACH)
        by_memory = int(memory * MEMORY_SHARE) // max(need, 1)
        jobs = max(min(by_cores, by_memory), 1)
    return [Slot("cpu", threads or max(1, cores // jobs))] * jobs


def gpu_slots(devices: list[str], jobs: int, per_gpu: int, threads: int) -> list[Slot]:
    """One slot per GPU, or several; with `jobs` that many in all, dealt out in turns. `per_gpu` 0: up to four."""
    count = jobs or len(devices) * (per_gpu or MOST_PER_GPU)
    return [Slot(devices[i % len(devices)], threads) for i in range(count)]
