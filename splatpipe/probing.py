"""Short trainings before a patch's first attempt, where nobody knows its first rung: run, recorded, decided on."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace

from splatpipe.config import Config
from splatpipe.crew import Crew
from splatpipe.entries import PatchRecord, ProbeRecord, probe_key
from splatpipe.executors.base import Slot
from splatpipe.files import read_json
from splatpipe.layout import RunLayout
from splatpipe.ledger import Ledger
from splatpipe.memory import median_extent
from splatpipe.planning import PlannedPatch
from splatpipe.policy.history import ALIKE, Learned, likeness
from splatpipe.policy.probe import Choice, Probed, decide, doubts, next_probe
from splatpipe.progress import RunProgress
from splatpipe.records import AttemptRecord, write_record
from splatpipe.trainers.base import Attempt, TrainRequest
from splatpipe.trainers.supervise import end_orphan


@dataclass(frozen=True)
class Probe:
    """One short training that is to be made."""

    request: TrainRequest


class Prober:
    """Decides first rungs by trying them for a few hundred steps, at reduced image size, under the same supervisor."""

    def __init__(
        self,
        layout: RunLayout,
        ledger: Ledger,
        config: Config,
        crew: Crew,
        progress: RunProgress,
    ) -> None:
        self._layout, self._ledger, self._crew = layout, ledger, crew
        self._progress = progress
        self._config, self._settings = config, config.probe

    def first_rung(self, planned: PlannedPatch, slot: Slot) -> Learned | Probe | None:
        """The rung that probes decided on, and why, or the probe that is to be made next; None where none is needed."""
        why = self._reasons(planned)
        if not why:
            return None
        alike = self._of_a_similar_patch(planned)
        if alike is not None:
            return alike
        probed = self._probed(planned, slot)
        if isinstance(probed, Probe):
            if probed.request.attempt == 1:
                steps = probed.request.settings.iterations
                self._progress.say(f"{planned.id}: is probed with {steps} steps first: {why}")
            return probed
        choice = decide(planned.rung.init_scaling, probed)
        return Learned(choice.init_scaling, f"{choice.reason} (probed because {why})")

    def _reasons(self, planned: PlannedPatch) -> str:
        if self._settings.mode == "never":
            return ""
        kinds = [finding.kind for finding in planned.preflight.findings]
        found = doubts(kinds, planned.rung)
        if self._settings.mode == "always" and not found:
            return "probe.mode is always"
        return "; ".join(found)

    def _of_a_similar_patch(self, planned: PlannedPatch) -> Learned | None:
        """What the probes of a patch of this run that is like this one said: the nearest one's."""
        records = {record.id: record for record in self._ledger.patches()}
        median = median_extent(list(records.values()))
        mine = likeness(planned.stats.to_json(), median, self._crew.first.name)
        if mine is None:
            return None
        found: list[tuple[float, str, Choice]] = []
        for patch_id, probes in self._ledger.probes().items():
            record = records.get(patch_id)
            theirs = likeness(record.statistics, median, self._crew.first.name) if record else None
            if patch_id == planned.id or theirs is None or mine.distance(theirs) > ALIKE:
                continue
            if choice := self._choice(record, probes, planned.rung.init_scaling):
                found.append((mine.distance(theirs), patch_id, choice))
        if not found:
            return None
        _, patch_id, choice = min(found, key=lambda one: one[:2])
        return Learned(choice.init_scaling, f"as {patch_id}, which is similar: {choice.reason}")

    def _choice(self, record: PatchRecord | None, probes: list[ProbeRecord], planned: float) -> Choice | None:
        """What these probes say of a patch that would begin at `planned`; None when none has survived."""
        same = record is not None and record.init_scaling == planned
        steps = {one.request["settings"]["iterations"] for one in probes}
        probed = [_told(one) for one in probes]
        if not same or steps != {self._settings.steps} or all(one.failure is not None for one in probed):
            return None
        return decide(planned, probed)

    def ended(self, probe: Probe, attempt: Attempt) -> None:
        """Put a probe on record; one whose machine was lost is made again."""
        if attempt.health.get("ended_by") == "lost":
            self._progress.say(f"{attempt.request.patch_id}: {attempt.line}; it is probed again elsewhere")
            return
        files = probe.request.files
        shutil.rmtree(files.checkpoints, ignore_errors=True)
        files.splat.unlink(missing_ok=True)  # nobody needs it; log and events stay as evidence
        write_record(AttemptRecord(replace(attempt, splat=None)))
        self._ledger.put_probe(ProbeRecord.of(attempt))

    def _probed(self, planned: PlannedPatch, slot: Slot) -> list[Probed] | Probe:
        """What rung after rung said until one survived; or the first that is not on record yet."""
        known = {(one.init_scaling, one.key): one for one in self._ledger.probes().get(planned.id, [])}
        records: list[ProbeRecord] = []
        for number in range(1, self._settings.rungs + 1):
            told = [_told(one) for one in records]
            rung = next_probe(planned.rung.init_scaling, told, self._config.init_scaling.rungs)
            if rung is None:
                break
            request = self._request(planned.at(rung), number, slot)
            record = known.get((rung, probe_key(request)))
            if record is None:
                spent = sum(one.seconds for one in records)
                if self._settings.max_seconds and spent >= self._settings.max_seconds:
                    self._progress.say(f"{planned.id}: no time left to probe init_scaling {rung:g} (probe.max_seconds)")
                    break
                return self._prepared(request, self._settings.max_seconds and self._settings.max_seconds - spent)
            records.append(record)
        return [_told(one) for one in records]

    def _request(self, planned: PlannedPatch, number: int, slot: Slot) -> TrainRequest:
        """That of a first attempt, cut short; the learning rates are those of the whole training's beginning."""
        whole = planned.request(self._layout, number, self._config, self._crew.first.name)
        train, steps = whole.settings, min(self._settings.steps, whole.settings.iterations)
        widths = [width for width in (train.max_width, self._settings.max_width) if width]
        short = replace(
            train,
            iterations=steps,
            max_width=min(widths, default=0),
            means_lr_final=train.means_lr_final ** (steps / train.iterations),
        )
        return replace(
            whole,
            out=self._layout.probe(planned.id, number).root,
            settings=short,
            device=slot.device,
            threads=slot.threads,
            health=replace(whole.health, blind_stop=False),  # a camera that is left out later says nothing of the rung
        )

    def _prepared(self, request: TrainRequest, seconds: float) -> Probe:
        """The probe, with its folder cleared of what is not its own."""
        end_orphan(request.files)
        if _left_by_another(request):
            shutil.rmtree(request.out)
        limits = replace(request.limits, wall_s=min(filter(None, (request.limits.wall_s, seconds)), default=0.0))
        return Probe(replace(request, limits=limits))


def _left_by_another(request: TrainRequest) -> bool:
    """Whether the folder holds another probe, or one that nobody can read."""
    if not request.out.exists():
        return False
    try:
        return probe_key(TrainRequest.from_json(read_json(request.files.request))) != probe_key(request)
    except (OSError, ValueError, KeyError, TypeError):
        return True


def _told(record: ProbeRecord) -> Probed:
    return Probed(record.init_scaling, record.failure, record.step, record.psnr)
