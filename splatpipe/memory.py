"""What earlier patches have taught, from the ledgers of this run and of those beside it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from splatpipe.entries import PatchRecord, TrialRecord
from splatpipe.errors import SplatpipeError
from splatpipe.layout import RunLayout
from splatpipe.ledger import Ledger
from splatpipe.policy.history import ALIKE, Learned, Past, Trial, learned_rung, likeness
from splatpipe.runfolder import read_run

MOST_RUNS = 50  # neighbouring run folders that are read, the latest first


class Memory:
    """Outcomes of similar patches; reads ledgers once, and then what it is told to read again."""

    def __init__(self, layout: RunLayout, ledger: Ledger) -> None:
        self._layout, self._ledger = layout, ledger
        self._here = _identity(layout)
        self._records: dict[str, PatchRecord] = {}
        self._median = 1.0
        self._past: dict[str, list[Past]] | None = None  # by patch of this run; "" for the neighbouring runs
        self._failing: dict[str, list[Past]] = {}  # those of them in which something failed

    def first_rung(self, statistics: Mapping[str, Any], trainer: str, planned: float) -> Learned | None:
        """A better first rung than `planned` for a patch with these statistics, if outcomes speak for one."""
        past = self._read_once()
        mine = likeness(statistics, self._median, trainer)
        if mine is None:
            return None
        failing = (one for some in self._failing.values() for one in some)
        if not any(mine.distance(one.likeness) <= ALIKE for one in failing):
            return None  # quick, and what learned_rung would say: only failures speak against a rung
        return learned_rung(mine, planned, [one for some in past.values() for one in some])

    def learn(self, patch_id: str) -> None:
        """An attempt of this patch has ended and is on record."""
        if self._past is not None and patch_id in self._records:
            record, name = self._records[patch_id], self._layout.root.name
            trials = self._ledger.trials(patch_id)
            self._keep(patch_id, _past_of(record, trials, self._median, name, same_scene=True))

    def _read_once(self) -> dict[str, list[Past]]:
        if self._past is not None:
            return self._past
        self._past = {}
        records = self._ledger.patches()
        self._records, self._median = {record.id: record for record in records}, median_extent(records)
        self._keep("", [past for run in _neighbours(self._layout, self._here) for past in self._read(run)])
        for past in _past(records, self._ledger.trials(), self._layout.root.name, same_scene=True):
            self._keep(past.patch, [*self._past.get(past.patch, []), past])
        return self._past

    def _keep(self, key: str, past: list[Past]) -> None:
        assert self._past is not None
        self._past[key] = past
        self._failing[key] = [one for one in past if any(trial.failure for trial in one.trials)]
        if not self._failing[key]:
            del self._failing[key]

    def _read(self, run: RunLayout) -> list[Past]:
        """A run that cannot be read teaches nothing; that is no reason to stop this one."""
        theirs = _identity(run)
        try:
            with Ledger(run.ledger, read_only=True) as ledger:
                same_scene = bool(theirs & self._here)
                return _past(ledger.patches(), ledger.trials(), run.root.name, same_scene)
        except SplatpipeError:
            return []


def _neighbours(layout: RunLayout, here: frozenset[str]) -> list[RunLayout]:
    """Other run folders beside this one and below its scene."""
    folders = {layout.root.parent, *(Path(name) / "splatpipe" for name in here if Path(name).is_absolute())}
    found = {path.resolve() for folder in folders for path in folder.glob("*/ledger.sqlite")}
    found.discard(layout.ledger.resolve())
    latest = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
    return [RunLayout(path.parent) for path in latest[:MOST_RUNS]]


def _identity(layout: RunLayout) -> frozenset[str]:
    """The scene's folder and its model's fingerprint; empty when run.yml says neither."""
    try:
        run = read_run(layout)
    except (SplatpipeError, yaml.YAMLError):
        return frozenset()
    return frozenset(str(run[key]) for key in ("scene", "model") if run.get(key))


def median_extent(records: Sequence[PatchRecord]) -> float:
    """Of a run's patches, in scene units; 1 where none is known."""
    extents = [record.extent for record in records if record.extent]
    return statistics.median(extents) if extents else 1.0


def _past(records: Sequence[PatchRecord], trials: Sequence[TrialRecord], run: str, same_scene: bool) -> list[Past]:
    median = median_extent(records)
    tried: dict[str, list[TrialRecord]] = {}
    for trial in trials:
        tried.setdefault(trial.patch_id, []).append(trial)
    return [past for record in records for past in _past_of(record, tried.get(record.id, []), median, run, same_scene)]


def _past_of(
    record: PatchRecord, trials: Sequence[TrialRecord], median: float, run: str, same_scene: bool
) -> list[Past]:
    """What became of one patch with each trainer that it was tried with; `trials` are its own."""
    found = []
    for name in {trial.trainer for trial in trials}:
        alike = likeness(record.statistics, median, name)
        its = [trial for trial in trials if trial.trainer == name]
        for story in _stories(its) if alike else ():
            tried = tuple(Trial(trial.init_scaling, trial.failure) for trial in story)
            found.append(Past(run, record.id, same_scene, story[-1].ended, alike, tried))  # type: ignore[arg-type]
    return found


def _stories(trials: Sequence[TrialRecord]) -> list[list[TrialRecord]]:
    """Trials cut after each one that trained: `--retrain` begins a patch's story anew."""
    stories: list[list[TrialRecord]] = [[]]
    for trial in trials:
        stories[-1].append(trial)
        if trial.failure is None:
            stories.append([])
    return [story for story in stories if story]
