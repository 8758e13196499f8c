"""The stages of a run, in order: read, split, measure and decide, train, merge.

Somebody who reads this file knows what the program does and where each part lives.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from splatpipe.budget import disk_finding, host_bytes
from splatpipe.config import Config
from splatpipe.console import say
from splatpipe.crew import Crew, choose_crew
from splatpipe.entries import Outcome
from splatpipe.errors import ConfigError, Interrupted, RunFolderError, SplatpipeError
from splatpipe.executors.base import Executor, Work
from splatpipe.executors.choose import Demand, local_executor, local_slots, remote_executor
from splatpipe.health.sinks import check_sinks
from splatpipe.joining import Merged, evaluate, join, join_only
from splatpipe.layout import RunLayout, patch_span
from splatpipe.ledger import Ledger
from splatpipe.merge.colors import exposure_advice
from splatpipe.merge.workplace import Workplace
from splatpipe.namedfiles import check_lpips
from splatpipe.options import RunOptions, patch_ids
from splatpipe.planning import Plan, PlannedPatch, check_plan, make_plan, write_datasets, write_map
from splatpipe.policy.costs import seconds_left
from splatpipe.progress import RunProgress
from splatpipe.rebuild import open_ledger
from splatpipe.report.live import LiveReport
from splatpipe.report.write import RunReport
from splatpipe.runfolder import (
    check_place,
    command_line,
    library_versions,
    locked,
    offset_of,
    read_run,
    record_run,
)
from splatpipe.scene.checks import check_scene
from splatpipe.scene.colmap import SceneReading, read_scene
from splatpipe.scene.offset import shown
from splatpipe.scene.undistort import needs_undistortion, undistort
from splatpipe.stopping import WHILE_PLANNING, harmless
from splatpipe.trainers.base import PreparedTrainer, Trainer
from splatpipe.training import TrainingStage, evaluation_device, reopen, settle

EXIT_OK, EXIT_SOME_FAILED, EXIT_ALL_FAILED = 0, 3, 4
ALL = "all"


def run(
    options: RunOptions,
    *,
    stop: threading.Event,
    merge: bool = True,
    trainer: Trainer | None = None,
    other: Trainer | None = None,
) -> int:
    """The main job. Gives back the exit code; what is trained already is not trained again.

    `trainer` and `other`, which takes over where it fails: by default those that the settings and this machine give.
    Raises a `SplatpipeError` for what the user can cause, `Interrupted` when `stop` was set.
    """
    config = options.config
    check_sinks(config.health.sinks)
    crew = Crew(trainer, trainer.probe(), other) if trainer else choose_crew(config, options.profile_folders)
    if config.executor.kind == "local":
        local_slots(config.executor, _demand(config), crew.info)  # before anything is written
    with _prepared(options, crew, stop) as (plan, ledger), _reported(options.layout):
        _check_ids("--retrain", options.retrain - {ALL}, plan)
        _check_ids("executor.canary", [config.executor.canary] if config.executor.canary else [], plan)
        for sentence in settle(ledger, crew):
            say(sentence)
        reopen(ledger, _named(options.retrain, plan))
        waiting = [p for p in plan.patches if not _outcome(ledger, p.id).trained]
        if waiting:
            ledger.clear_merged()  # of which they are a part, or may become one
            _train(waiting, options, ledger, crew, stop)
        elif not merge:
            say(f"nothing to train: all patches of {options.layout.root} are trained; splatpipe merge joins them")
        if stop.is_set():
            raise Interrupted(f"stopped; continue with: splatpipe run {options.scene} --out {options.layout.root}")
        outcomes = _outcomes(plan, ledger)
        if merge and any(outcome.trained for outcome in outcomes.values()):
            device = evaluation_device(config, say, stop)
            _merge(plan, options, ledger, device, fresh=bool(waiting), should_stop=stop.is_set)
        _tell_failures(outcomes, ledger)
        return _exit_code(outcomes)


def merge(options: RunOptions, only: str | None = None, stop: threading.Event | None = None) -> int:
    """Merge what is trained, again; or the patches named by `only` into a file beside it. Gives the exit code.

    Raises `Interrupted` soon after `stop` was set.
    """
    check_lpips(options.config.evaluation.lpips_weights)  # before it is recorded, and before anything takes long
    device, should_stop = evaluation_device(options.config, say), (stop or threading.Event()).is_set
    with _prepared(options, stop=stop) as (plan, ledger):
        if only is not None:
            if not patch_ids(only):
                raise ConfigError("--only names no patch; write for example --only p001,p002")
            part = join_only(plan, options.layout, ledger, options.config, device, patch_ids(only), should_stop)
            for sentence in part.damage_sentences():
                say(f"warning: {sentence}")
            print(f"merged patches: {part.path} ({part.gaussians} Gaussians)")
            return EXIT_OK
        with _reported(options.layout):
            _merge(plan, options, ledger, device, fresh=True, should_stop=should_stop)
        outcomes = _outcomes(plan, ledger)
        _tell_failures(outcomes, ledger)
        return _exit_code(outcomes)


def judge(options: RunOptions, stop: threading.Event | None = None) -> dict[str, Any]:
    """How good the merged splat and each patch are on hold-out views, as data; also kept in the run folder.

    Raises `Interrupted` soon after `stop` was set.
    """
    check_lpips(options.config.evaluation.lpips_weights)
    device = evaluation_device(options.config, say)
    with _prepared(options, stop=stop) as (plan, ledger):
        return evaluate(plan, options.layout, ledger, options.config, device, (stop or threading.Event()).is_set)


def split(
    options: RunOptions, *, dry_run: bool, picture: Path | None = None, stop: threading.Event | None = None
) -> dict[str, Any]:
    """The plan of a run as data, and as a map at `picture`; written to the run folder unless `dry_run`.

    Raises `Interrupted` when `stop` was set.
    """
    if picture and picture.suffix.lower() not in ("", ".png"):
        raise ConfigError(f"--map {picture}: the map is a PNG; give a name that ends in .png")
    if dry_run:
        with harmless(stop):
            reading = _read(options)
            _tell(reading)
            plan = make_plan(reading.scene, options.config, options.profile_folders, check=partial(_check, stop))
        if picture:
            write_map(plan, picture)
        return plan.to_json()
    with _prepared(options, stop=stop) as (plan, _):
        if picture:
            write_map(plan, picture)
        return plan.to_json() | {"run": str(options.layout.root)}


def inspect(options: RunOptions, stop: threading.Event | None = None) -> dict[str, Any]:
    """Facts and findings about a scene; writes nothing. Raises `Interrupted` when `stop` was set."""
    with harmless(stop):
        reading = _read(options)
        findings = [*reading.findings, *check_scene(reading.scene)]
    _check(stop)
    scene = reading.scene
    sizes = sorted({f"{w}x{h}" for w, h in scene.sizes.tolist()})
    facts = {
        "model": str(scene.model_dir),
        "images": str(scene.image_dir),
        "cameras": scene.n_cameras,
        "points": scene.n_points,
        "observations": len(scene.track_cameras),
        "camera models": ", ".join(sorted({one.model for one in scene.intrinsics})),
        "image sizes": ", ".join(sizes[:5]) + (f" and {len(sizes) - 5} more" if len(sizes) > 5 else ""),
        "undistortion": "needed, part of the run" if needs_undistortion(scene) else "not needed",
    }
    return {"facts": facts, "findings": [finding.to_json() for finding in findings]}


def status(run_folder: Path) -> dict[str, Any]:
    """What became of every patch of a run, as data."""
    layout = RunLayout(run_folder.expanduser().resolve())
    read_run(layout)
    if not layout.ledger.is_file():
        raise RunFolderError(f"{layout.root} has no ledger yet; it was not split (splatpipe run continues it)")
    with Ledger(layout.ledger, read_only=True) as ledger:
        found = ledger.status()
    left = seconds_left(found, time.time()) if found["ended"] is None else None
    begun = Workplace(layout.finishing).progress()
    return found | {"seconds_left": left, "finishing": {"done": begun.turns, "of": begun.of} if begun else None}


# ------------------------------------------------------------------ stages


def _read(options: RunOptions) -> SceneReading:
    settings = options.config.scene
    return read_scene(
        options.scene,
        settings.images,
        settings.missing_images,
        settings.masks,
        settings.outside_links,
        offset_of(options.layout) or settings.offset,
    )


def _tell(reading: SceneReading) -> None:
    for finding in reading.findings:
        say(f"{finding.severity}: {finding.message}")


@contextlib.contextmanager
def _prepared(
    options: RunOptions, crew: Crew | None = None, stop: threading.Event | None = None
) -> Iterator[tuple[Plan, Ledger]]:
    """The run folder, locked, with its patches on disk and on record. Nothing is written for a bad scene.

    Raises `Interrupted` soon after `stop` is set, between two patches.
    """
    layout, check = options.layout, partial(_check, stop)
    with harmless(stop):
        reading = _read(options)
        check_place(options.layout, options.scene, reading.scene)
        _tell(reading)
        check()
        # Settings that cannot be used must be found before anything is written.
        cut = check_plan(reading.scene, options.config, options.profile_folders)
    with locked(layout, say):
        record_run(layout, options.scene, reading.scene, options.config, retrain=bool(options.retrain))
        scene = undistort(reading.scene, layout.scene, say, check)
        plan = make_plan(scene, options.config, options.profile_folders, cut, check)
        for finding in disk_finding(plan.disk_bytes, shutil.disk_usage(layout.root).free):
            say(f"{finding.severity}: {finding.message}")
        write_datasets(plan, layout, check)
        with open_ledger(layout, crew.first if crew else None, say) as ledger:
            run_id = ledger.start_run(
                layout.root.name,
                options.config.hash(),
                options.config.to_dict(),
                library_versions(),
                " ".join(command_line()),
            )
            with ledger.together():
                for planned in plan.patches:
                    row = planned.to_json()
                    ledger.put_patch(
                        planned.id,
                        cameras=row["cameras"],
                        points=row["points"],
                        extent=row["extent"],
                        init_scaling=row["init_scaling"],
                        statistics=row["stats"],
                        preflight=row["preflight"],
                        choice=planned.rung.to_json() | {"size": planned.size.to_json()},
                    )
            say(_summary(plan, layout))
            exit_code = 1  # unless we learn better, a bug of ours
            try:
                yield plan, ledger
                exit_code = _exit_code(_outcomes(plan, ledger))
            except SplatpipeError as error:
                exit_code = error.exit_code
                raise
            finally:
                ledger.end_run(run_id, exit_code)


@contextlib.contextmanager
def _reported(layout: RunLayout) -> Iterator[None]:
    """The run's page, kept up to date while the block runs and complete after it."""
    with LiveReport(RunReport(layout, Config().to_dict())):
        yield
    if layout.report.is_file():
        print(f"report: {layout.report}")


def _train(
    waiting: Sequence[PlannedPatch], options: RunOptions, ledger: Ledger, crew: Crew, stop: threading.Event
) -> None:
    progress = RunProgress({planned.id: planned.settings.iterations for planned in waiting}, options.batch)
    try:
        with _executor(waiting, options, crew, stop) as executor:
            TrainingStage(options.layout, ledger, options.config, crew, progress, executor, stop).run(waiting)
    finally:
        progress.close()


@contextlib.contextmanager
def _executor(
    waiting: Sequence[PlannedPatch], options: RunOptions, crew: Crew, stop: threading.Event
) -> Iterator[Executor]:
    """Where `waiting` trains, ready to begin."""
    config = options.config
    work, demand = Work(crew.all, config.failures.catalogue()), _demand(config, waiting)
    executor: Executor
    if config.executor.kind == "local":
        slots = local_slots(config.executor, demand, crew.info)
        if isinstance(crew.first, PreparedTrainer):
            crew.first.prepare(slots[0].device, say, stop)
        executor = local_executor(config.executor, slots, work, stop, demand.memory)
    else:
        executor = remote_executor(config.executor, demand, work, stop, options.layout.slurm)
    try:
        yield executor
    finally:
        executor.close()


def _demand(config: Config, waiting: Sequence[PlannedPatch] = ()) -> Demand:
    given = config.training
    memory = max((host_bytes(planned.stats, planned.settings) for planned in waiting), default=0)
    return Demand(given.device, given.threads, memory, config.limits.grace_s)


def _merge(
    plan: Plan,
    options: RunOptions,
    ledger: Ledger,
    device: str,
    *,
    fresh: bool,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    before, settings = ledger.status()["merged"], asdict(options.config.merge)
    same = before["path"] and Path(before["path"]).is_file() and before["details"].get("settings", settings) == settings
    if not fresh and same:
        say(f"nothing to train; merged splat: {before['path']}")
        return
    if options.config.merge.finish and len(plan.patches) > 1:
        say("merging, then training what lies at borders together (merge.finish)")
    watch = partial(RunProgress, batch=options.batch, what="parts of the borders")
    merged = join(plan, options.layout, ledger, options.config, device, should_stop, watch)
    _report(merged)
    if not options.config.merge.match_colors and (advice := exposure_advice(merged.colors)):
        say(advice)
    if any(plan.scene.offset):
        print(f"its positions are less than the model's by ({shown(plan.scene.offset)}): {options.layout.offset}")


def _report(merged: Merged) -> None:
    for sentence in [*merged.report.hole_sentences(), *merged.report.damage_sentences()]:
        say(f"warning: {sentence}")
    if merged.report.coverage.holes.any():
        say(f"warning: {merged.report.coverage.sentence()}")
    if merged.finish:
        say(merged.finish.sentence)
    print(f"merged splat: {merged.report.path} ({merged.report.gaussians} Gaussians)")
    if merged.psnr is None:
        print("no hold-out view: the scene is too small to keep one, or patching.holdout_every is 0")
        return
    print(f"hold-out: PSNR {merged.psnr:.2f} dB, SSIM {merged.ssim:.4f} over {len(merged.views)} views")
    typical = sorted(zip((view["psnr"] for view in merged.views), merged.pictures, strict=True))[len(merged.views) // 2]
    print(f"hold-out view beside its photograph: {typical[1]}")


# ------------------------------------------------------------------ small things


def _check(stop: threading.Event | None) -> None:
    if stop is not None and stop.is_set():
        raise Interrupted(WHILE_PLANNING)


def _outcome(ledger: Ledger, patch_id: str) -> Outcome:
    record = ledger.patch(patch_id)
    return record.outcome if record else Outcome.PENDING


def _outcomes(plan: Plan, ledger: Ledger) -> dict[str, Outcome]:
    return {planned.id: _outcome(ledger, planned.id) for planned in plan.patches}


def _exit_code(outcomes: Mapping[str, Outcome]) -> int:
    bad = sum(not outcome.trained for outcome in outcomes.values())
    if not bad:
        return EXIT_OK
    return EXIT_ALL_FAILED if bad == len(outcomes) else EXIT_SOME_FAILED


def _tell_failures(outcomes: Mapping[str, Outcome], ledger: Ledger) -> None:
    for patch_id, outcome in outcomes.items():
        record = ledger.patch(patch_id)
        if not outcome.trained:
            say(f"{patch_id}: {outcome}: {record.reason if record and record.reason else 'not trained yet'}")


def _named(retrain: frozenset[str], plan: Plan) -> frozenset[str]:
    return frozenset(p.id for p in plan.patches) if ALL in retrain else retrain


def _check_ids(where: str, named: Collection[str], plan: Plan) -> None:
    known = [p.id for p in plan.patches]
    unknown = sorted(set(named) - set(known))
    if unknown:
        raise ConfigError(f"{where}: no patch {', '.join(unknown)}; this run has {patch_span(known)}")


def _summary(plan: Plan, layout: RunLayout) -> str:
    rungs: dict[float, int] = {}
    for planned in plan.patches:
        rungs[planned.rung.init_scaling] = rungs.get(planned.rung.init_scaling, 0) + 1
    shown = ", ".join(f"{count} at {rung:g}" for rung, count in sorted(rungs.items()))
    patches = f"{len(plan.patches)} patch" + ("es" if len(plan.patches) != 1 else "")
    lines = [f"{layout.root}: {patches}, init_scaling {shown}"]
    lines += [f"{planned.id}: {planned.rung.reason}" for planned in plan.patches]
    lines += [f"{finding.severity}: {finding.message}" for finding in plan.findings if finding.severity != "note"]
    return "\n".join(lines)
