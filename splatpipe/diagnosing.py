"""From a run folder and a patch to its diagnosis: who trains the experiments, and where."""

from __future__ import annotations

import threading
from typing import Any

from splatpipe.config import Config
from splatpipe.console import say
from splatpipe.crew import Crew, choose_crew
from splatpipe.diagnosis.diagnose import diagnose, parse_budget
from splatpipe.executors.base import Slot
from splatpipe.executors.choose import Demand, local_slots
from splatpipe.machine import usable_cores
from splatpipe.options import SOURCE, RunOptions
from splatpipe.trainers.base import PreparedTrainer, Trainer, TrainerInfo


def diagnose_patch(
    options: RunOptions,
    patch_id: str,
    against: str | None,
    budget: str,
    *,
    stop: threading.Event,
    trainer: Trainer | None = None,
) -> dict[str, Any]:
    """Why a patch fails, as data; also a page in the run folder. Raises `Interrupted` when `stop` was set."""
    seconds, config = parse_budget(budget), options.config
    crew = Crew(trainer, trainer.probe()) if trainer else choose_crew(config, options.profile_folders)
    slots = _slots(config, crew.info)
    if isinstance(crew.first, PreparedTrainer):
        crew.first.prepare(slots[0].device, say, stop)
    return diagnose(
        options.layout,
        patch_id,
        against,
        config=config,
        crew=crew,
        slots=slots,
        budget_s=seconds,
        stop=stop,
        profile_folders=[folder for folder in options.profile_folders if folder != SOURCE],
        say=say,
    )


def _slots(config: Config, info: TrainerInfo) -> list[Slot]:
    """One per GPU, because what experiments take is not known; one per core on the CPU, where they are small."""
    demand = Demand(config.training.device, config.training.threads, 0, config.limits.grace_s)
    slots = local_slots(config.executor, demand, info)
    if slots[0].device != "cpu":
        return list({slot.device: slot for slot in slots}.values())
    return slots if config.executor.jobs else [Slot("cpu", 1)] * usable_cores()
