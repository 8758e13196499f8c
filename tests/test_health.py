"""Health: verdicts fire on the series that shows them and on no healthy one; watching changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_training import Events, data_of, never, scene, training  # noqa: F401  (scene is a fixture)

from splatpipe.health.sample import Sample, Series
from splatpipe.health.settings import HealthSettings
from splatpipe.health.told import ToldHealth
from splatpipe.health.verdicts import RULES, Severity, judge
from splatpipe.health.watch import HealthWatch
from splatpipe.scene.arrays import Scene, Similarity
from splatpipe.splatting.loop import TrainingData, TrainingFailure
from splatpipe.trainers.lichtfeld_log import Expected, LogReader

SETTINGS = HealthSettings()
GROUPS = ("means", "scales", "quats", "opacities", "sh0", "sh1")
RELOCATED = {
    "healthy": (0.01, 0.02, 0.02, 0.01, 0.02),
    "died of 0.1": (0.17, 0.09, 0.10, 0.11, 0.17, 0.31, 0.38, 0.41, 0.50, 0.61, 0.72, 0.82),
    "held at 0.3": (0.09, 0.05, 0.10, 0.14, 0.23, 0.34, 0.31, 0.24, 0.31, 0.24, 0.23, 0.21),
    "held at 1.0": (0.33, 0.23, 0.35, 0.39, 0.33, 0.32, 0.30, 0.27, 0.28, 0.24, 0.26, 0.24),
}  # measured: reference, cpu_backend


def sample(step: int, **changes: Any) -> Sample:
    healthy = Sample(
        step=step, loss=0.05 + 0.4 * 0.5 ** (step / 500), psnr=20.0, gaussians=1000, alive_share=0.98, seen_share=0.95,
        opacity_mean=0.3, floor_share=0.05, sigmas=(0.001, 0.01, 0.05, 0.1, 0.3), farthest=1.5, flung_share=0.001,
        gradients=dict.fromkeys(GROUPS, 0.01), quiet=dict.fromkeys(GROUPS, 0.1), updates={}, intersections=5000,
        steps_per_s=20.0, memory_bytes=1 << 30,
    )  # fmt: skip
    return replace(healthy, **changes)


def series(count: int = 15, relocated: tuple[float, ...] = RELOCATED["healthy"], **changes: Any) -> Series:
    """Healthy samples; a list in `changes` gives the values of the last samples."""
    samples = [sample(100 * (i + 1)) for i in range(count)]
    for name, values in changes.items():
        for at, value in enumerate(values, start=count - len(values)):
            samples[at] = replace(samples[at], **{name: value})
    return Series(tuple(samples), relocated)


def rules(given: Series, settings: HealthSettings = SETTINGS) -> set[str]:
    return {verdict.rule for verdict in judge(given, settings)}


ILL = {
    "death_spiral": series(relocated=RELOCATED["died of 0.1"]),
    "relocation": series(relocated=RELOCATED["held at 0.3"][:6]),
    "sudden_collapse": series(alive_share=[0.95, 0.4, 0.38]),
    "early_death": series(relocated=(), alive_share=[0.82, 0.8]),
    "faded": series(alive_share=[0.2, 0.2]),
    "explosion": series(flung_share=[0.6, 0.7]),
    "divergence": series(loss=[0.9, 1.1]),
    "faint": series(opacity_mean=[0.02]),
    "flung": series(flung_share=[0.2]),
    "wide": series(sigmas=[(0.1, 0.2, 0.5, 1.2, 3.0)]),
    "not_normalised": replace(series(farthest=[12.0, 14.0]), scene_scale=2009.0),
    "dormant": series(quiet=[{"sh1": 0.95}] * 2, gradients=[{"sh1": 1e-8}] * 2),
    "no_progress": series(count=25, loss=[0.7] * 25),
    "plateau": series(count=50, loss=[0.1] * 30),
    "slow_drift": series(count=60, loss=[0.6 - 0.005 * i for i in range(60)]),
    "unseen": series(seen_share=[0.2]),
    "scene_scale": replace(series(), scene_scale=2009.0),
    "blind": replace(series(), blind=("view_0003.jpg",), rounds=2.0),
    "blind_camera": replace(series(relocated=()), blind=("view_0003.jpg",), rounds=1.0),
}


def test_every_rule_has_a_series_that_shows_it() -> None:
    assert set(ILL) == {rule.name for rule in RULES}


@pytest.mark.parametrize("name", ILL)
def test_a_verdict_fires_on_the_series_that_shows_it(name: str) -> None:
    assert name in rules(ILL[name])


@pytest.mark.parametrize("count", [1, 2, 3, 5, 15, 30])
def test_a_healthy_training_gets_no_verdict_at_any_step(count: int) -> None:
    assert rules(series(count)) == set()


def test_a_single_bad_sample_stops_nothing() -> None:
    for bad in ({"alive_share": [0.3]}, {"flung_share": [0.9]}, {"loss": [5.0]}, {"alive_share": [0.3, 0.98]}):
        assert not [v for v in judge(series(**bad), SETTINGS) if v.severity is Severity.STOP]


@pytest.mark.parametrize("name", ["held at 0.3", "held at 1.0"])
def test_a_training_that_held_with_much_relocation_is_warned_of_but_never_stopped(name: str) -> None:
    found = [rules(series(relocated=RELOCATED[name][:n])) for n in range(len(RELOCATED[name]))]
    assert set.union(*found) == {"relocation"}


def test_a_death_spiral_is_seen_before_three_quarters_are_dead() -> None:
    shares = RELOCATED["died of 0.1"]
    noticed = next(n for n in range(len(shares)) if "death_spiral" in rules(series(relocated=shares[:n])))
    assert max(shares[:noticed]) < 0.75


def test_each_stop_names_the_class_that_has_its_remedy_and_nothing_else_does() -> None:
    assert {(r.failure is not None) == (r.severity is Severity.STOP) for r in RULES} == {True}


def watched(data: Any, folder: Path, settings: HealthSettings, **changes: Any) -> tuple[Any, Events]:
    run, events = training(data, folder, **changes)
    run.observer = HealthWatch(settings, events)
    return run, events


def test_watching_changes_no_bit_of_the_result(scene: Scene, tmp_path: Path) -> None:  # noqa: F811
    plain = training(data_of(scene), tmp_path / "a")[0].run(never)
    run, events = watched(data_of(scene), tmp_path / "b", HealthSettings(every=10))
    for name, value in run.run(never).items():
        assert torch.equal(value, plain[name]), name
    assert [event["step"] for event in events.of("health")] == list(range(10, 121, 10))
    assert not events.of("verdict")
    json.dumps(events, allow_nan=False)


def test_an_explosion_is_stopped_long_before_the_loops_own_guard_sees_it(scene: Scene, tmp_path: Path) -> None:  # noqa: F811
    bad = {"iterations": 400, "opacity_reg": 20.0, "refine_start": 350, "refine_stop": 380}
    warned, told = watched(data_of(scene), tmp_path / "a", HealthSettings(every=10, stop=False), **bad)
    with pytest.raises(TrainingFailure) as unwatched:
        warned.run(never)
    assert "explosion" in {event["class"] for event in told.of("verdict")}
    run, events = watched(data_of(scene), tmp_path / "b", HealthSettings(every=10), **bad)
    with pytest.raises(TrainingFailure) as stopped:
        run.run(never)
    assert unwatched.value.failure == stopped.value.failure == "explosion"
    assert stopped.value.step < unwatched.value.step / 2
    assert events.of("verdict")[-1]["class"] == "explosion"


def test_what_was_seen_before_an_interruption_counts_on_and_is_not_told_twice(tmp_path: Path) -> None:
    before = [{"event": "health", **sample(100 * i).to_json()} for i in range(1, 6)]
    verdict = {"event": "verdict", **judge(series(opacity_mean=[0.02]), SETTINGS)[0].to_json(), "step": 300}
    watch = HealthWatch(SETTINGS, Events(), json.loads(json.dumps([*before, verdict])), step=400)
    assert [s.step for s in watch.samples] == [100, 200, 300, 400]
    assert [v.rule for v in watch.verdicts] == ["faint"]


def test_a_collapse_is_stopped_before_anything_is_relocated(scene: Scene, tmp_path: Path) -> None:  # noqa: F811
    """An opacity rate far too high: most Gaussians die at once, and the loop's own guard looks at refinements only."""
    bad = {"iterations": 400, "opacities_lr": 2.0, "refine_start": 300, "refine_stop": 390}
    run, events = watched(data_of(scene), tmp_path, HealthSettings(every=10), **bad)
    with pytest.raises(TrainingFailure) as stopped:
        run.run(never)
    assert stopped.value.failure == "mcmc_collapse"
    assert stopped.value.step < 150
    (stop,) = [event for event in events.of("verdict") if event["severity"] == "stop"]
    assert stop["class"] == "mcmc_collapse" and stop["step"] == stopped.value.step


def with_a_blind_camera(scene: Scene) -> TrainingData:  # noqa: F811
    data = data_of(scene)
    viewmats = data.views.viewmats.copy()
    viewmats[2] = np.diag([-1.0, 1.0, -1.0, 1.0]) @ viewmats[2]
    viewmats[2, 2, 3] -= 50.0
    return replace(data, views=replace(data.views, viewmats=viewmats))


def test_a_blind_camera_ends_the_attempt_as_soon_as_all_have_had_their_turn(scene: Scene, tmp_path: Path) -> None:  # noqa: F811
    data = with_a_blind_camera(scene)
    run, events = watched(data, tmp_path, HealthSettings(every=3))
    with pytest.raises(TrainingFailure) as stopped:
        run.run(never)
    assert stopped.value.failure == "launch_config", "the class whose first remedy leaves the camera out"
    assert data.views.names[2] in str(stopped.value)
    assert len(data.views) <= stopped.value.step <= len(data.views) + 4
    assert [event["image"] for event in events.of("blind_camera")] == [data.views.names[2]]


def test_a_blind_camera_may_also_stay_and_is_only_told_of(scene: Scene, tmp_path: Path) -> None:  # noqa: F811
    data = with_a_blind_camera(scene)
    run, events = watched(data, tmp_path, HealthSettings(every=10, blind_stop=False))
    run.run(never)
    told = {event["rule"]: event for event in events.of("verdict")}
    assert data.views.names[2] in told["blind"]["message"]
    assert max(event["blind_share"] for event in events.of("health")) > 0
    assert not [event for event in told.values() if event["severity"] == "stop"]


def test_units_that_were_not_normalised_are_noticed_at_the_first_sample(
    scene: Scene,  # noqa: F811
    tmp_path: Path,
) -> None:
    data = data_of(scene)
    big = Similarity(1000.0, (0.0, 0.0, 0.0))
    views = replace(data.views, viewmats=big.apply_viewmats(data.views.viewmats))
    run, events = watched(TrainingData(views, big.apply(data.points), data.colors), tmp_path, HealthSettings(every=10))
    with pytest.raises(TrainingFailure) as stopped:
        run.run(never)
    assert stopped.value.failure == "data_error"
    assert events.of("verdict")[0]["rule"] == "scene_scale" and events.of("verdict")[0]["step"] == 10


def told_by_lichtfeld(losses: list[float], shares: list[float], settings: HealthSettings = SETTINGS) -> list[dict]:
    """What follows from a log of LichtFeld Studio: a bar every 100 steps, a relocation line after it."""
    log, health = LogReader(Expected(20, 1000, 1.0, 30_000)), ToldHealth(settings)
    lines = []
    for i, (loss, share) in enumerate(zip(losses, shares, strict=True), start=1):
        lines.append(f"Training [##] {i}% [00:10<10:00] {100 * i}/30000 | Loss: {loss:.4f} | Splats: 1000 (+)")
        lines.append(f"[12:00:00.000] [debug] mcmc.cpp:1  MCMC: Relocated {int(1000 * share)} dead Gaussians at "
                     f"iteration {100 * i}")  # fmt: skip
    return [told for line in lines for event in log.read(line) for told in health.add(event)]


def test_the_log_of_lichtfeld_gives_the_same_verdicts_as_far_as_it_tells() -> None:
    falling = [0.3 * 0.9**i + 0.05 for i in range(12)]
    spiral = told_by_lichtfeld(falling, list(RELOCATED["died of 0.1"]))
    assert [event.get("rule", event["event"]) for event in spiral] == ["relocation", "death_spiral", "error"]
    assert spiral[-1]["class"] == "mcmc_collapse" and spiral[-1]["step"] <= 1200
    rising = [*falling, 1.0, 1.1, 1.2, 1.3, 1.4]
    diverged = told_by_lichtfeld(rising, [0.01] * len(rising))
    assert [event.get("class") for event in diverged] == ["nan_divergence"] * 2
    assert told_by_lichtfeld(falling, [0.01] * 12) == []
    assert told_by_lichtfeld([*falling, 3.0, 0.06, 0.06], [0.01] * 15) == [], "one bad view is no divergence"
    kept = told_by_lichtfeld(falling, list(RELOCATED["died of 0.1"]), HealthSettings(stop=False))
    assert [event["event"] for event in kept] == ["verdict", "verdict"]
