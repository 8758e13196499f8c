"""A batch script that makes a whole run on one node of a Slurm cluster. Pure text."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from splatpipe.errors import ConfigError
from splatpipe.executors.settings import ExecutorSettings

SPARE_S = 90  # beside the children's own grace: Slurm may be a minute late, and the ledger is closed


@dataclass(frozen=True)
class NodeShare:
    """What the job asks for, beyond the settings."""

    gpus: int = 1
    chain: int = 1  # jobs in a row


def sbatch_script(
    command: Sequence[str], name: str, settings: ExecutorSettings, share: NodeShare, grace_s: float
) -> str:
    """`command` under sbatch, its log where sbatch is called. Raises ConfigError for values that no directive can hold.

    SIGTERM comes `grace_s` and a margin before the time limit, to the batch process alone (B:), which exec makes
    Python itself; a job that is preempted or loses its node is put back in the queue and goes on from its checkpoints.
    """
    cpus = settings.slurm_cpus * max(share.gpus, 1)
    options = {
        "job-name": f"splatpipe-{name}",
        "nodes": 1,
        "ntasks": 1,
        "cpus-per-task": cpus,
        "gres": f"{settings.slurm_gpu}:{share.gpus}" if share.gpus and settings.slurm_gpu else None,
        "mem": f"{settings.slurm_memory_gb * max(share.gpus, 1)}G" if settings.slurm_memory_gb else None,
        "partition": settings.slurm_partition,
        "account": settings.slurm_account,
        "time": clock(settings.slurm_hours),
        "signal": f"B:TERM@{round(grace_s) + SPARE_S}",
        "output": "%x-%j.log",
        "open-mode": "append",
        "array": f"1-{share.chain}%1" if share.chain > 1 else None,
    }
    directives = [f"#SBATCH --{name}={_value(name, value)}" for name, value in options.items() if value is not None]
    lines = ["#!/bin/bash", *directives, "#SBATCH --requeue", "set -eu", "export PYTHONUNBUFFERED=1"]
    return "\n".join([*lines, f"exec {shlex.join(command)}"]) + "\n"


def clock(hours: float) -> str:
    """Slurm's D-HH:MM:SS."""
    seconds = max(round(hours * 3600), 60)
    days, rest = divmod(seconds, 86400)
    return f"{days}-{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"


def _value(name: str, value: object) -> str:
    text = str(value)
    if any(ord(character) < 32 or character in "\"'\\" for character in text):
        raise ConfigError(f"{name}: {text!r} cannot stand in a batch script; choose a name without quotes or line ends")
    return f'"{text}"' if " " in text or "#" in text else text
