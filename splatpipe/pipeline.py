"""The stages of a run, in order: read, split, measure and decide, train, merge.

Somebody who reads this file knows what the program does and where each part lives.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from splatpipe.budget import disk_finding, host_bytes
from splatpipe.config import Config, config_from_dict, find_config, load_config
from splatpipe.crew import Crew, choose_crew
from splatpipe.entries import Outcome
from splatpipe.errors import ConfigError, EnvironmentProblem, Interrupted, RunFolderError, SplatpipeError
from splatpipe.executors.base import Executor, Work
from splatpipe.executors.choose import Demand, local_executor, local_slots, remote_executor
from splatpipe.executors.sbatch import NodeShare, sbatch_script
from splatpipe.health.sinks import check_sinks
from splatpipe.joining import Merged, evaluate, join, join_only
from splatpipe.layout import RunLayout
from splatpipe.ledger import Ledger
from splatpipe.planning import Plan, PlannedPatch, check_plan, make_plan, write_datasets, write_map
from splatpipe.policy.costs import seconds_left
from splatpipe.progress import RunProgress
from splatpipe.rebuild import open_ledger
from splatpipe.report.live import LiveReport
from splatpipe.report.write import RunReport
from splatpipe.runfolder import command_line, library_versions, locked, read_run, record_run
from splatpipe.runlock import in_use
from splatpipe.scene.checks import check_scene
from splatpipe.scene.colmap import SceneReading, read_scene
from splatpipe.scene.undistort import needs_undistortion, undistort
from splatpipe.storage.address import parse_address
from splatpipe.storage.settings import StorageSettings
from splatpipe.trainers.base import PreparedTrainer, Trainer
from splatpipe.training import TrainingStage, evaluation_device, reopen, settle

EXIT_OK, EXIT_SOME_FAILED, EXIT_ALL_FAILED = 0, 3, 4
ALL = "all"


@dataclass(frozen=True)
class RunOptions:
    """What a command was asked to do, resolved."""

    scene: Path
    layout: RunLayout
    config: Config
    profile_folders: tuple[Path, ...]  # where lfs_configs/ is looked for
    retrain: frozenset[str] = frozenset()
    batch: bool = False  # lines instead of a bar, wherever stderr goes

    @classmethod
    def resolve(
        cls,
        scene: Path,
        out: Path | None,
        config_file: Path | None,
        overrides: Sequence[str],
        images: str | None,
        retrain: str | None,
        batch: bool = False,
    ) -> RunOptions:
        """From a command line. Raises `ConfigError`."""
        scene = scene.expanduser().resolve()
        path = config_file or find_config(scene)
        config = load_config(path, [*overrides, *([f"scene.images={images}"] if images else [])])
        layout = RunLayout((out or scene / "splatpipe" / "default").expanduser().resolve())
        folders = tuple(dict.fromkeys([path.resolve().parent if path else Path.cwd(), scene, Path.cwd(), SOURCE]))
        return cls(scene, layout, config, folders, _ids(retrain), batch)

    @classmethod
    def of_run(cls, run_folder: Path, retrain: str | None, executor: str | None = None) -> RunOptions:
        """From a run folder, to be trained by another kind of `executor` if one is given.

        Raises `RunFolderError`, `ConfigError`.
        """
        layout = RunLayout(run_folder.expanduser().resolve())
        run = read_run(layout)
        if executor:
            run["settings"].setdefault("executor", {})["kind"] = executor
        config = config_from_dict(run["settings"], str(layout.run_yml))
        return cls(run["scene"], layout, config, (run["scene"], Path.cwd(), SOURCE), _ids(retrain))


@contextlib.contextmanager
def placed(
    scene: str,
    out: str | None,
    config_file: Path | None,
    overrides: Sequence[str],
    images: str | None,
    retrain: str | None,
    batch: bool = False,
) -> Iterator[RunOptions]:
    """The options of a run whose scene and run folder are paths or addresses (s3://...), with local copies of these.

    What the block has done is uploaded at its end. Raises a `SplatpipeError` for what cannot be fetched or put.
    """
    from splatpipe.storage.remote import local_places

    remote = any(parse_address(name) for name in (scene, out) if name)
    settings = load_config(config_file or find_config(None), overrides).storage if remote else StorageSettings()
    with local_places(scene, out, settings, _say) as places:
        yield RunOptions.resolve(places.scene, places.out, config_file, overrides, images, retrain, batch)


def local_run(name: str, *parts: str) -> Path:
    """The folder of a run to read; of one in a store a copy, with settings, ledger and the files that match `parts`."""
    from splatpipe.storage.remote import run_copy

    address = parse_address(name)
    return run_copy(address, load_config(find_config(None)).storage, parts, _say) if address else Path(name)


SOURCE = Path(__file__).resolve().parents[1]  # lfs_configs/ of a source checkout


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
            _say(sentence)
        reopen(ledger, _named(options.retrain, plan))
        waiting = [p for p in plan.patches if not _outcome(ledger, p.id).trained]
        if waiting:
            ledger.clear_merged()  # of which they are a part, or may become one
            _train(waiting, options, ledger, crew, stop)
        if stop.is_set():
            raise Interrupted(f"stopped; continue with: splatpipe run {options.scene} --out {options.layout.root}")
        outcomes = _outcomes(plan, ledger)
        if merge and any(outcome.trained for outcome in outcomes.values()):
            _merge(plan, options, ledger, evaluation_device(config), fresh=bool(waiting), should_stop=stop.is_set)
        _tell_failures(outcomes, ledger)
        return _exit_code(outcomes)


def slurm_script(
    scene: str, out: str | None, config_file: Path | None, overrides: Sequence[str], nodes: NodeShare
) -> str:
    """A batch script for sbatch that makes this run on one node; scene and run folder are paths or addresses."""
    here = None if parse_address(scene) else Path(scene).expanduser().resolve()
    if here and not here.is_dir():
        _say(f"warning: {here} does not exist on this machine; is it the scene that the job will find?")
    found = config_file or find_config(here)
    config = load_config(found, overrides)
    places = [_everywhere(scene), *(["--out", _everywhere(out)] if out else [])]
    settings = ["--config", str(found.resolve())] if found else []
    command = [sys.executable, "-m", "splatpipe.cli", "run", "--batch", *places, *settings, *overrides]
    name = (here or Path(scene)).name
    return sbatch_script(command, name, config.executor, nodes, config.limits.grace_s)


def _everywhere(place: str) -> str:
    """A path that holds in any working folder; addresses do anyway."""
    return place if parse_address(place) else str(Path(place).expanduser().resolve())


def merge(options: RunOptions, only: str | None = None) -> int:
    """Merge what is trained, again; or the patches named by `only` into a file beside it. Gives the exit code."""
    device = evaluation_device(options.config)
    with _prepared(options) as (plan, ledger):
        if only is not None:
            if not _ids(only):
                raise ConfigError("--only names no patch; write for example --only p001,p002")
            part = join_only(plan, options.layout, ledger, options.config, _ids(only))
            print(f"merged patches: {part.path} ({part.gaussians} Gaussians)")
            return EXIT_OK
        with _reported(options.layout):
            _merge(plan, options, ledger, device, fresh=True)
        outcomes = _outcomes(plan, ledger)
        _tell_failures(outcomes, ledger)
        return _exit_code(outcomes)


def judge(options: RunOptions) -> dict[str, Any]:
    """How good the merged splat and each patch are on hold-out views, as data; also kept in the run folder."""
    device = evaluation_device(options.config)
    with _prepared(options) as (plan, ledger):
        return evaluate(plan, options.layout, ledger, options.config, device)


def export(run_folder: Path, to: str, georeference: Path | None = None, georeferenced: bool = False) -> dict[str, Any]:
    """The merged splat of a run in other formats, as data: path, bytes, seconds and notes of each."""
    from splatpipe.exporting import export_run

    return export_run(run_folder, to, georeference, georeferenced, _say)


def report(run_folder: Path, splat: bool) -> dict[str, Any]:
    """Write the page of a run, which may be going on, and with `splat` that of its merged splat; gives both paths.

    Raises `RunFolderError` for a run without patches. That there is no Node.js for the splat is said, not raised.
    """
    from splatpipe.report.splat_page import write_splat_page

    layout, made = RunLayout(run_folder.expanduser().resolve()), None
    page = RunReport(layout, Config().to_dict())
    page.write(in_use(layout))
    if splat and layout.merged_splat.is_file():
        try:
            made = write_splat_page(layout, _say)
            page.write(in_use(layout))  # with a link to it
        except EnvironmentProblem as problem:
            _say(f"warning: no page of the merged splat: {problem}")
    return {"report": str(layout.report), "splat": str(made) if made else None}


def add_splat_page(layout: RunLayout) -> None:
    """The merged splat in 3D beside the run's page, where splat-transform is installed already.

    A run installs nothing for it, and is not the worse without: the run's page says how to get it.
    """
    from splatpipe.export.transform import find_transform
    from splatpipe.report.splat_page import is_current, write_splat_page

    if not layout.merged_splat.is_file() or is_current(layout):
        return
    try:
        find_transform(install=False)
    except EnvironmentProblem:
        return
    try:
        print(f"merged splat in 3D: {write_splat_page(layout, _say)}", flush=True)
        RunReport(layout, Config().to_dict()).write(in_use(layout))  # with a link to it
    except (SplatpipeError, OSError) as problem:  # a disk that is full must not make a finished run a failed one
        _say(f"warning: no page of the merged splat: {problem}")


def split(
    options: RunOptions, *, dry_run: bool, picture: Path | None = None, stop: threading.Event | None = None
) -> dict[str, Any]:
    """The plan of a run as data, and as a map at `picture`; written to the run folder unless `dry_run`.

    Raises `Interrupted` when `stop` was set.
    """
    if dry_run:
        plan = make_plan(_read(options).scene, options.config, options.profile_folders, check=partial(_check, stop))
        if picture:
            write_map(plan, picture)
        return plan.to_json()
    with _prepared(options, stop=stop) as (plan, _):
        if picture:
            write_map(plan, picture)
        return plan.to_json() | {"run": str(options.layout.root)}


def inspect(options: RunOptions) -> dict[str, Any]:
    """Facts and findings about a scene; writes nothing."""
    reading = _read(options)
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
    findings = [*reading.findings, *check_scene(scene)]
    return {"facts": facts, "findings": [finding.to_json() for finding in findings]}


def status(run_folder: Path) -> dict[str, Any]:
    """What became of every patch of a run, as data."""
    layout = RunLayout(run_folder.expanduser().resolve())
    read_run(layout)
    if not layout.ledger.is_file():
        raise RunFolderError(f"{layout.root} has no ledger yet; it was not split (splatpipe run continues it)")
    with Ledger(layout.ledger, read_only=True) as ledger:
        found = ledger.status()
    return found | {"seconds_left": seconds_left(found, time.time()) if found["ended"] is None else None}


# ------------------------------------------------------------------ stages


def _read(options: RunOptions) -> SceneReading:
    settings = options.config.scene
    return read_scene(options.scene, settings.images, settings.missing_images, settings.masks, settings.outside_links)


@contextlib.contextmanager
def _prepared(
    options: RunOptions, crew: Crew | None = None, stop: threading.Event | None = None
) -> Iterator[tuple[Plan, Ledger]]:
    """The run folder, locked, with its patches on disk and on record. Nothing is written for a bad scene.

    Raises `Interrupted` soon after `stop` is set, between two patches.
    """
    layout, check = options.layout, partial(_check, stop)
    reading = _read(options)
    for finding in reading.findings:
        _say(f"{finding.severity}: {finding.message}")
    check()
    # Settings that cannot be used must be found before anything is written.
    cut = check_plan(reading.scene, options.config, options.profile_folders)
    with locked(layout, _say):
        record_run(layout, options.scene, reading.scene, options.config, retrain=bool(options.retrain))
        scene = undistort(reading.scene, layout.scene, _say, check)
        plan = make_plan(scene, options.config, options.profile_folders, cut, check)
        for finding in disk_finding(plan.disk_bytes, shutil.disk_usage(layout.root).free):
            _say(f"{finding.severity}: {finding.message}")
        write_datasets(plan, layout, check)
        with open_ledger(layout, crew.first if crew else None, _say) as ledger:
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
            _say(_summary(plan, layout))
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
            crew.first.prepare(slots[0].device, _say, stop)
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
    before = ledger.status()["merged"]
    if not fresh and before["path"] and Path(before["path"]).is_file():
        _say(f"nothing to train; merged splat: {before['path']}")
        return
    if options.config.merge.finish and len(plan.patches) > 1:
        _say("merging, then training what lies at borders together (merge.finish)")
    merged = join(plan, options.layout, ledger, options.config, device, should_stop)
    _report(merged)


def _report(merged: Merged) -> None:
    for sentence in merged.report.hole_sentences():
        _say(f"warning: {sentence}")
    if merged.report.coverage.holes.any():
        _say(f"warning: {merged.report.coverage.sentence()}")
    if merged.finish:
        _say(merged.finish.sentence)
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
        raise Interrupted("stopped while patches were planned; run again to continue")


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
            _say(f"{patch_id}: {outcome}: {record.reason if record and record.reason else 'not trained yet'}")


def _ids(retrain: str | None) -> frozenset[str]:
    return frozenset(part.strip() for part in (retrain or "").split(",") if part.strip())


def _named(retrain: frozenset[str], plan: Plan) -> frozenset[str]:
    return frozenset(p.id for p in plan.patches) if ALL in retrain else retrain


def _check_ids(where: str, named: Collection[str], plan: Plan) -> None:
    known = [p.id for p in plan.patches]
    unknown = sorted(set(named) - set(known))
    if unknown:
        raise ConfigError(f"{where}: no patch {', '.join(unknown)}; this run has {known[0]} to {known[-1]}")


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


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
