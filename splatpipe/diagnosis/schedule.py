"""Which experiments a patch deserves, the decisive ones first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from splatpipe.diagnosis.checks import FAR, Facts
from splatpipe.diagnosis.datasets import distances, recentred, with_points, write_variant
from splatpipe.diagnosis.experiments import Build, Experiment, Result
from splatpipe.scene.arrays import Scene
from splatpipe.trainers.base import TrainRequest

SHORTEST, USUAL, LONGEST = 200, 300, 2_000  # steps of an experiment
BEYOND = 2.0  # times the step at which the patch died before
CPU_WIDTH = 400  # pixels; an experiment on the CPU need not show detail
RATES = (1.0, 0.5)  # of means_lr
BISECTIONS = 2  # halvings of the half that fails
SEES_SELDOM = 0.15  # share of cameras (trainers.md, D)
SCALE = (0.05, 100.0)  # usual scene scales

BASELINE, NO_BAD_IMAGES, NO_BLIND = "as_it_is", "without_bad_images", "without_blind_cameras"
NO_OUTLIERS, RESCALED, VISIBLE = "without_outliers", "recentred_and_rescaled", "visible_only"
MY_POINTS, MY_CAMERAS = "these_points_other_cameras", "other_points_these_cameras"


def short(request: TrainRequest, died_at: int | None) -> TrainRequest:
    """The same training, cut to what an experiment needs.

    Where a failure is known, twice as far with the schedule as it was; else the schedule is pressed together.
    """
    train = request.settings
    if died_at is not None:
        steps = int(min(max(BEYOND * died_at, SHORTEST), LONGEST, train.iterations))
        train = replace(train, iterations=steps)
    else:
        steps = min(USUAL, train.iterations)
        train = replace(
            train,
            iterations=steps,
            refine_start=steps // 5,
            refine_every=max(steps // 30, 5),
            refine_stop=round(0.9 * steps),
            sh_degree_interval=max(steps // 4, 1),
        )
    if request.device == "cpu":
        train = replace(train, max_width=min(train.max_width or CPU_WIDTH, CPU_WIDTH))
    health = replace(request.health, every=max(steps // 20, 5), stop=True, sinks=())
    return replace(request, settings=train, health=health)


def first_round(facts: Facts, scene: Scene, base: TrainRequest, against: Scene | None) -> list[Experiment]:
    """As it is, a cure for each thing that is unusual, and the swaps; these do not depend on one another."""
    chosen = [Experiment(BASELINE, "baseline", "Does it fail as it is?", lambda request: request)]
    bad = tuple(sorted({*facts.unreadable, *facts.wrong_size, *facts.bad_poses}))
    if bad:
        chosen.append(Experiment(NO_BAD_IMAGES, "cure", "Does it train without the damaged images?", _without(bad)))
    blind = tuple(name for name in facts.blind_at(base.init_scaling) if name not in base.skip_cameras)
    if blind:
        chosen.append(
            Experiment(NO_BLIND, "cure", "Does it train without the cameras that see nothing?", _without(blind))
        )
    if facts.outliers:
        build = _points(scene, distances(scene) <= FAR)
        chosen.append(Experiment(NO_OUTLIERS, "cure", "Does it train without the far points?", _same, build))
    similarity = recentred(scene)
    if abs(np.log(similarity.scale)) > np.log(2) or np.abs(similarity.translation).max() > 1:
        chosen.append(
            Experiment(
                RESCALED,
                "cure",
                "Does it train when recentred and rescaled?",
                _same,
                lambda place: write_variant(scene, place, similarity=similarity),
            )
        )
    return chosen + (_swaps(scene, against) if against is not None else [])


def second_round(
    facts: Facts, scene: Scene, base: TrainRequest, results: dict[str, Result], rungs: Sequence[float]
) -> list[Experiment]:
    """For a patch that fails and that no cure has explained away: halves of its points, then the settings."""
    baseline = results.get(BASELINE)
    if baseline is None or baseline.trained or baseline.failure in ("data_error", "config_error", "environment"):
        return []
    if any(one.kind == "cure" and one.trained for one in results.values()):
        return []
    chosen = halves(scene, np.ones(scene.n_points, bool), "")
    if baseline.failure == "mcmc_collapse" or facts.seen_share < SEES_SELDOM:
        question = "Does it train when only what a camera sees is moved?"
        chosen.append(Experiment(VISIBLE, "cure", question, _visible_only))
    return chosen + _grid(base, rungs)


def halves(scene: Scene, within: NDArray[np.bool_], path: str) -> list[Experiment]:
    """The nearer and the farther half of the points in `within`, by their distance from the middle."""
    far = distances(scene)
    middle = float(np.median(far[within]))
    nearer, farther = within & (far <= middle), within & (far > middle)
    whose = "its" if not path else f"the {path.replace('_', ', then the ')}"
    return [
        Experiment(
            f"{path}_{name}_half".lstrip("_"), "half", f"Does the {name} half of {whose} points train?", _same,
            _points(scene, mask),
        )
        for name, mask in (("nearer", nearer), ("farther", farther))
        if mask.any()
    ]  # fmt: skip


def next_halves(scene: Scene, results: dict[str, Result]) -> list[Experiment]:
    """Halves of the one half that fails while the other trains, down to `BISECTIONS` further cuts."""
    far, within, path = distances(scene), np.ones(scene.n_points, bool), ""
    for _ in range(BISECTIONS + 1):
        pair = {name: results.get(f"{path}_{name}_half".lstrip("_")) for name in ("nearer", "farther")}
        if None in pair.values():
            return halves(scene, within, path) if path else []
        failing = [name for name, one in pair.items() if one is not None and not one.trained]
        if len(failing) != 1:
            return []
        middle = float(np.median(far[within]))
        within = within & ((far <= middle) if failing[0] == "nearer" else (far > middle))
        path = f"{path}_{failing[0]}".lstrip("_")
        if within.sum() < 100:
            return []
    return []


def _grid(base: TrainRequest, rungs: Sequence[float]) -> list[Experiment]:
    """init_scaling x means_lr, the user's means_lr first."""
    return [
        Experiment(
            f"init_{rung:g}_means_lr_x{rate:g}",
            "grid",
            f"Does it train at init_scaling {rung:g} with {rate:g} times means_lr?",
            _at(rung, rate),
        )
        for rate in RATES
        for rung in sorted({base.init_scaling, *rungs})
        if (rung, rate) != (base.init_scaling, 1.0)
    ]


def _swaps(scene: Scene, other: Scene) -> list[Experiment]:
    return [
        Experiment(
            MY_POINTS, "swap", "Do its points fail with the cameras of the working patch?", _no_skips,
            lambda place: write_variant(with_points(other, scene), place),
        ),
        Experiment(
            MY_CAMERAS, "swap", "Do its cameras fail with the points of the working patch?", _same,
            lambda place: write_variant(with_points(scene, other), place),
        ),
    ]  # fmt: skip


def _points(scene: Scene, mask: NDArray[np.bool_]) -> Build:
    return lambda place: write_variant(scene, place, points=mask)


def _same(request: TrainRequest) -> TrainRequest:
    return request


def _no_skips(request: TrainRequest) -> TrainRequest:
    return replace(request, skip_cameras=())


def _without(names: tuple[str, ...]) -> Callable[[TrainRequest], TrainRequest]:
    return lambda request: replace(request, skip_cameras=tuple(sorted({*request.skip_cameras, *names})))


def _visible_only(request: TrainRequest) -> TrainRequest:
    return replace(request, settings=replace(request.settings, visible_only=True))


def _at(rung: float, rate: float) -> Callable[[TrainRequest], TrainRequest]:
    return lambda request: replace(
        request,
        init_scaling=rung,
        settings=replace(request.settings, means_lr=request.settings.means_lr * rate),
    )
