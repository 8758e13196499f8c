"""Every patch to its outcome: attempts, remedies, and the record of both."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from splatpipe.budget import predicted
from splatpipe.config import Config
from splatpipe.crew import Crew
from splatpipe.entries import Outcome
from splatpipe.errors import EnvironmentProblem, SplatpipeError
from splatpipe.executors.base import Executor, Need, Slot
from splatpipe.executors.scheduler import Rank, Scheduler, Start
from splatpipe.executors.slurm import end_recorded_job
from splatpipe.failures.classes import FailureClass
from splatpipe.layout import RunLayout
from splatpipe.ledger import Ledger
from splatpipe.memory import Memory
from splatpipe.planning import PlannedPatch
from splatpipe.policy.costs import CostModel, samples_of
from splatpipe.policy.history import Learned
from splatpipe.policy.ladder import Resources, next_request
from splatpipe.probing import Probe, Prober
from splatpipe.progress import RunProgress
from splatpipe.records import is_as_recorded
from splatpipe.trainers.base import Attempt, TrainRequest
from splatpipe.trainers.gsplat_mcmc import GsplatTrainer
from splatpipe.trainers.output import check_splat
from splatpipe.trainers.supervise import end_orphan, recover

UNDECIDED = (Outcome.PENDING, Outcome.RUNNING, Outcome.INTERRUPTED)


@dataclass(frozen=True)
class PatchResult:
    """How a patch came out of the training stage, and the sentence that says why."""

    patch_id: str
    outcome: Outcome
    reason: str | None
    stop_run: bool = False


def evaluation_device(config: Config, say: Callable[[str], None], stop: threading.Event | None = None) -> str:
    """Where this process renders splats for evaluation: on a GPU where `training.device` allows it and gsplat can.

    May take minutes, when gsplat compiles for the first time; `say` is told, and why it is the CPU where gsplat fails.
    """
    wanted, gsplat = config.training.device, GsplatTrainer()
    if wanted == "cpu" or "cuda" not in gsplat.probe().capabilities:
        return "cpu"
    device = wanted if ":" in wanted else "cuda:0"
    try:
        gsplat.prepare_here(device, say, stop or threading.Event())
    except EnvironmentProblem as problem:
        say(f"splats are rendered on the CPU, because {problem}")
        return "cpu"
    return device


class TrainingStage:
    """Trains the patches of one run that are not trained yet."""

    def __init__(
        self,
        layout: RunLayout,
        ledger: Ledger,
        config: Config,
        crew: Crew,
        progress: RunProgress,
        executor: Executor,
        stop: threading.Event,
    ) -> None:
        self.layout, self.ledger, self.config, self.crew = layout, ledger, config, crew
        self.progress, self.executor, self.stop = progress, executor, stop
        self.samples = samples_of(ledger.status())
        self.costs = CostModel(self.samples)
        self.retry, self.catalogue = config.retry, config.failures.catalogue()
        self.memory = Memory(layout, ledger) if config.retry.history else None
        self.prober = Prober(layout, ledger, config, crew, progress)
        self._probes: dict[str, Probe] = {}  # patch -> the probe that it is at

    def run(self, patches: Sequence[PlannedPatch]) -> dict[str, PatchResult]:
        """Results of the patches that were begun. Raises what a bug of ours raised, after the others are done."""
        scheduler, canary = Scheduler[PlannedPatch](self.executor, self.stop), self._canary(patches)
        for planned in patches:
            scheduler.add(planned, Rank.CANARY if planned is canary else Rank.NEW, *self._weight(planned))
        self.progress.weigh({planned.id: self._cost(planned) for planned in patches})
        begun: dict[str, PlannedPatch] = {}
        results: dict[str, PatchResult] = {}
        bugs: list[BaseException] = []

        def begin(planned: PlannedPatch, slot: Slot) -> Start | None:
            begun[planned.id] = planned
            started = self._begin(planned, slot)
            if isinstance(started, Start):
                return started
            results[planned.id] = started
            if started.stop_run or planned is canary:
                scheduler.halt()
            if planned is canary:
                self.progress.say(f"{planned.id} is the canary (executor.canary): no other patch is begun")
            return None

        preview = self._preview if self.config.executor.standby else None
        for finished in scheduler.run(begin, preview):
            planned = finished.job
            if finished.attempt is None:
                assert finished.error is not None
                bugs.append(finished.error)
                if planned is canary:
                    scheduler.halt()
                ours = "" if isinstance(finished.error, SplatpipeError) else "splatpipe itself failed: "
                self.ledger.set_outcome(planned.id, Outcome.FAILED, f"{ours}{finished.error}")
                continue
            result = self._end(finished.attempt)
            if result is None:
                rank = Rank.CANARY if planned is canary else Rank.RETRY
                scheduler.add(planned, rank, *self._weight(planned))
                continue
            results[planned.id] = result
            if self._learn(planned, finished.attempt):
                scheduler.revalue(self._cost)
                self.progress.weigh({planned.id: self._cost(planned) for planned in patches})
        for patch_id in begun.keys() - results.keys() if self.stop.is_set() else ():
            record = self.ledger.patch(patch_id)
            if record is None or record.outcome is not Outcome.FAILED:
                results[patch_id] = self._record(patch_id, Outcome.INTERRUPTED, "stopped; run again to continue")
        if bugs:
            raise bugs[0]
        return results

    def _begin(self, planned: PlannedPatch, slot: Slot) -> Start | PatchResult:
        """The next attempt of a patch, on record; or how the patch came out, when no remedy is left."""
        history = self.ledger.history(planned.id)
        learned = None if history or planned.fixed else self._first_rung(planned, slot)
        if isinstance(learned, Probe):
            self._probes[planned.id] = learned
            return Start(learned.request, lambda event: None)
        first = self._first_request(planned, learned)
        first = replace(first, device=slot.device, threads=slot.threads)
        takeover = self.crew.takeover(planned.stats.relative_size)
        resources = Resources(takeover, self.crew.ignored, planned.visible)
        decision = next_request(first, history, self.retry, resources)
        if learned:
            decision = replace(decision, reason=learned.reason)
            self.progress.say(f"{planned.id}: {learned.reason}")
        if decision.request is None:
            return self._record(planned.id, Outcome.FAILED, decision.reason, stop_run=decision.stop_run)
        self.crew.named(decision.request.trainer)  # an attempt to go on with may need one that is gone
        if decision.remedy:
            self.progress.say(f"{planned.id}: {decision.reason}")
        self.ledger.start_attempt(decision.request, decision.remedy, decision.reason)
        return Start(decision.request, lambda event: self.progress.event(planned.id, event))

    def _preview(self, planned: PlannedPatch) -> TrainRequest:
        """About what the patch's next attempt will be: enough to know its photographs."""
        return self._first_request(planned, None)

    def _end(self, attempt: Attempt) -> PatchResult | None:
        """Put an attempt, or a probe, on record; None when the patch needs another."""
        probe = self._probes.pop(attempt.request.patch_id, None)
        if probe is not None:
            if not self.stop.is_set() or attempt.failure is not FailureClass.INTERRUPTED:
                self.prober.ended(probe, attempt)
            return None
        with self.ledger.together():
            self.ledger.end_attempt(attempt)
            result = self._trained(attempt) if attempt.failure is None else None
        if self.memory:
            self.memory.learn(attempt.request.patch_id)
        if attempt.failure is FailureClass.INTERRUPTED and not self.stop.is_set():
            self.progress.say(f"{attempt.request.patch_id}: {attempt.line}; it goes on from its last checkpoint")
        return result

    def _canary(self, patches: Sequence[PlannedPatch]) -> PlannedPatch | None:
        """The patch that is trained before any other, unless it is trained already."""
        return next((planned for planned in patches if planned.id == self.config.executor.canary), None)

    def _weight(self, planned: PlannedPatch) -> tuple[float, Need]:
        return self._cost(planned), Need(predicted(planned.stats, planned.settings.max_cap).vram_bytes)

    def _cost(self, planned: PlannedPatch) -> float:
        return self.costs.seconds(planned.size)

    def _learn(self, planned: PlannedPatch, attempt: Attempt) -> bool:
        """Take in how long a patch took; whether the model is a new one. It is made anew ever more rarely."""
        if attempt.failure is not None:
            return False
        self.samples.append((planned.size, attempt.seconds))
        if len(self.samples) & (len(self.samples) - 1):
            return False
        self.costs = CostModel(self.samples)
        return True

    def _first_rung(self, planned: PlannedPatch, slot: Slot) -> Learned | Probe | None:
        """Another first rung than the planned one, or the same for better reasons: similar patches', else a probe's.

        What the user has fixed is not touched.
        """
        learned = None
        if self.memory:
            name, rung = self.crew.first.name, planned.rung.init_scaling
            learned = self.memory.first_rung(planned.stats.to_json(), name, rung)
        return learned or self.prober.first_rung(planned, slot)

    def _first_request(self, planned: PlannedPatch, learned: Learned | None) -> TrainRequest:
        """The request of a first attempt."""
        if learned:
            planned = planned.at(learned.init_scaling)
        number = self.ledger.next_number(planned.id)
        return planned.request(self.layout, number, self.config, self.crew.first.name)

    def _trained(self, attempt: Attempt) -> PatchResult:
        notes = [*attempt.warnings, *_health_notes(attempt)]
        outcome = Outcome.TRAINED_WITH_WARNINGS if notes else Outcome.TRAINED
        return self._record(attempt.request.patch_id, outcome, "; ".join(notes) or None, attempt)

    def _record(
        self,
        patch_id: str,
        outcome: Outcome,
        reason: str | None,
        attempt: Attempt | None = None,
        stop_run: bool = False,
    ) -> PatchResult:
        self.ledger.set_outcome(patch_id, outcome, reason, _metrics(attempt) if attempt else None)
        if outcome is not Outcome.INTERRUPTED:
            self.progress.finished(patch_id)
        if reason:
            self.progress.say(f"{patch_id}: {outcome}: {reason}")
        return PatchResult(patch_id, outcome, reason, stop_run)


def _metrics(attempt: Attempt) -> dict[str, Any]:
    names = ("psnr", "ssim", "views", "loss")
    return {name: attempt.health.get(name) for name in names} | {"gaussians": attempt.gaussians}


def _health_notes(attempt: Attempt) -> list[str]:
    """What a user should know of an attempt that succeeded."""
    blind = attempt.health.get("blind_cameras") or ()
    notes = []
    if blind:
        notes.append(f"{len(blind)} cameras came to see no Gaussian and were skipped, first {next(iter(blind))}")
    verdicts = attempt.health.get("verdicts") or ()
    return notes + [f"step {v['step']}: {v['message']}" for v in verdicts if v["severity"] != "note"]


def settle(ledger: Ledger, crew: Crew) -> list[str]:
    """Bring the ledger up to date with what a killed splatpipe left behind. Needs the run's lock.

    Children that are still running are ended; an attempt that finished whole is recorded as trained, any other
    as interrupted, to be resumed from its last checkpoint. Gives back a sentence for each.
    """
    sentences = []
    for request in ledger.unfinished():
        ended = end_orphan(request.files) or end_recorded_job(request.files)
        attempt = recover(crew.first, request)
        if attempt is not None:
            ledger.end_attempt(attempt)
            ledger.set_outcome(request.patch_id, Outcome.TRAINED, None, _metrics(attempt))
            sentences.append(f"{request.patch_id}: attempt {request.attempt} had finished before splatpipe was killed")
            continue
        orphan = "its child was still running and has been ended" if ended else "splatpipe was killed"
        ledger.mark_interrupted(request, orphan)
        sentences.append(f"{request.patch_id}: attempt {request.attempt} was cut off ({orphan})")
    for record in ledger.patches():
        history = ledger.history(record.id)
        if record.outcome in UNDECIDED and history and history[-1].failure is None:
            ledger.set_outcome(record.id, Outcome.TRAINED, None, _metrics(history[-1]))
            sentences.append(f"{record.id}: attempt {history[-1].request.attempt} had trained it")
    return sentences


def reopen(ledger: Ledger, retrain: frozenset[str]) -> None:
    """Make pending again what `--retrain` names and what had failed.

    What has lost its splat file, or has a damaged one, goes on from its last checkpoint.
    """
    for record in ledger.patches():
        if record.id in retrain or record.outcome in (Outcome.FAILED, Outcome.SKIPPED):
            ledger.retrain(record.id)
        elif record.outcome.trained and trained_splat(ledger, record.id) is None:
            ledger.lose_splat(record.id, "its splat was gone or damaged")


def trained_file(ledger: Ledger, patch_id: str) -> Path | None:
    """Where the splat of a patch was written, whatever became of it since; None when no attempt has trained it."""
    splats = [attempt.splat for attempt in ledger.history(patch_id) if attempt.failure is None and attempt.splat]
    return splats[-1] if splats else None


def trained_splat(ledger: Ledger, patch_id: str) -> Path | None:
    """The splat of a trained patch; None when the patch is not trained, or its file is gone or damaged."""
    path = trained_file(ledger, patch_id)
    try:
        if path is None or not check_splat(path):
            return None
    except (ValueError, OSError):
        return None
    return path if is_as_recorded(path) else None
