"""Short trainings that decide a first rung: when, of which rungs, what follows, and what it costs."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from doubles.lichtfeld_double import install
from doubles.trainer_double import TrainerDouble
from scenes import synthetic_scene, write_scene
from typer.testing import CliRunner

from splatpipe import pipeline
from splatpipe.cli import app
from splatpipe.errors import Interrupted
from splatpipe.failures.classes import FailureClass
from splatpipe.policy.init_scaling import FirstRung
from splatpipe.policy.probe import Probed, decide, doubts, next_probe

RUNGS = (0.1, 0.2, 0.3, 0.4)
SETTINGS = [
    *("training.iterations=240", "training.refine_start=100", "training.max_cap=30000", "training.device=cpu"),
    *("limits.silence_s=20", "limits.grace_s=1", "retry.history=false", "probe.mode=always", "probe.steps=60"),
]
BELOW = {"fails": "lfs_adam", "below": 0.3, "at": 20}


def rung(planned: float, coverage: float | None = None, **more: float) -> FirstRung:
    return FirstRung(planned, planned, coverage, None, "", **more)


def survived(value: float, psnr: float | None) -> Probed:
    return Probed(value, None, 300, psnr)


def died(value: float, failure: str = "launch_config") -> Probed:
    return Probed(value, FailureClass(failure), 20, None)


@pytest.mark.parametrize(
    ("probed", "following", "chosen"),
    [
        ([], 0.2, 0.2),
        ([survived(0.2, 14.0)], None, 0.2),
        ([died(0.2)], 0.3, 0.2),
        ([died(0.2), survived(0.3, None)], None, 0.3),
        ([died(0.2), died(0.3), died(0.4)], None, 0.2),  # nothing better is known
        ([died(0.2, "explosion")], 0.1, 0.2),
        ([died(0.2, "oom_raster"), survived(0.1, 13.0)], None, 0.1),
        ([died(0.2), died(0.3, "explosion")], None, 0.2),  # between the two there is no rung
        ([died(0.2, "environment")], None, 0.2),  # says nothing about rungs
    ],
)
def test_probes_go_away_from_what_died_until_one_survives(
    probed: list[Probed], following: float | None, chosen: float
) -> None:
    assert next_probe(0.2, probed, RUNGS) == following
    choice = decide(0.2, probed)
    assert choice.init_scaling == chosen
    assert all(one.sentence() in choice.reason for one in probed)


def test_a_patch_that_is_like_the_others_and_without_findings_raises_no_doubt() -> None:
    assert doubts(["few_points", "weak_cameras"], rung(0.1, 0.4, extent_ratio=1.0, coverage_ratio=1.1)) == ()
    assert doubts([], rung(0.1)) == ()
    assert len(doubts(["seldom_seen", "relative_size", "blind_cameras"], rung(0.1))) == 3
    assert doubts([], rung(0.1, 0.4, extent_ratio=1.49, coverage_ratio=1.0)) == ()
    assert doubts([], rung(0.1, 0.4, extent_ratio=2.25, coverage_ratio=1.5)), "apart by exactly the least factor"
    assert doubts([], rung(0.1, 0.4, extent_ratio=1.5, coverage_ratio=2.25))
    assert doubts([], rung(0.1, extent_ratio=9.0)) == (), "nothing to compare with"
    (sentence,) = doubts([], rung(0.1, 0.4, extent_ratio=1.0, coverage_ratio=2.0))
    assert sentence == "the extent is 1.00 times the median, the init_scaling that covers images 2.00"


# ------------------------------------------------------------------ whole runs over the doubles


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where the checkout's splat_config.yml would be found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "field"
    write_scene(folder, synthetic_scene(n_cameras=25, n_points=400))
    return folder


def run(scene: Path, out: Path, behaviour: dict[str, Any], *overrides: str, stop: threading.Event | None = None) -> int:
    options = pipeline.RunOptions.resolve(scene, out, None, [*SETTINGS, *overrides], None, None)
    trainer = TrainerDouble({"default": behaviour})
    return pipeline.run(options, stop=stop or threading.Event(), merge=False, trainer=trainer)


def patches(out: Path) -> list[dict[str, Any]]:
    return pipeline.status(out)["patches"]  # type: ignore[no-any-return]


def test_a_probe_finds_the_rung_so_that_no_whole_attempt_is_lost_and_explain_tells_it(
    scene: Path, tmp_path: Path
) -> None:
    assert run(scene, tmp_path / "run", BELOW) == 0
    (patch,) = patches(tmp_path / "run")
    assert [(p["init_scaling"], p["class"], p["steps"], p["max_width"]) for p in patch["probes"]] == [
        (0.1, "launch_config", 60, 400),
        (0.2, "launch_config", 60, 400),
        (0.3, None, 60, 400),
    ]
    (attempt,) = patch["attempts"]
    assert (attempt["init_scaling"], attempt["step"], attempt["class"]) == (0.3, 240, None)
    told = CliRunner().invoke(app, ["explain", str(tmp_path / "run"), "p000"]).stdout
    for sentence in (
        "Probed: 3 short trainings of 60 steps at 400 pixels.",
        "init_scaling 0.1: launch_config at step 20: [12:00:00.123] [error]",
        "init_scaling 0.3: survived, hold-out PSNR 25.00 dB",
        "a probe of init_scaling 0.3 survived: 0.1 ended with launch_config at step 20",
        "p000 is trained at the first attempt",
    ):
        assert sentence in told, told
    assert not list((tmp_path / "run" / "probes").rglob("*.ply"))


def test_a_probe_is_never_longer_than_the_training_and_says_so(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(scene, tmp_path / "run", {}, "probe.steps=300") == 0
    assert "p000: is probed with 240 steps first" in capsys.readouterr().err
    assert [probe["steps"] for probe in patches(tmp_path / "run")[0]["probes"]] == [240]


def test_a_patch_like_one_that_was_probed_is_not_probed(scene: Path, tmp_path: Path) -> None:
    assert run(scene, tmp_path, BELOW, "patching.max_cameras=12") == 0
    first, *others = patches(tmp_path)
    assert first["probes"]
    taught = [patch for patch in others if not patch["probes"]]
    assert taught
    for patch in taught:
        assert "which is similar: a probe of init_scaling 0.3 survived" in patch["attempts"][0]["why"]
        assert patch["attempts"][0]["init_scaling"] == 0.3


@pytest.mark.parametrize("mode", ["never", "auto"])
def test_without_a_doubt_or_when_told_not_to_nothing_is_probed(scene: Path, tmp_path: Path, mode: str) -> None:
    assert run(scene, tmp_path, BELOW, f"probe.mode={mode}") == 0
    (patch,) = patches(tmp_path)
    assert (patch["probes"], len(patch["attempts"])) == ([], 3)


def test_a_rung_that_the_user_has_fixed_is_not_probed(scene: Path, tmp_path: Path) -> None:
    assert run(scene, tmp_path, {}, "init_scaling.fixed=0.2") == 0
    assert patches(tmp_path)[0]["probes"] == []


def test_probes_that_were_interrupted_go_on_and_those_that_were_done_stay(scene: Path, tmp_path: Path) -> None:
    stop = threading.Event()
    second = tmp_path / "probes" / "p000" / "02" / "events.jsonl"

    def stop_in_the_second() -> None:
        while not stop.wait(0.01):
            if second.is_file() and '"step"' in second.read_text():
                stop.set()

    watcher = threading.Thread(target=stop_in_the_second)
    watcher.start()
    try:
        with pytest.raises(Interrupted):
            run(scene, tmp_path, {**BELOW, "step_s": 0.3}, stop=stop)
    finally:
        stop.set()
        watcher.join()
    (patch,) = patches(tmp_path)
    assert (patch["outcome"], patch["attempts"]) == ("interrupted", [])
    done = [p["init_scaling"] for p in patch["probes"]]
    assert done in ([0.1], [0.1, 0.2])  # on a busy machine the signal may come late
    first = (tmp_path / "probes" / "p000" / "01" / "events.jsonl").read_text()
    assert run(scene, tmp_path, BELOW) == 0
    assert [p["init_scaling"] for p in patches(tmp_path)[0]["probes"]] == [0.1, 0.2, 0.3]
    assert (tmp_path / "probes" / "p000" / "01" / "events.jsonl").read_text() == first


def test_probes_outlive_the_ledger(scene: Path, tmp_path: Path) -> None:
    assert run(scene, tmp_path, BELOW) == 0
    (before,) = patches(tmp_path)
    (tmp_path / "ledger.sqlite").unlink()
    assert run(scene, tmp_path, {"fails": "sigsegv"}) == 0  # which nobody would survive who were trained again
    (after,) = patches(tmp_path)
    assert len(after["probes"]) == 3
    assert (after["probes"], after["outcome"]) == (before["probes"], "trained")


def test_the_time_for_probes_is_bounded(scene: Path, tmp_path: Path) -> None:
    assert run(scene, tmp_path, {"step_s": 0.02}, "probe.max_seconds=0.1") == 0
    (patch,) = patches(tmp_path)
    assert [p["class"] for p in patch["probes"]] == ["hang"]
    (attempt,) = patch["attempts"]
    assert attempt["init_scaling"] == 0.1
    assert "no probe survived (0.1 ended with hang" in attempt["why"]


def test_a_fault_of_the_machine_is_left_to_the_first_attempt(scene: Path, tmp_path: Path) -> None:
    assert run(scene, tmp_path, {"fails": "no_driver", "at": 0}) == 4
    (patch,) = patches(tmp_path)
    assert len(patch["probes"]) == 1
    assert "the machine is at fault" in patch["reason"]


def test_lichtfeld_is_probed_with_its_own_flags_and_judged_by_our_rasteriser(scene: Path, tmp_path: Path) -> None:
    rules = [{"do": "launch_config", "at": 20, "below_init_scaling": 0.15}]
    binary = install(tmp_path / "bin", "0.5.2", rules=rules)
    settings = [*SETTINGS, "training.trainer=lichtfeld", f"training.lfs_binary={binary}", "training.max_cap=700"]
    options = pipeline.RunOptions.resolve(scene, tmp_path / "run", None, [*settings], None, None)
    assert pipeline.run(options, stop=threading.Event(), merge=False) == 0
    (patch,) = patches(tmp_path / "run")
    assert [p["class"] for p in patch["probes"]] == ["launch_config", None]
    assert patch["probes"][1]["psnr"] > 3
    (attempt,) = patch["attempts"]
    assert attempt["init_scaling"] == patch["probes"][1]["init_scaling"]
    folder = tmp_path / "run" / "probes" / "p000" / "01" / "lichtfeld"
    assert json.loads((folder / "config.json").read_text())["iterations"] == 60
    assert patch["psnr"] > 3  # of the whole training, too
