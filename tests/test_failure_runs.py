"""Whole runs over the trainer double: every class of failure ends as DESIGN.md's table says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from doubles.trainer_double import TrainerDouble
from scenes import synthetic_scene, write_scene
from typer.testing import CliRunner

from splatpipe import pipeline
from splatpipe.cli import app
from splatpipe.errors import ConfigError
from splatpipe.explain import explain

SETTINGS = [
    "training.iterations=240",
    "training.refine_start=100",
    "training.max_cap=30000",
    "training.device=cpu",
    "limits.silence_s=2",
    "limits.grace_s=1",
    "retry.history=false",
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where the checkout's splat_config.yml would be found."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "field"
    write_scene(folder, synthetic_scene(n_cameras=25, n_points=400))
    return folder


def run(
    scene: Path, out: Path, behaviours: dict[str, dict[str, Any]], *overrides: str, other: TrainerDouble | None = None
) -> int:
    options = pipeline.RunOptions.resolve(scene, out, None, [*SETTINGS, *overrides], None, None)
    trainer = TrainerDouble(behaviours)
    return pipeline.run(options, stop=threading.Event(), merge=False, trainer=trainer, other=other)


def patches(out: Path) -> dict[str, dict[str, Any]]:
    return {patch["id"]: patch for patch in pipeline.status(out)["patches"]}


@dataclass(frozen=True)
class Case:
    """A behaviour of the double, the remedies it takes, and the exit code; `why` is in the patch's last reason."""

    failure: str
    behaviour: dict[str, Any]
    remedies: list[str]
    exit_code: int = 0
    overrides: list[str] = field(default_factory=list)
    why: str = ""


def cured(fails: str, name: str, operator: str, bound: float, **more: Any) -> dict[str, Any]:
    return {"fails": fails, "cured_by": (name, operator, bound), **more}


def once(fails: str) -> dict[str, Any]:
    return {"fails": fails, "attempts": 1}


LARGE = ["init_scaling.fixed=0.3"]
CASES = {
    "launch_config: next rungs": Case("launch_config", {"fails": "lfs_adam", "below": 0.3}, ["next_rung"] * 2),
    "launch_config: blind cameras first": Case(
        "launch_config", cured("lfs_adam", "skip_cameras", ">=", 1, blind=["view_0001.jpg"]), ["drop_blind_cameras"]
    ),
    "launch_config: never past the last rung": Case(
        "launch_config", {"fails": "lfs_c10"}, [*["next_rung"] * 3, "fewer_cameras"], 4, why="no remedy is left after 5"
    ),
    "launch_config: then fewer cameras": Case(
        "launch_config", cured("lfs_c10", "skip_cameras", ">=", 3), [*["next_rung"] * 3, "fewer_cameras"]
    ),
    "mcmc_collapse: visible-only steps": Case(
        "mcmc_collapse", cured("guard_mcmc_collapse", "visible_only", "==", 1), ["visible_only"]
    ),
    "mcmc_collapse: then softer": Case(
        "mcmc_collapse",
        cured("gsplat_multinomial", "opacities_lr", "<=", 0.02, at=200),
        ["visible_only", "next_rung", "softer_opacity", "fewer_cameras", "softer_opacity"],
    ),
    "mcmc_collapse: fewer cameras": Case(
        "mcmc_collapse",
        cured("guard_mcmc_collapse", "skip_cameras", ">=", 3),
        ["visible_only", "next_rung", "softer_opacity", "fewer_cameras"],
    ),
    "explosion: step down": Case(
        "explosion", cured("guard_explosion", "init_scaling", "<=", 0.25), ["step_down"], overrides=LARGE
    ),
    "nan_divergence: then lower rate": Case(
        "nan_divergence", cured("nan_ply", "means_lr", "<=", 1e-4), ["step_down", "lower_means_lr"], overrides=LARGE
    ),
    "oom_raster: smaller images": Case("oom_raster", cured("lfs_bucket", "downscale", ">=", 2), ["smaller_images"]),
    "oom_device: then a lower cap": Case(
        "oom_device", cured("cuda_oom", "max_cap", "<=", 20_000), ["smaller_images", "lower_cap"]
    ),
    "int_overflow: then smaller Gaussians": Case(
        "int_overflow",
        cured("int_overflow", "init_scaling", "<=", 0.05),
        ["smaller_images", "lower_cap", "smaller_init"],
    ),
    "illegal_access: once more": Case("illegal_access", once("illegal_access"), ["unchanged"]),
    "illegal_access: then as out of memory": Case(
        "illegal_access", cured("illegal_access", "downscale", ">=", 2), ["unchanged", "smaller_images"]
    ),
    "hang: once more": Case("hang", once("hang"), ["unchanged"]),
    "killed: once more": Case("killed", once("sigkill"), ["unchanged"]),
    "host_oom: smaller cache": Case(
        "host_oom", cured("memory_error", "image_cache_gb", "==", 1), ["smaller_cache"], overrides=[]
    ),
    "host_oom: then a sentence": Case(
        "host_oom", {"fails": "memory_error"}, ["smaller_cache", "fewer_cameras"], 4, why="host_oom: no remedy is left"
    ),
    "export_missing: once more": Case("export_missing", once("no_ply"), ["unchanged"]),
    "data_error: no retry": Case("data_error", {"fails": "bad_data", "at": 0}, [], 4, why="Missing required COLMAP"),
    "config_error: no retry": Case("config_error", {"fails": "bad_flag", "at": 0}, [], 4, why="no-save-eval-images"),
    "environment: no retry": Case("environment", {"fails": "no_driver", "at": 0}, [], 4, why="the machine is at fault"),
    "unknown: once more": Case("unknown", once("own_bug"), ["unchanged"]),
    "a dead set at the end is no success": Case(
        "mcmc_collapse", cured("faded_ply", "visible_only", "==", 1), ["visible_only"]
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_class_ends_as_designed(scene: Path, tmp_path: Path, case: Case) -> None:
    assert run(scene, tmp_path, {"default": case.behaviour}, *case.overrides) == case.exit_code
    patch = patches(tmp_path)["p000"]
    attempts = patch["attempts"]
    assert [attempt["remedy"] for attempt in attempts] == [None, *case.remedies]
    failed = attempts if case.exit_code else attempts[:-1]
    assert {attempt["class"] for attempt in failed} == {case.failure}
    assert all(attempt["line"] for attempt in failed)
    assert all(attempt["why"] for attempt in attempts)  # every remedy is on record with its reason
    assert patch["outcome"] == ("failed" if case.exit_code else "trained")
    assert case.why in (patch["reason"] or "")
    scalings = [attempt["init_scaling"] for attempt in attempts]
    if case.failure.startswith(("oom", "int")):
        assert scalings == sorted(scalings, reverse=True)  # what ran out of memory never gets larger Gaussians


@pytest.mark.parametrize(
    ("failing", "exit_code", "said"),
    [
        ([], 0, ""),
        (["p000"], 3, "p000: failed: data_error: another attempt would fail the same way"),
        (["default"], 4, "p001: failed: data_error"),
    ],
)
def test_the_command_ends_with_the_exit_code_of_its_patches(
    scene: Path, tmp_path: Path, failing: list[str], exit_code: int, said: str
) -> None:
    command = Path(__file__).parent / "doubles" / "cli_with_double.py"
    behaviours = json.dumps({patch: {"fails": "bad_data", "at": 0} for patch in failing})
    settings = [*SETTINGS, "patching.max_cameras=12"]
    done = subprocess.run(
        [sys.executable, str(command), "run", str(scene), "--out", str(tmp_path), *settings],
        env={**os.environ, "TRAINER_DOUBLE": behaviours},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == exit_code, done.stderr
    assert said in done.stderr
    assert (tmp_path / "merged" / "splat.ply").is_file() == (exit_code != 4)
    assert pipeline.status(tmp_path)["exit_code"] == exit_code


def test_an_interruption_from_outside_consumes_no_attempt(scene: Path, tmp_path: Path) -> None:
    assert run(scene, tmp_path, {"default": {"fails": "sigterm"}}, "retry.max_interruptions=3") == 4
    patch = patches(tmp_path)["p000"]
    assert [(a["n"], a["class"], a["interruptions"]) for a in patch["attempts"]] == [(1, "interrupted", 2)]
    assert "interrupted 3 times in a row" in patch["reason"]


def test_a_fault_of_the_machine_stops_the_run_and_one_of_a_patch_only_the_patch(scene: Path, tmp_path: Path) -> None:
    split = "patching.max_cameras=12"
    assert run(scene, tmp_path / "machine", {"p000": {"fails": "no_driver", "at": 0}}, split) == 4
    assert [patch["outcome"] for patch in patches(tmp_path / "machine").values()][:2] == ["failed", "pending"]
    assert run(scene, tmp_path / "patch", {"p000": {"fails": "bad_data", "at": 0}}, split) == 3
    outcomes = [patch["outcome"] for patch in patches(tmp_path / "patch").values()]
    assert outcomes == ["failed", *["trained"] * (len(outcomes) - 1)]


def test_the_other_trainer_takes_over_with_gaussians_of_the_same_size(scene: Path, tmp_path: Path) -> None:
    other = TrainerDouble({}, name="lichtfeld")
    assert run(scene, tmp_path, {"default": {"fails": "lfs_adam"}}, other=other) == 0
    attempts = patches(tmp_path)["p000"]["attempts"]
    assert [a["trainer"] for a in attempts] == ["gsplat"] * 4 + ["lichtfeld"]
    size = explain(tmp_path, "p000")["statistics"]["relative_size"]
    expected = attempts[3]["init_scaling"] * size["gsplat"] / size["lichtfeld"]
    assert attempts[4]["init_scaling"] == pytest.approx(expected, rel=1e-3)


def test_when_the_other_trainer_cannot_start_only_the_patch_is_lost(scene: Path, tmp_path: Path) -> None:
    other = TrainerDouble({"default": {"fails": "no_driver", "at": 0}}, name="lichtfeld")
    # The double of both trainers reads one environment: the behaviour is that of the trainer that started it.
    split = "patching.max_cameras=12"
    assert run(scene, tmp_path, {"p000": {"fails": "lfs_adam"}}, split, other=other) == 3
    assert "lichtfeld, which took over, cannot train here" in patches(tmp_path)["p000"]["reason"]


def test_attempts_have_a_budget_of_time(scene: Path, tmp_path: Path) -> None:
    assert run(scene, tmp_path, {"default": {"fails": "lfs_adam"}}, "retry.max_seconds=0.01") == 4
    patch = patches(tmp_path)["p000"]
    assert len(patch["attempts"]) == 1
    assert "gave up after" in patch["reason"]


def test_a_message_of_the_users_own_decides(scene: Path, tmp_path: Path) -> None:
    rows = "failures.rows=[{pattern: \"KeyError: 'opacities'\", class: data_error, cause: a fork of ours}]"
    assert run(scene, tmp_path, {"default": {"fails": "own_bug"}}, rows) == 4
    assert [a["class"] for a in patches(tmp_path)["p000"]["attempts"]] == ["data_error"]


def p7(scene: Path, out: Path, *overrides: str) -> int:
    """p001 dies of 0.1 at step 20, of 0.2 at step 100, and trains at 0.3."""
    behaviour = {"fails": "lfs_adam", "below": 0.3, "at": 20, "at_from": [0.2, 100]}
    return run(scene, out, {"p001": behaviour}, "patching.max_cameras=12", "retry.history=true", *overrides)


def test_the_p7_story_end_to_end(scene: Path, tmp_path: Path) -> None:
    assert p7(scene, tmp_path / "first") == 0
    patch = patches(tmp_path / "first")["p001"]
    table = [(a["init_scaling"], a["class"], a["step"]) for a in patch["attempts"]]
    assert table == [(0.1, "launch_config", 20), (0.2, "launch_config", 100), (0.3, None, 240)]

    told = CliRunner().invoke(app, ["explain", str(tmp_path / "first"), "p001"])
    assert told.exit_code == 0
    for sentence in (
        "Measured: p001 has ",
        "Attempt 1 (gsplat, init_scaling 0.1): first attempt.",
        "It died at step 20 ",
        "The deciding line: [12:00:00.123] [error] training_manager.cpp:538  Training error: Training step failed: "
        "adam_step_cu kernel launch failed: invalid configuration argument",
        "That means: a camera sees no Gaussian.",
        "Attempt 2 (gsplat, init_scaling 0.2): remedy next_rung, init_scaling 0.1 -> 0.2.",
        "It died at step 100 ",
        "It trained in ",
        "p001 is trained, hold-out PSNR 25.00 dB: remedy next_rung, init_scaling 0.2 -> 0.3 worked, after 2 failed",
    ):
        assert sentence in told.stdout, told.stdout

    # The next run of the same patch starts where this one ended, and says why.
    assert p7(scene, tmp_path / "second") == 0
    (attempt,) = patches(tmp_path / "second")["p001"]["attempts"]
    assert (attempt["init_scaling"], attempt["class"]) == (0.3, None)
    assert "p001 of run first (launch_config at 0.1, launch_config at 0.2; trained at 0.3)" in attempt["why"]
    assert attempt["why"] in explain(tmp_path / "second", "p001")["story"][-3]

    # It can be told to forget, and what the user has fixed is never changed.
    assert p7(scene, tmp_path / "third", "retry.history=false") == 0
    assert len(patches(tmp_path / "third")["p001"]["attempts"]) == 3
    assert p7(scene, tmp_path / "fourth", "init_scaling.fixed=0.1") == 0
    assert len(patches(tmp_path / "fourth")["p001"]["attempts"]) == 3


def test_explaining_a_patch_that_is_not_there_names_those_that_are(scene: Path, tmp_path: Path) -> None:
    run(scene, tmp_path, {})
    with pytest.raises(ConfigError, match="has no patch p099; it has only p000"):
        explain(tmp_path, "p099")
