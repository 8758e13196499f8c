"""The executor that the settings ask for."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from splatpipe.errors import EnvironmentProblem
from splatpipe.executors.base import Executor, Slot, Work
from splatpipe.executors.gpus import GpuGate, look_at
from splatpipe.executors.local import LocalExecutor
from splatpipe.executors.settings import ExecutorSettings
from splatpipe.executors.slots import cpu_slots, gpu_slots
from splatpipe.executors.standbys import Standbys, photograph_room
from splatpipe.machine import memory_limit, usable_cores
from splatpipe.trainers.base import TrainerInfo


@dataclass(frozen=True)
class Demand:
    """What the settings say of one attempt, and what its largest is expected to take."""

    device: str  # training.device
    threads: int  # training.threads
    memory: int  # bytes of main memory, on the CPU
    grace_s: float  # limits.grace_s


def local_slots(settings: ExecutorSettings, demand: Demand, info: TrainerInfo) -> list[Slot]:
    """Where attempts run on this machine: the CPU, or its GPUs. Raises `EnvironmentProblem` without such a device."""
    wanted, cuda = demand.device, "cuda" in info.capabilities
    if wanted == "cpu" or (wanted == "auto" and not cuda):
        return cpu_slots(settings.jobs, demand.threads, usable_cores(), memory_limit(), demand.memory)
    if not cuda:
        raise EnvironmentProblem(f"training.device is {wanted}, which is not here ({info.detail}); make it auto or cpu")
    import torch

    devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if wanted not in ("auto", "cuda", *devices):
        raise EnvironmentProblem(f"training.device is {wanted}, but the GPUs here are {', '.join(devices)}")
    devices = devices if wanted in ("auto", "cuda") else [wanted]
    return gpu_slots(devices, settings.jobs, settings.per_gpu, demand.threads)


def local_executor(
    settings: ExecutorSettings, slots: list[Slot], work: Work, stop: threading.Event, memory: int
) -> LocalExecutor:
    """On these slots; what shares a GPU is admitted by measurement when `per_gpu` is 0.

    `memory`: bytes that an attempt may take, which children that wait for their turn leave free.
    """
    shared = slots[0].device.startswith("cuda") and settings.per_gpu == 0 and settings.jobs == 0
    room = partial(photograph_room, need=memory)
    standbys = Standbys(work.trainers, room) if settings.standby else None
    return LocalExecutor(slots, work, stop, GpuGate(look_at) if shared else None, standbys)


def remote_executor(
    settings: ExecutorSettings, demand: Demand, work: Work, stop: threading.Event, folder: Path
) -> Executor:
    """On other machines; `folder` is for a batch system's files. Raises `EnvironmentProblem` without such machines."""
    if settings.kind == "slurm":
        from splatpipe.executors.slurm import SlurmExecutor

        return SlurmExecutor(work, stop, settings, folder, demand.device, demand.grace_s)
    from splatpipe.executors.ray import RayExecutor

    return RayExecutor(
        work,
        stop,
        address=settings.ray_address,
        device=demand.device,
        threads=demand.threads,
        jobs=settings.jobs,
        per_gpu=settings.per_gpu,
    )
