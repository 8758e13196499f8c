"""Why does this patch fail? Facts first, then short trainings, then causes in order with their evidence."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from splatpipe.config import Config
from splatpipe.crew import Crew
from splatpipe.diagnosis import schedule
from splatpipe.diagnosis.causes import Case, Cause, rank
from splatpipe.diagnosis.checks import Facts, examine
from splatpipe.diagnosis.datasets import read_patch_scene
from splatpipe.diagnosis.experiments import Experiment, Laboratory, Result
from splatpipe.diagnosis.page import write_page
from splatpipe.diagnosis.profile import Profile, write_profile
from splatpipe.entries import PatchRecord
from splatpipe.errors import ConfigError, Interrupted, RunFolderError, SceneError
from splatpipe.executors.base import Slot
from splatpipe.failures.classes import FailureClass
from splatpipe.files import read_json, write_json
from splatpipe.layout import RunLayout, patch_span
from splatpipe.ledger import Ledger
from splatpipe.scene.arrays import Scene, Similarity
from splatpipe.scene.colmap import read_model
from splatpipe.trainers.base import Attempt, Trainer, TrainRequest

Say = Callable[[str], None]
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_budget(text: str) -> float:
    """Seconds of `90s`, `10m`, `1.5h` or a plain number of seconds. Raises `ConfigError`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", text)
    if match is None or float(match[1]) <= 0:
        raise ConfigError(f"--budget {text}: give a time such as 90s, 10m or 1h")
    return float(match[1]) * UNITS[match[2] or "s"]


@dataclass(frozen=True, eq=False)
class Subject:
    """The patch, what it is first trained with, and what became of it in the run."""

    record: PatchRecord
    request: TrainRequest  # of its first attempt
    history: tuple[Attempt, ...]
    rungs: tuple[float, ...]

    @property
    def died_at(self) -> int | None:
        """The latest step at which an attempt failed by itself."""
        steps = [one.last_step for one in self.history if one.failure not in (None, FailureClass.INTERRUPTED)]
        return max(steps, default=None)


@dataclass(frozen=True, eq=False)
class Bench:
    """What experiments need."""

    laboratory: Laboratory
    slots: Sequence[Slot]
    stop: threading.Event
    deadline: float
    say: Say

    @property
    def over(self) -> bool:
        return self.stop.is_set() or time.monotonic() > self.deadline

    def run(self, experiments: Sequence[Experiment], results: dict[str, Result]) -> None:
        """Add the results of `experiments`; those of earlier calls are read. What the time ends is left out."""
        waiting = []
        for one in experiments:
            known = self.laboratory.known(one)
            results.update({one.name: known} if known else {})
            waiting += [] if known else [one]

        free = SimpleQueue[Slot]()
        for slot in self.slots:
            free.put(slot)

        def work(experiment: Experiment) -> Result | None:
            slot = free.get()
            try:
                return self.laboratory.run(experiment, slot, self.stop, self.deadline)
            finally:
                free.put(slot)

        with ThreadPoolExecutor(len(self.slots)) as pool:
            for done in as_completed([pool.submit(work, one) for one in waiting]):
                result = done.result()
                if result is not None:
                    results[result.name] = result
                    self.say(f"{result.name}: {tell(result)}")
        for one in experiments:  # in the order of asking, not of ending
            if one.name in results:
                results[one.name] = results.pop(one.name)


def diagnose(
    layout: RunLayout,
    patch_id: str,
    against: str | None,
    *,
    config: Config,
    crew: Crew,
    slots: Sequence[Slot],
    budget_s: float,
    stop: threading.Event,
    profile_folders: Sequence[Path],
    say: Say,
) -> dict[str, Any]:
    """The report as data; also written as report.json and as a page below `RUN/diagnosis/PATCH/`.

    Raises `RunFolderError` for no such patch, `Interrupted` when `stop` was set: the next call goes on.
    """
    deadline = time.monotonic() + budget_s
    place = layout.diagnosis(patch_id)
    subject, other_id = _subject(layout, patch_id, against, config, crew.info.name)
    with _locked(place.lock):
        trainer = crew.named(subject.request.trainer)
        facts, scene, problem = _facts(subject)
        results: dict[str, Result] = {}
        if scene is not None and facts is not None:
            base = schedule.short(replace(subject.request, device=slots[0].device), subject.died_at)
            other = read_patch_scene(layout.patch(other_id)) if other_id else None
            bench = Bench(_laboratory(layout, base, trainer, config, scene, other_id), slots, stop, deadline, say)
            say(f"{patch_id}: experiments of {base.settings.iterations} steps, against {other_id or 'no other patch'}")
            _experiments(bench, facts, scene, base, other, subject.rungs, results)
        if stop.is_set():
            raise Interrupted(f"stopped; continue with: splatpipe diagnose {layout.root} {patch_id}")
        report = _report(layout, subject, other_id, facts, problem, results, profile_folders)
        report["unfinished"] = scene is not None and time.monotonic() > deadline
        write_json(place.report, report)
        write_page(place.page, report)
    return report


def _experiments(
    bench: Bench,
    facts: Facts,
    scene: Scene,
    base: TrainRequest,
    other: Scene | None,
    rungs: Sequence[float],
    results: dict[str, Result],
) -> None:
    bench.run(schedule.first_round(facts, scene, base, other), results)
    second = schedule.second_round(facts, scene, base, results, rungs)
    bench.run(second, results)
    while second and not bench.over:
        further = schedule.next_halves(scene, results)
        if not further or all(one.name in results for one in further):
            break
        bench.run(further, results)


def _subject(
    layout: RunLayout, patch_id: str, against: str | None, config: Config, trainer: str
) -> tuple[Subject, str | None]:
    with Ledger(layout.ledger, read_only=True) as ledger:
        records = {one.id: one for one in ledger.patches()}
        for name in (patch_id, against):
            if name is not None and name not in records:
                known = f"it has {patch_span(sorted(records))}" if records else "it was not split yet"
                raise RunFolderError(f"{layout.root} has no patch {name}; {known}")
        record = records[patch_id]
        history = tuple(ledger.history(patch_id))
    request = history[0].request if history else _planned(layout, record, config, trainer)
    request = replace(request, dataset=layout.patch(patch_id).root, limits=config.limits, health=config.health)
    return Subject(record, request, history, config.retry.rungs), against or _working(records, record)


def _working(records: dict[str, PatchRecord], subject: PatchRecord) -> str | None:
    """The trained patch whose number of points is nearest to the subject's."""
    trained = [one for one in records.values() if one.outcome.trained and one.id != subject.id]
    return min(trained, key=lambda one: (abs(one.points - subject.points), one.id)).id if trained else None


def _planned(layout: RunLayout, record: PatchRecord, config: Config, trainer: str) -> TrainRequest:
    """What the first attempt of a patch would be that was not trained yet."""
    data = read_json(layout.patch(record.id).patch_json)
    similarity = Similarity(data["similarity"]["scale"], tuple(data["similarity"]["translation"]))
    return TrainRequest(
        patch_id=record.id,
        attempt=1,
        trainer=trainer,
        device="cpu",
        dataset=layout.patch(record.id).root,
        out=layout.attempt(record.id, 1).root,
        similarity=similarity,
        init_scaling=record.init_scaling or config.retry.rungs[0],
        settings=config.training.hyper_parameters().scaled(record.cameras),
    )


def _facts(subject: Subject) -> tuple[Facts | None, Scene | None, str]:
    request = subject.request
    try:
        broken = int((~np.isfinite(read_model(request.patch.sparse).points).all(axis=1)).sum())
        scene = read_patch_scene(request.patch)
    except SceneError as error:
        return None, None, str(error)
    facts = examine(scene, broken, request.init_scaling, subject.rungs, request.trainer)
    return facts, scene, ""


def _laboratory(
    layout: RunLayout, base: TrainRequest, trainer: Trainer, config: Config, scene: Scene, other: str | None
) -> Laboratory:
    """Results are kept by everything that decides them."""
    settings = {k: v for k, v in asdict(base.settings).items() if k not in ("checkpoint_every", "image_cache_gb")}
    facts = [settings, base.init_scaling, base.trainer, base.skip_cameras, scene.names, other]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for array in (scene.points, scene.viewmats):
        digest.update(np.ascontiguousarray(array).tobytes())
    root = layout.diagnosis(base.patch_id).experiments
    return Laboratory(root, layout, base, trainer, config.failures.catalogue(), digest.hexdigest()[:16])


def _report(
    layout: RunLayout,
    subject: Subject,
    other: str | None,
    facts: Facts | None,
    problem: str,
    results: dict[str, Result],
    profile_folders: Sequence[Path],
) -> dict[str, Any]:
    record, request = subject.record, subject.request
    past = [one.failure.value for one in subject.history if one.failure]
    skipped = len(request.skip_cameras)
    causes = rank(Case(facts, results, request.init_scaling, past, skipped, problem))
    profile = _profile(layout, request, causes, profile_folders)
    return {
        "run": layout.root.name,
        "patch": record.id,
        "against": other,
        "outcome": record.outcome,
        "conclusion": conclude(record.id, causes, results),
        "causes": [cause.to_json() for cause in causes],
        "profile": profile.to_json() if profile else None,
        "facts": facts.to_json() if facts else None,
        "problem": problem,
        "attempts": [_past(one) for one in subject.history],
        "experiments": [one.to_json() | {"told": tell(one)} for one in results.values()],
        "page": str(layout.diagnosis(record.id).page),
    }


def _past(attempt: Attempt) -> dict[str, Any]:
    facts = {"n": attempt.request.attempt, "init_scaling": attempt.request.init_scaling, "step": attempt.last_step}
    return facts | {"class": attempt.failure, "line": attempt.line}


def conclude(patch_id: str, causes: Sequence[Cause], results: dict[str, Result]) -> str:
    """One or two sentences."""
    best = causes[0]
    baseline = results.get(schedule.BASELINE)
    if best.score > 0:
        remedy = f" {best.remedy}" if best.remedy else ""
        trains = baseline is not None and baseline.trained
        lead = f"{patch_id} trains as it is, at least in short. What is unusual: " if trains else ""
        return f"{lead}{best.name} ({best.verdict}).{remedy}"
    if baseline is None:
        return f"Nothing unusual was found in {patch_id}, and there was no time to train it; give a larger --budget."
    if baseline.trained:
        return f"{patch_id} trains as it is for {baseline.step} steps, and nothing unusual was found in it."
    end = f"{patch_id} fails with {baseline.failure} at step {baseline.step}"
    return f"{end}, and no cause that was looked at explains it."


def _profile(
    layout: RunLayout, request: TrainRequest, causes: Sequence[Cause], folders: Sequence[Path]
) -> Profile | None:
    """What the first cause that stands changes in the settings, if it does."""
    best = causes[0]
    if not (best.score > 0 and best.changes):
        return None
    path = layout.diagnosis(request.patch_id).profile
    return write_profile(request, dict(best.changes), path, folders, f"{layout.root.name}_{request.patch_id}")


def tell(result: Result) -> str:
    """How an experiment ended, in a few words."""
    if not result.trained:
        return f"fails with {result.failure} at step {result.step} after {result.seconds:.0f} s"
    quality = f", fixed view {result.psnr:.1f} dB" if result.psnr is not None else ""
    return f"trains for {result.step} steps{quality}, {result.seconds:.0f} s"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout:
        raise RunFolderError(f"{path.parent} is being diagnosed by another splatpipe; wait or stop it") from None
