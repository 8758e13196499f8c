"""Where attempts run and in which order; the defaults are those of splat_config.yml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt

Kind = Literal["local", "ray", "slurm"]


@dataclass(frozen=True)
class ExecutorSettings:
    """`executor:`. `jobs`, `per_gpu` and `canary` hold for every kind."""

    __pydantic_config__ = {"extra": "forbid"}

    kind: Kind = "local"
    jobs: Annotated[int, Ge(0)] = 0  # attempts at once; 0: as many as GPUs, or CPU cores and memory, allow
    per_gpu: Annotated[int, Ge(0)] = 1  # attempts on one GPU; 0 (local): while its memory and measured use allow
    standby: bool = True  # local: start the next attempt's child, and decode its photographs, before a place is free
    canary: str | None = None  # a patch that is trained before any other; the others wait for its success
    ray_address: str | None = None  # of a running cluster; None: $RAY_ADDRESS, one on this machine, or a new one
    slurm_partition: str | None = None
    slurm_account: str | None = None
    slurm_hours: Annotated[float, Gt(0)] = 24.0  # time limit of one job; an attempt cut off by it is resumed
    slurm_cpus: Annotated[int, Ge(1)] = 8  # of one job
    slurm_memory_gb: Annotated[int, Ge(0)] = 0  # of one job; 0: the partition's default
    slurm_gpu: str = "gpu"  # the generic resource that one job asks for, e.g. gpu:h100; empty: no GPU
