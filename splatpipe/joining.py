"""From trained patches to one splat, its hold-out quality, and pictures of it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from splatpipe import __version__
from splatpipe.config import Config
from splatpipe.console import say
from splatpipe.errors import ConfigError, EnvironmentProblem, Interrupted, RunFolderError, SceneError
from splatpipe.files import write_json
from splatpipe.judging import Judge, summary, views_of
from splatpipe.layout import RunLayout, patch_span
from splatpipe.ledger import Ledger
from splatpipe.machine import memory_limit
from splatpipe.merge.clean import Cleaning
from splatpipe.merge.colors import ColorDifference, ColorFit, fit_colors
from splatpipe.merge.join import Borders, MergePart, MergeReport, merge_splats
from splatpipe.patches.patch import Patch
from splatpipe.patches.visibility import visibility
from splatpipe.planning import Plan
from splatpipe.policy.vram import gaussians_within
from splatpipe.progress import Counter
from splatpipe.records import is_as_recorded
from splatpipe.report.pictures import save_pair
from splatpipe.scene.offset import NONE
from splatpipe.splatting.ply import SplatFileError, offset_comments, read_header
from splatpipe.training import trained_file

if TYPE_CHECKING:
    from splatpipe.merge.finish import Finish
    from splatpipe.merge.parts import Watch
    from splatpipe.splatting.views import Views

HELD_ANYWAY = 1_000_000  # Gaussians, about 1.2 GB: what memory is thought to allow is an estimate


@dataclass(frozen=True)
class Merged:
    """The merged splat and how good it is. `psnr`, `ssim` None when the scene has no hold-out view."""

    report: MergeReport
    psnr: float | None
    ssim: float | None
    views: tuple[dict[str, Any], ...]
    pictures: tuple[Path, ...]
    finish: Finish | None  # of the borders; None where it was not asked for, or there is none
    colors: tuple[ColorDifference, ...]  # of neighbours, before anything was evened out


def join(
    plan: Plan,
    layout: RunLayout,
    ledger: Ledger,
    config: Config,
    device: str,
    should_stop: Callable[[], bool] = lambda: False,
    watch: Watch | None = None,
) -> Merged:
    """Merge every trained patch of the run, finish the borders, evaluate over all hold-out views, and record it.

    `watch` is told how borders are trained where that goes on part by part.
    Raises `RunFolderError` when no patch is trained or a trained one has lost its splat, `EnvironmentProblem` when
    the disk is full, `Interrupted`.
    """
    check = partial(_check, should_stop, f"stopped while patches were merged; splatpipe merge {layout.root} does it")
    splats = trained_parts(plan, ledger)
    if not splats:
        raise RunFolderError(f"{layout.root}: no patch is trained, so there is nothing to merge")
    fits, colors = _compare(plan, splats, config, device, check)
    patches = [planned.patch for planned in plan.patches]
    report = _merge(plan, splats, patches, layout.merged_splat, config, fits, check)
    ledger.clear_merged()  # what it says is of another file now
    _tell_offset(plan, layout)
    report.coverage.draw(layout.coverage_map, patches, report.holes)
    finished = None
    if config.merge.finish and len(splats) > 1:
        finished = _finish(plan, layout, report, config, device, should_stop, watch)
    else:
        shutil.rmtree(layout.finishing, ignore_errors=True)  # what was stopped, and is not wanted any more
    judged, pictures = _evaluate(plan, layout, config, report.path, device, check)
    psnr, ssim, views = judged["psnr"], judged["ssim"], tuple(judged["views"])
    details = report.to_json() | {"views": views, "pictures": [str(path) for path in pictures]}
    details["finish"] = finished.to_json() if finished else None
    details["colors"] = [asdict(one) for one in colors]
    details["settings"] = asdict(config.merge)
    ledger.set_merged(report.path, report.gaussians, psnr, ssim, details)
    write_json(layout.evaluation, judged)
    return Merged(report, psnr, ssim, views, pictures, finished, colors)


def join_only(
    plan: Plan,
    layout: RunLayout,
    ledger: Ledger,
    config: Config,
    device: str,
    only: frozenset[str],
    should_stop: Callable[[], bool] = lambda: False,
) -> MergeReport:
    """Merge the cores of some patches into a file of their own; the run's merged splat stays as it is.

    Raises `ConfigError` for a patch that the run has not, `RunFolderError` for one that is not trained.
    """
    known = [planned.id for planned in plan.patches]
    unknown = sorted(only - set(known))
    if unknown:
        raise ConfigError(f"--only: no patch {', '.join(unknown)}; this run has {patch_span(known)}")
    splats = trained_parts(plan, ledger, only)
    untrained = sorted(only - set(splats))
    if untrained:
        raise RunFolderError(f"{layout.root}: {', '.join(untrained)} is not trained, so it cannot be merged")
    chosen = [planned.patch for planned in plan.patches if planned.id in only]
    check = partial(_check, should_stop, f"stopped while patches were merged into {layout.merged_part(sorted(only))}")
    fits: dict[str, ColorFit] = {}
    if config.merge.match_colors:
        fits, _ = _compare(plan, trained_parts(plan, ledger), config, device, check)
    report = _merge(plan, splats, chosen, layout.merged_part(sorted(only)), config, fits, check)
    _tell_offset(plan, layout)
    return report


def trained_parts(plan: Plan, ledger: Ledger, only: frozenset[str] | None = None) -> dict[str, Path]:
    """The splat of every trained patch (of `only`), in scene coordinates.

    One that was changed after its training, by hand perhaps, is taken as it is, and named on stderr.
    Raises `RunFolderError` for a trained patch whose splat is gone, or is none any more.
    """
    splats = {}
    for planned in plan.patches:
        path = trained_file(ledger, planned.id) if only is None or planned.id in only else None
        if path is not None and _is_usable(path, planned.id, ledger):
            splats[planned.id] = path
    return splats


def _is_usable(path: Path, patch_id: str, ledger: Ledger) -> bool:
    try:
        if not read_header(path).count:
            raise SplatFileError(f"{path}: it holds no Gaussian.")
    except SplatFileError as error:
        record = ledger.patch(patch_id)
        if record is None or not record.outcome.trained:
            return False  # it waits to be trained again
        again = "The next splatpipe run on this folder trains the patch on from its last checkpoint."
        raise RunFolderError(f"{patch_id} was trained, but its splat cannot be used: {error} {again}") from error
    if not is_as_recorded(path):
        say(
            f"warning: {patch_id}: {path} was changed after its training, and is taken as it is; keep a copy, because "
            "the next splatpipe run on this folder takes it for damaged and trains over it"
        )
    return True


def evaluate(
    plan: Plan,
    layout: RunLayout,
    ledger: Ledger,
    config: Config,
    device: str,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Judge the merged splat, every patch and the borders between them; recorded in `layout.evaluation`.

    Raises `RunFolderError` when nothing is merged yet or the scene has no hold-out view, `Interrupted`.
    """
    if not layout.merged_splat.is_file():
        raise RunFolderError(f"{layout.root}: nothing is merged yet; splatpipe merge {layout.root} does it")
    if not len(plan.split.holdout):
        raise RunFolderError(f"{layout.root}: no hold-out view: too few images, or patching.holdout_every is 0")
    check = partial(_check, should_stop, f"stopped while {layout.root} was judged; what was on record stays")
    parts, judge = trained_parts(plan, ledger), Judge(plan, config, device)
    with _counted("hold-out views", judge.renders(parts), check) as tick:
        judged = judge.judge(layout.merged_splat, parts, tick)
    write_json(layout.evaluation, judged)
    return judged


def _check(should_stop: Callable[[], bool], sentence: str) -> None:
    if should_stop():
        raise Interrupted(sentence)


@contextlib.contextmanager
def _counted(what: str, renders: int, check: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """A function to call after each view: shows how far it is, and raises what `check` does."""
    counter = Counter(what, "render", renders)

    def tick() -> None:
        counter.step()
        check()

    try:
        yield tick
    finally:
        counter.close()


def _compare(
    plan: Plan, splats: dict[str, Path], config: Config, device: str, check: Callable[[], None]
) -> tuple[dict[str, ColorFit], tuple[ColorDifference, ...]]:
    """The fits that even out how neighbours render what they share, and how they differ.

    Where there is no memory to look, a merge that does not need the fits goes on without.
    """
    from splatpipe.merge.exposure import GLANCE, VIEWS, compare, looks, renders

    scene, threads = plan.scene, config.training.threads
    patches = [planned.patch for planned in plan.patches if planned.id in splats]
    views = VIEWS if config.merge.match_colors else GLANCE
    chosen = looks(patches, visibility(scene), len(scene.points), views)
    try:
        with _counted("views of two patches", renders(chosen), check) as tick:
            return fit_colors(compare(chosen, splats, views_of(plan), scene.points, device, threads, tick))
    except (EnvironmentProblem, MemoryError) as error:
        if config.merge.match_colors:
            raise
        say(f"warning: exposure of patches is not compared: {str(error) or 'there is not enough memory'}")
        return {}, ()


def _merge(
    plan: Plan,
    splats: dict[str, Path],
    patches: list[Patch],
    out: Path,
    config: Config,
    fits: dict[str, ColorFit],
    check: Callable[[], None],
) -> MergeReport:
    return merge_splats(
        [MergePart(patch_id, path) for patch_id, path in splats.items()],
        out,
        patches,
        plan.split.frame,
        _cleaning(plan, config),
        comments=(
            f"splatpipe {__version__}",
            f"{len(splats)} of {len(plan.patches)} patches",
            *offset_comments(plan.scene.offset),
        ),
        borders=Borders.of(config.merge),
        fits=fits if config.merge.match_colors else {},
        check=check,
    )


def _tell_offset(plan: Plan, layout: RunLayout) -> None:
    """Write what is to be added to the merged positions, if anything is."""
    if plan.scene.offset != NONE:
        meaning = "position in the COLMAP model = position in the splats of this folder + offset"
        write_json(layout.offset, {"offset": list(plan.scene.offset), "meaning": meaning})


def _cleaning(plan: Plan, config: Config) -> Cleaning:
    low, high = np.quantile(plan.scene.points, (0.01, 0.99), axis=0)
    return Cleaning(config.merge, (low + high) / 2, float((high - low).max()))


def _finish(
    plan: Plan,
    layout: RunLayout,
    report: MergeReport,
    config: Config,
    device: str,
    should_stop: Callable[[], bool],
    watch: Watch | None,
) -> Finish:
    """Hold-out views take no part."""
    from splatpipe.merge import evaluate as limits
    from splatpipe.merge.finish import Finish, finish
    from splatpipe.splatting.loop import Stopped

    training, there = config.training, {part.patch_id for part in report.parts}
    used = np.setdiff1d(np.arange(plan.scene.n_cameras), plan.split.holdout)
    views = views_of(plan).take(used).resized(training.downscale, training.max_width)
    try:
        return finish(
            report.path,
            views,
            plan.scene.points,
            [planned.patch for planned in plan.patches if planned.id in there],
            plan.split.frame,
            plan.patches[0].settings,
            visits=config.merge.finish,
            work=layout.finishing,
            device=device,
            threads=training.threads,
            should_stop=should_stop,
            most=_at_once(views, device, limits.HELD_AT_ONCE),
            watch=watch,
        )
    except SceneError as error:
        return Finish(False, f"borders are not trained together: {error}")
    except Stopped as stopped:
        goes_on = " and goes on with them" if layout.finishing.exists() else ""
        raise Interrupted(
            f"stopped while borders were trained together; the next splatpipe run merges again{goes_on}"
        ) from stopped


def _at_once(views: Views, device: str, most: int) -> int:
    """How many Gaussians are trained at once: up to `most`, as many as there is memory for."""
    import torch

    there = torch.cuda.mem_get_info(device)[1] if device != "cpu" else memory_limit()
    return min(most, max(gaussians_within(there, int(views.sizes.prod(axis=1).max())), HELD_ANYWAY))


def _evaluate(
    plan: Plan, layout: RunLayout, config: Config, splat: Path, device: str, check: Callable[[], None]
) -> tuple[dict[str, Any], tuple[Path, ...]]:
    """PSNR, SSIM and views of the merged splat (None and empty without a hold-out view), and pictures of them."""
    if not len(plan.split.holdout):
        return {"psnr": None, "ssim": None, "views": ()}, ()
    from splatpipe.splatting.metrics import Picture, ViewMetrics, side_by_side

    pictures: list[Path] = []

    with _counted("hold-out views", len(plan.split.holdout), check) as tick:

        def draw(metrics: ViewMetrics, render: Picture, photograph: Picture) -> None:
            save_pair(layout, len(pictures), render, photograph)
            path = layout.holdout_picture(metrics.name)
            side_by_side(render, photograph, path, (f"render, {metrics.psnr:.2f} dB", f"photograph {metrics.name}"))
            pictures.append(path)
            tick()

        judged = summary(Judge(plan, config, device).evaluate(splat, on_view=draw))
    return {name: judged[name] for name in ("psnr", "ssim", "views")}, tuple(pictures)
