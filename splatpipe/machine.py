"""Facts about the machine: cores, memory, GPUs. Imports neither torch nor anything that needs a GPU."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUP_OF_SELF = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU as the driver sees it; bytes."""

    index: int
    name: str
    memory_total: int
    memory_free: int
    driver: str


def usable_cores() -> int:
    """Cores that this process may run on, which a container or batch system may have reduced."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_limit(root: Path = CGROUP_ROOT, membership: Path = CGROUP_OF_SELF) -> int:
    """Bytes this process may use: the machine's memory, or less where a control group (container, Slurm) says so."""
    return min([psutil.virtual_memory().total, *_cgroup_limits(root, membership)])


def _cgroup_limits(root: Path, membership: Path) -> list[int]:
    """Limits of the process's control groups and all above them, version 2 (memory.max) and 1."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    limits = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
            continue
        base, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        inside = Path(path.lstrip("/"))
        for folder in (inside, *inside.parents):
            limits += _limit_in(base / folder / name)
    return limits


def _limit_in(file: Path) -> list[int]:
    try:
        text = file.read_text().strip()
    except OSError:
        return []
    return [int(text)] if text.isdigit() else []  # "max": no limit


def nvidia_gpus() -> tuple[list[Gpu], str]:
    """The GPUs, and why there are none if there are none (one sentence)."""
    try:
        import pynvml
    except ImportError:
        return [], "The driver was not asked, because nvidia-ml-py is not installed."
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return [], f"No NVIDIA driver answers ({error})."
    try:
        gpus = [_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        return [], f"The NVIDIA driver answers with an error ({error}); a GPU may have fallen off the bus."
    finally:
        pynvml.nvmlShutdown()
    return gpus, "" if gpus else "The NVIDIA driver works, but sees no GPU."


def _gpu(pynvml, index: int) -> Gpu:  # type: ignore[no-untyped-def]
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(
        index,
        str(pynvml.nvmlDeviceGetName(handle)),
        int(memory.total),
        int(memory.free),
        str(pynvml.nvmlSystemGetDriverVersion()),
    )
