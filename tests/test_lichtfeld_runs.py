"""LichtFeld Studio through the real supervisor: every way in which a build has ended, played by its double."""

from __future__ import annotations

import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles.lichtfeld_double import install
from doubles.lichtfeld_request import LIMITS, SETTINGS, SIMILARITY, lichtfeld_request
from doubles.lichtfeld_versions import VERSIONS
from scipy.spatial import cKDTree

from splatpipe.failures.classes import FailureClass
from splatpipe.files import read_json
from splatpipe.policy.ladder import next_request
from splatpipe.policy.remedies import RetrySettings
from splatpipe.scene.colmap import read_model
from splatpipe.splatting.ply import read_splats
from splatpipe.trainers.base import Attempt, TrainRequest
from splatpipe.trainers.lichtfeld import LichtfeldTrainer
from splatpipe.trainers.lichtfeld_result import Aim
from splatpipe.trainers.supervise import recover, run_attempt

GROWN = 535  # Gaussians that 400 points become in the 6 refinements of SETTINGS: times 1.05, rounded down


def attempt(
    tmp_path: Path, version: str = "0.5.2", request: TrainRequest | None = None, **behaviour: Any
) -> tuple[Attempt, list[dict[str, Any]]]:
    """One supervised attempt of that build."""
    events: list[dict[str, Any]] = []
    trainer = LichtfeldTrainer(install(tmp_path / "bin", version, **behaviour), cache=tmp_path / "cache")
    request = request or lichtfeld_request(tmp_path)
    return run_attempt(trainer, request, on_event=events.append, stop=threading.Event()), events


def dies(what: str, at: int, **conditions: float) -> dict[str, Any]:
    return {"rules": [{"do": what, "at": at, **conditions}]}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_build_trains_a_patch_into_scene_coordinates(tmp_path: Path, version: str) -> None:
    result, events = attempt(tmp_path, version)
    assert (result.failure, result.line, result.exit_status, result.warnings) == (None, None, 0, ())
    assert (result.last_step, result.gaussians) == (1500, GROWN)
    assert [events[0]["event"], events[-1]["event"]] == ["start", "done"]
    assert result.health["images"] == 12
    splats = read_splats(result.request.files.splat)
    scene_points = SIMILARITY.invert(read_model(result.request.patch.sparse).points)
    for here, there in ((splats.means, scene_points), (scene_points, splats.means)):
        assert cKDTree(here).query(there)[0].max() < 1e-5
    np.testing.assert_allclose(np.exp(splats.scales), 0.1 * np.sqrt(0.05) / SIMILARITY.scale, rtol=1e-5)
    assert not list((result.request.out / "lichtfeld").rglob("*.ply"))  # no second copy of a large file


def test_refinements_are_reported_where_the_build_prints_them(tmp_path: Path) -> None:
    result, events = attempt(tmp_path, "0.5.0")
    refinements = [event for event in events if event["event"] == "refine"]
    assert [event["step"] for event in refinements] == list(range(600, 1200, 100))
    assert len(result.health["relocated_shares"]) == 6


def test_the_p7_table(tmp_path: Path) -> None:
    """0.1 dies at step 20, 0.2 at step 100, 0.3 trains; nothing is printed before step 100."""
    rules = [
        {"do": "launch_config", "at": 20, "below_init_scaling": 0.15},
        {"do": "launch_config", "at": 101, "below_init_scaling": 0.25},
        {"do": "nan", "at": 300, "above_init_scaling": 0.9},
    ]
    found = {}
    for number, scaling in enumerate((0.1, 0.2, 0.3, 1.0), 1):
        request = lichtfeld_request(tmp_path, init_scaling=scaling, attempt=number)
        result, _ = attempt(tmp_path, "0.3", request, rules=rules)
        found[scaling] = (result.failure, result.last_step)
        if scaling == 0.1:
            assert result.line is not None
            assert result.line.endswith(
                "Training step failed: adam_step_cu kernel launch failed: invalid configuration argument"
            )
            assert result.exit_status == 255
    assert found == {
        0.1: (FailureClass.LAUNCH_CONFIG, 0),
        0.2: (FailureClass.LAUNCH_CONFIG, 100),
        0.3: (None, 1500),
        1.0: (FailureClass.NAN_DIVERGENCE, 300),
    }


@pytest.mark.parametrize("version", ["oct", "0.3"])
def test_the_ladder_climbs_to_the_rung_that_trains(tmp_path: Path, version: str) -> None:
    """Builds before v0.5 crash on a blind camera, each with its own words; both are one class."""
    what = "launch_config_c10" if version == "oct" else "launch_config"
    rules = [{"do": what, "at": 20, "below_init_scaling": 0.15}, {"do": what, "at": 101, "below_init_scaling": 0.25}]
    first = lichtfeld_request(tmp_path)
    history: list[Attempt] = []
    while (decision := next_request(first, history, RetrySettings())).request is not None:
        history.append(attempt(tmp_path, version, decision.request, rules=rules)[0])
    assert [a.request.init_scaling for a in history] == [0.1, 0.2, 0.3]
    assert [a.failure for a in history] == [FailureClass.LAUNCH_CONFIG, FailureClass.LAUNCH_CONFIG, None]
    assert [a.request.attempt for a in history] == [1, 2, 3]


@pytest.mark.parametrize(
    ("what", "failure", "status"),
    [
        ("launch_config", FailureClass.LAUNCH_CONFIG, 1),
        ("launch_config_c10", FailureClass.LAUNCH_CONFIG, -signal.SIGABRT),
        ("oom_raster", FailureClass.OOM_RASTER, 1),
        ("oom_sort", FailureClass.OOM_RASTER, 1),
        ("oom_arena", FailureClass.OOM_RASTER, 1),
        ("oom_device", FailureClass.OOM_DEVICE, 1),
        ("int_overflow", FailureClass.INT_OVERFLOW, 1),
        ("illegal_access", FailureClass.ILLEGAL_ACCESS, 1),
        ("distorted", FailureClass.DATA_ERROR, 1),
        ("disk_full", FailureClass.ENVIRONMENT, 1),
        ("jpeg", FailureClass.DATA_ERROR, -signal.SIGABRT),
        ("loader_memory", FailureClass.HOST_OOM, -signal.SIGABRT),
        ("kill", FailureClass.KILLED, -signal.SIGKILL),
        ("segfault", FailureClass.UNKNOWN, -signal.SIGSEGV),
    ],
)
def test_each_way_to_die_has_its_class(tmp_path: Path, what: str, failure: FailureClass, status: int) -> None:
    result, _ = attempt(tmp_path, **dies(what, 150))
    assert (result.failure, result.exit_status, result.last_step) == (failure, status, 100)
    assert result.splat is None
    assert not result.request.files.splat.exists()


@pytest.mark.parametrize(("what", "status"), [("hang", -signal.SIGTERM), ("hang_deaf", -signal.SIGKILL)])
def test_a_hanging_build_is_ended_even_when_it_is_deaf(tmp_path: Path, what: str, status: int) -> None:
    limits = replace(LIMITS, silence_s=0.5, grace_s=0.5)
    result, _ = attempt(tmp_path, request=lichtfeld_request(tmp_path, limits=limits), **dies(what, 250))
    assert (result.failure, result.exit_status, result.health["ended_by"]) == (FailureClass.HANG, status, "silence")


@pytest.mark.parametrize(
    ("what", "failure"), [("nan", FailureClass.NAN_DIVERGENCE), ("collapse", FailureClass.MCMC_COLLAPSE)]
)
def test_a_run_that_cannot_recover_is_ended_at_once(tmp_path: Path, what: str, failure: FailureClass) -> None:
    settings = replace(SETTINGS, iterations=20_000, refine_stop=19_000)
    request = lichtfeld_request(tmp_path, settings=settings)
    result, events = attempt(tmp_path, request=request, step_seconds=0.0002, **dies(what, 700))
    assert (result.failure, result.health["ended_by"]) == (failure, "guard")
    assert result.last_step < 20_000
    assert events[-1]["event"] == "error"


@pytest.mark.parametrize(
    ("what", "rule", "failure"),
    [
        ("spiral", "death_spiral", FailureClass.MCMC_COLLAPSE),
        ("diverge", "divergence", FailureClass.NAN_DIVERGENCE),
    ],
)
def test_a_verdict_on_its_health_ends_a_build_that_would_go_on(
    tmp_path: Path, what: str, rule: str, failure: FailureClass
) -> None:
    settings = replace(SETTINGS, iterations=20_000, refine_stop=19_000)
    request = lichtfeld_request(tmp_path, settings=settings)
    result, _ = attempt(tmp_path, request=request, step_seconds=0.0002, **dies(what, 1000))
    (verdict,) = [found for found in result.health["verdicts"] if found["severity"] == "stop"]
    assert (verdict["rule"], result.failure, result.health["ended_by"]) == (rule, failure, "guard")
    assert result.line == verdict["message"]
    assert 1000 < result.last_step < 20_000


@pytest.mark.parametrize(
    ("end", "failure", "said"),
    [
        ("no_ply", FailureClass.EXPORT_MISSING, "left no PLY in"),
        ("half_ply", FailureClass.EXPORT_MISSING, "cut off while being written"),
        ("project_only", FailureClass.ENVIRONMENT, "saved only project.licht"),
        ("two_splats", FailureClass.EXPORT_MISSING, f"holds 2 Gaussians, LichtFeld Studio announced {GROWN}"),
        ("other_count", FailureClass.EXPORT_MISSING, f"announced {GROWN}"),
        ("not_finite", FailureClass.NAN_DIVERGENCE, "values of 1 Gaussians are not finite"),
        ("flung", FailureClass.EXPLOSION, "lie outside the scene"),
        ("giant", FailureClass.EXPLOSION, "larger than the whole patch"),
        ("faded", FailureClass.MCMC_COLLAPSE, "at or below opacity 0.005"),
    ],
)
def test_exit_status_0_proves_nothing(tmp_path: Path, end: str, failure: FailureClass, said: str) -> None:
    result, events = attempt(tmp_path, end=end)
    assert (result.failure, result.exit_status) == (failure, 0)
    assert result.line is not None
    assert said in result.line
    assert not result.request.files.splat.exists()
    assert all(event["event"] != "done" for event in events)


def test_two_points_cannot_grow_into_a_splat(tmp_path: Path) -> None:
    result, _ = attempt(tmp_path, request=lichtfeld_request(tmp_path, points=2))
    assert result.failure is FailureClass.DATA_ERROR
    assert result.line is not None
    assert "the patch has 2 points, and MCMC does not grow from fewer than 20" in result.line


def test_a_set_that_did_not_grow_is_a_collapse(tmp_path: Path) -> None:
    settings = replace(SETTINGS, iterations=3000, refine_stop=2900)
    request = lichtfeld_request(tmp_path, settings=settings)
    result, _ = attempt(tmp_path, request=request, end="stuck")
    assert result.failure is FailureClass.MCMC_COLLAPSE
    assert result.line is not None
    assert "holds 400 Gaussians, MCMC reaches 1215 when it does not collapse" in result.line


def test_noise_after_a_complete_run_is_a_success_with_a_warning(tmp_path: Path) -> None:
    result, _ = attempt(tmp_path, status=134)
    assert (result.failure, result.exit_status, result.gaussians) == (None, 134, GROWN)
    assert result.warnings == ("the child left with status 134 after its splat was whole",)


def test_a_build_that_ignores_its_output_folder_is_collected_all_the_same(tmp_path: Path) -> None:
    result, _ = attempt(tmp_path, "master", end="in_cwd")
    assert (result.failure, result.gaussians) == (None, GROWN)


def test_a_stop_is_an_interruption_and_the_next_start_is_clean(tmp_path: Path) -> None:
    request = lichtfeld_request(tmp_path, settings=replace(SETTINGS, iterations=30_000, refine_stop=25_000))
    slow = LichtfeldTrainer(install(tmp_path / "slow", "master", step_seconds=0.001), cache=tmp_path / "cache")
    stop = threading.Event()

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            stop.set()

    result = run_attempt(slow, request, on_event=on_event, stop=stop)
    assert (result.failure, result.exit_status) == (FailureClass.INTERRUPTED, 143)
    assert recover(slow, request) is None
    again, _ = attempt(tmp_path, "master", replace(request, settings=SETTINGS))
    assert (again.failure, again.gaussians) == (None, GROWN)
    assert recover(slow, again.request) is not None


SAVING = replace(SETTINGS, checkpoint_every=100)  # 1500 steps, so a checkpoint each 250


@pytest.mark.parametrize(("version", "torn"), [("0.3", True), ("0.5.0", False), ("0.5.2", True)])
def test_a_killed_run_goes_on_from_the_builds_own_checkpoint(tmp_path: Path, version: str, torn: bool) -> None:
    request = lichtfeld_request(tmp_path, settings=SAVING)
    dying = {"torn_at": 1000} if torn else dies("kill", 1100)
    killed, _ = attempt(tmp_path, version, request, **dying)
    assert (killed.failure, killed.exit_status) == (FailureClass.KILLED, -signal.SIGKILL)
    again, events = attempt(tmp_path, version, request)  # the same attempt, as after a kill of splatpipe
    assert (again.failure, again.warnings, again.last_step, again.gaussians) == (None, (), 1500, GROWN)
    assert again.health["resumed_from"] == (750 if torn else 1000)
    assert min(event["step"] for event in events if event["event"] == "step") > again.health["resumed_from"]
    assert not list((request.out / "lichtfeld").rglob("*.resume"))


def test_the_attempt_after_a_kill_goes_on_from_the_checkpoint_of_the_one_before(tmp_path: Path) -> None:
    killed, _ = attempt(tmp_path, "0.5.2", lichtfeld_request(tmp_path, settings=SAVING), **dies("kill", 1300))
    decision = next_request(killed.request, [killed], RetrySettings())
    assert decision.request is not None
    second, _ = attempt(tmp_path, "0.5.2", decision.request, **dies("kill", 1400))
    assert second.health["resumed_from"] == 1250
    third, _ = attempt(tmp_path, "0.5.2", decision.request)  # the second had none of its own yet
    assert (third.failure, third.health["resumed_from"], third.gaussians) == (None, 1250, GROWN)


@pytest.mark.parametrize("version", ["oct", "master"])
def test_a_build_without_resume_files_begins_anew(tmp_path: Path, version: str) -> None:
    request = lichtfeld_request(tmp_path, settings=SAVING)
    attempt(tmp_path, version, request, **dies("kill", 1100))
    again, _ = attempt(tmp_path, version, request)
    assert (again.failure, again.gaussians) == (None, GROWN)
    assert "resumed_from" not in again.health


def test_a_checkpoint_of_another_training_is_not_gone_on_from(tmp_path: Path) -> None:
    request = lichtfeld_request(tmp_path, settings=SAVING)
    attempt(tmp_path, "0.5.0", request, **dies("kill", 1100))
    again, _ = attempt(tmp_path, "0.5.0", replace(request, init_scaling=0.3))
    assert (again.failure, again.gaussians) == (None, GROWN)
    assert "resumed_from" not in again.health


def test_a_build_that_refuses_a_checkpoint_costs_one_attempt_and_begins_anew(tmp_path: Path) -> None:
    request = lichtfeld_request(tmp_path, settings=SAVING)
    attempt(tmp_path, "0.3", request, **dies("kill", 1100))
    newest = request.out / "lichtfeld" / "output" / "checkpoints" / "checkpoint_1000.resume"
    content = bytearray(newest.read_bytes())
    content[4] = 9  # of a format that this build does not know
    newest.write_bytes(content)
    refused, _ = attempt(tmp_path, "0.3", request)
    assert refused.failure is FailureClass.UNKNOWN and "Failed to load checkpoint" in str(refused.line)
    decision = next_request(request, [refused], RetrySettings())
    assert decision.request is not None
    anew, _ = attempt(tmp_path, "0.3", decision.request)
    assert (anew.failure, anew.gaussians) == (None, GROWN)
    assert "resumed_from" not in anew.health


def test_a_build_that_cannot_start_is_a_problem_of_the_machine(tmp_path: Path) -> None:
    result, _ = attempt(tmp_path, start="libraries")
    assert (result.failure, result.exit_status) == (FailureClass.ENVIRONMENT, None)
    assert result.line is not None
    assert "libOpenMeshCore.so.11.0 is missing" in result.line


def test_a_library_that_vanishes_after_the_probe_is_a_problem_of_the_machine(tmp_path: Path) -> None:
    trainer = LichtfeldTrainer(install(tmp_path / "bin", "0.5.2"), cache=tmp_path / "cache")
    assert trainer.probe().available
    install(tmp_path / "bin", "0.5.2", start="libraries")
    result = run_attempt(trainer, lichtfeld_request(tmp_path), on_event=lambda event: None, stop=threading.Event())
    assert (result.failure, result.exit_status) == (FailureClass.ENVIRONMENT, 127)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_double_refuses_what_its_build_refuses(tmp_path: Path, version: str) -> None:
    """Otherwise the tests above would prove nothing about the commands."""
    trainer = LichtfeldTrainer(install(tmp_path / "bin", version), cache=tmp_path / "cache")
    request = lichtfeld_request(tmp_path)
    command = trainer.command

    def with_flag(request: TrainRequest) -> Any:
        plain = command(request)
        return replace(plain, argv=(*plain.argv, "--pose-opt" if version != "oct" else "--init", "none"))

    trainer.command = with_flag  # type: ignore[method-assign]
    result = run_attempt(trainer, request, on_event=lambda event: None, stop=threading.Event())
    assert (result.failure, result.exit_status) == (FailureClass.CONFIG_ERROR, 255 if version in ("oct", "0.3") else 1)
    assert result.line is not None
    assert "Parse error: Flag could not be matched: " in result.line


def test_points_that_lfs_did_not_read_end_the_attempt(tmp_path: Path) -> None:
    result, _ = attempt(tmp_path, points=90, step_seconds=0.001)
    assert result.failure is FailureClass.DATA_ERROR
    assert result.line == "LichtFeld Studio read 90 points, the patch has 400"


def test_the_configuration_of_a_run_stays_beside_it(tmp_path: Path) -> None:
    result, _ = attempt(tmp_path, request=lichtfeld_request(tmp_path, init_scaling=0.3))
    config = read_json(result.request.out / "lichtfeld" / "config.json")
    assert (config["init_scaling"], config["iterations"], config["max_cap"]) == (0.3, 1500, 2000)


@pytest.mark.parametrize(
    ("points", "cap", "stop", "count"),
    [
        (54_000, 1_000_000, 25_000, 1_000_000),
        (2, 1_000_000, 25_000, 2),
        (19, 1_000_000, 25_000, 19),
        (1000, 10_000, 700, 1050),  # one refinement, at 600
        (1000, 10_000, 701, 1102),
        (5000, 2000, 25_000, 5000),  # never shrinks
    ],
)
def test_the_expected_count_is_what_mcmc_reaches(points: int, cap: int, stop: int, count: int) -> None:
    aim = Aim(30_000, points, np.zeros(3), 1.0, cap, 500, stop, 100, 0.005)
    assert aim.count == count


@pytest.mark.slow
def test_a_real_training_over_the_lfs_path_fits_the_photographs_in_scene_coordinates(tmp_path: Path) -> None:
    """The double trains through our own loop; what comes back is judged with the scene's own cameras."""
    from scenes import synthetic_scene, write_scene

    from splatpipe.merge.evaluate import evaluate_splat
    from splatpipe.splatting.views import Views

    settings = replace(SETTINGS, iterations=400, refine_start=100, refine_stop=350)
    limits = replace(LIMITS, startup_silence_s=240.0, silence_s=240.0, wall_s=0.0)  # kernels may have to be compiled
    request = lichtfeld_request(tmp_path, settings=settings, limits=limits, init_scaling=0.3)
    scene = write_scene(tmp_path / "scene", synthetic_scene(n_cameras=12, n_points=400))
    for name in scene.names:
        (request.patch.images / name).write_bytes((scene.image_dir / name).read_bytes())
    result, events = attempt(tmp_path, request=request, train=True)
    assert (result.failure, result.last_step) == (None, 400)
    assert [event["step"] for event in events if event["event"] == "refine"] == [200, 300]
    paths = tuple(scene.image_dir / name for name in scene.names)
    views = Views(scene.names, paths, scene.viewmats, scene.Ks, scene.sizes)
    trained = evaluate_splat(request.files.splat, views)
    assert trained.psnr > 20
