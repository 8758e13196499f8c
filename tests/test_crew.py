"""Which trainer a run gets from its settings, and LichtFeld Studio (its double) through the whole main line."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from doubles.lichtfeld_double import install
from doubles.trainer_double import TrainerDouble
from scenes import synthetic_scene, write_scene

from splatpipe import pipeline
from splatpipe.config import load_config
from splatpipe.crew import Crew, choose_crew
from splatpipe.errors import ConfigError, EnvironmentProblem
from splatpipe.planning import make_plan
from splatpipe.trainers.lichtfeld_options import option_arguments

SETTINGS = ["training.iterations=700", "training.max_cap=700", "training.device=cpu", "training.trainer=lichtfeld"]
RULES = [
    {"do": "launch_config", "at": 20, "below_init_scaling": 0.15},
    {"do": "launch_config", "at": 101, "below_init_scaling": 0.25},
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings file, no LichtFeld Studio of this machine, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LICHTFELD_BIN", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "field"
    write_scene(folder, synthetic_scene(n_cameras=25, n_points=400))
    return folder


def run(scene: Path, out: Path, *overrides: str) -> int:
    options = pipeline.RunOptions.resolve(scene, out, None, [*SETTINGS, *overrides], None, None)
    return pipeline.run(options, stop=threading.Event(), merge=False)


def patch(out: Path) -> dict[str, Any]:
    return pipeline.status(out)["patches"][0]


def test_a_run_on_lichtfeld_climbs_to_the_rung_that_trains(scene: Path, tmp_path: Path) -> None:
    binary = install(tmp_path / "bin", "0.3", rules=RULES)
    assert run(scene, tmp_path / "run", f"training.lfs_binary={binary}") == 0
    attempts = patch(tmp_path / "run")["attempts"]
    assert [(a["trainer"], a["init_scaling"], a["class"]) for a in attempts] == [
        ("lichtfeld", 0.1, "launch_config"),
        ("lichtfeld", 0.2, "launch_config"),
        ("lichtfeld", 0.3, None),
    ]
    record = json.loads((tmp_path / "run" / "patches" / "p000" / "patch.json").read_text())
    assert record["stats"]["trainer"] == "lichtfeld"  # visibility was counted with its Gaussians


def test_a_collapse_on_lichtfeld_is_never_answered_with_what_it_cannot_do(scene: Path, tmp_path: Path) -> None:
    rules = [{"do": "collapse", "at": 600, "below_init_scaling": 0.15}]
    binary = install(tmp_path / "bin", "0.5.2", rules=rules, step_seconds=0.001)
    settings = ("training.iterations=3000", "training.refine_start=500", f"training.lfs_binary={binary}")
    assert run(scene, tmp_path / "run", *settings) == 0
    attempts = patch(tmp_path / "run")["attempts"]
    assert [(a["remedy"], a["class"]) for a in attempts] == [(None, "mcmc_collapse"), ("next_rung", None)]


def test_a_profile_reaches_lichtfeld_whole_and_fixes_the_rung(scene: Path, tmp_path: Path) -> None:
    profiles = scene / "lfs_configs"
    profiles.mkdir(exist_ok=True)
    (profiles / "mine.json").write_text(json.dumps({"init_scaling": 0.3, "opacity_reg": 0.002, "_note": "p7"}))
    binary = install(tmp_path / "bin", "0.5.2", rules=RULES)
    assert run(scene, tmp_path / "run", f"training.lfs_binary={binary}", "training.lfs_config=mine.json") == 0
    (attempt,) = patch(tmp_path / "run")["attempts"]
    assert attempt["init_scaling"] == 0.3
    config = json.loads((tmp_path / "run" / "attempts" / "p000" / "01" / "lichtfeld" / "config.json").read_text())
    assert (config["init_scaling"], config["opacity_reg"], config["_note"]) == (0.3, 0.002, "p7")
    assert (config["iterations"], config["max_cap"]) == (700, 700)


def test_a_profile_means_the_same_for_our_own_trainer(tmp_path: Path) -> None:
    (tmp_path / "lfs_configs").mkdir()
    (tmp_path / "lfs_configs" / "mine.json").write_text('{"opacity_lr": 0.025, "iterations": 9000, "scale_reg": 0.05}')
    config = load_config(None, ["training.lfs_config=mine.json", "training.scale_reg=0.02"])
    plan = make_plan(synthetic_scene(), config, (tmp_path,))
    settings = plan.patches[0].settings
    assert (settings.opacities_lr, settings.iterations) == (0.025, 9000)
    assert settings.scale_reg == 0.02  # what the user sets wins


def test_lichtfeld_that_was_asked_for_and_is_not_there_is_a_sentence(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with pytest.raises(EnvironmentProblem, match=r"name it with training\.lfs_binary or \$LICHTFELD_BIN"):
        run(scene, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_where_nobody_can_take_over_nobody_does(tmp_path: Path) -> None:
    """LichtFeld Studio trains on nothing but a GPU: on the CPU it is no remedy."""
    binary = install(tmp_path / "bin", "0.5.2")
    crew = choose_crew(load_config(None, [f"training.lfs_binary={binary}", "training.device=cpu"]), ())
    assert (crew.first.name, crew.other) == ("gsplat", None)
    asked = choose_crew(load_config(None, [*SETTINGS, f"training.lfs_binary={binary}"]), ())
    assert asked.first.name == "lichtfeld"


def test_an_option_that_the_build_does_not_have_is_refused_before_anything_trains(tmp_path: Path) -> None:
    old, new = install(tmp_path / "old", "0.5.2"), install(tmp_path / "new", "master")
    for binary, option in ((old, "random_background=true"), (new, "clip_gradients=3"), (new, "views_per_step=2")):
        wanted = load_config(None, [*SETTINGS, f"training.lfs_binary={binary}", f"training.{option}"])
        with pytest.raises(
            ConfigError, match=rf"^training\.{option.split('=')[0]}: LichtFeld Studio .* no such option"
        ):
            choose_crew(wanted, ())
    wanted = load_config(None, [*SETTINGS, f"training.lfs_binary={new}", "training.random_background=true"])
    flags = choose_crew(wanted, ()).info.capabilities
    assert option_arguments(wanted.training.options(), flags) == ("--bg-mode", "random")


def test_a_trainer_that_has_gone_since_the_attempt_began_is_named() -> None:
    double = TrainerDouble({})
    with pytest.raises(EnvironmentProblem, match="begun with lichtfeld, which cannot be used now"):
        Crew(double, double.probe()).named("lichtfeld")
