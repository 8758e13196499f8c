"""A whole run as a user starts it, on the double (fast, fails on demand) and on the real trainer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import yaml
from doubles.trainer_double import TrainerDouble
from scenes import scaled, synthetic_scene, write_scene

from splatpipe import pipeline
from splatpipe.errors import ConfigError, EnvironmentProblem, Interrupted, RunFolderError
from splatpipe.merge.colors import ColorFit
from splatpipe.splatting import raster
from splatpipe.splatting.ply import from_rows, read_header, read_splats, to_rows, write_splats

FAST = [
    "training.iterations=60",
    "training.refine_start=10",
    "training.refine_every=20",
    "training.checkpoint_every=20",
    "training.max_cap=500",
    "training.sh_degree=1",
    "training.device=cpu",
]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "field"
    write_scene(folder, synthetic_scene(n_cameras=25, n_points=400))
    return folder


def options(scene: Path, out: Path, *overrides: str, retrain: str | None = None) -> pipeline.RunOptions:
    return pipeline.RunOptions.resolve(scene, out, None, [*FAST, *overrides], None, retrain)


def run(given: pipeline.RunOptions, trainer: TrainerDouble | None = None) -> int:
    return pipeline.run(given, stop=threading.Event(), trainer=trainer)


def patches(out: Path) -> dict[str, dict[str, Any]]:
    return {patch["id"]: patch for patch in pipeline.status(out)["patches"]}


def cli(*arguments: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "splatpipe.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, **more)


def test_every_patch_trains_and_one_splat_is_merged(scene: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    learns = ["training.iterations=300", "init_scaling.fixed=0.4"]
    done = cli("run", scene, "--out", out, *FAST, *learns, "patching.max_cameras=12")
    assert done.returncode == 0, done.stderr
    status = json.loads(cli("status", out, "--json").stdout)
    assert len(status["patches"]) >= 2
    assert {patch["outcome"] for patch in status["patches"]} <= {"trained", "trained_with_warnings"}
    assert all(patch["cameras"] <= 12 for patch in status["patches"])
    merged = status["merged"]
    assert read_header(Path(merged["path"])).count == merged["gaussians"] > 100
    assert merged["psnr"] > 10
    assert merged["path"] in done.stdout
    assert "borders trained together" in done.stderr
    picture = Path(done.stdout.rsplit(": ", 1)[1].strip())
    assert picture.is_file()


class StopOnce(threading.Event):
    """Is set from the moment at which a file is there."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def is_set(self) -> bool:
        return self.path.is_file()


def test_a_stop_while_borders_of_a_large_splat_are_trained_is_known_and_the_next_run_goes_on(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, double = options(scene, tmp_path, "patching.max_cameras=12"), TrainerDouble({})
    monkeypatch.setattr("splatpipe.merge.evaluate.HELD_AT_ONCE", 399)
    with pytest.raises(Interrupted, match="while borders were trained together"):
        pipeline.run(given, stop=StopOnce(given.layout.finishing / "progress.json"), trainer=double)
    status = pipeline.status(tmp_path)
    assert status["finishing"]["done"] == 0 < status["finishing"]["of"] and status["merged"]["path"] is None
    assert read_header(given.layout.merged_splat).count > 0, "merged, though not finished"
    assert run(given, double) == 0
    status = pipeline.status(tmp_path)
    assert status["finishing"] is None and status["merged"]["details"]["finish"]["steps"] > 0
    assert not given.layout.finishing.exists()


def test_what_is_trained_is_not_trained_again(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = options(scene, tmp_path, "patching.max_cameras=12")
    double = TrainerDouble({})
    assert run(given, double) == 0
    before = {name: patch["attempts"] for name, patch in patches(tmp_path).items()}
    assert "nothing to train" not in capsys.readouterr().err
    assert run(given, double) == 0
    assert "nothing to train; merged splat: " in capsys.readouterr().err
    assert pipeline.run(given, stop=threading.Event(), merge=False, trainer=double) == 0
    assert "nothing to train: all patches of" in capsys.readouterr().err
    assert {name: patch["attempts"] for name, patch in patches(tmp_path).items()} == before


def test_a_patch_to_retrain_that_is_not_there_is_refused_with_the_one_there_is(scene: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--retrain: no patch p99; this run has only p000$"):
        run(options(scene, tmp_path, retrain="p99"), TrainerDouble({}))


@pytest.mark.parametrize("name", ["map.jpg", "map.PNG.tif"])
def test_a_map_in_another_format_is_refused_before_anything_is_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"the map is a PNG; give a name that ends in \.png"):
        pipeline.split(options(tmp_path / "nowhere", tmp_path), dry_run=True, picture=tmp_path / name)


def test_retrain_trains_the_named_patch_and_no_other(scene: Path, tmp_path: Path) -> None:
    double = TrainerDouble({})
    run(options(scene, tmp_path, "patching.max_cameras=12"), double)
    assert run(options(scene, tmp_path, "patching.max_cameras=12", retrain="p001"), double) == 0
    numbers = {name: [a["n"] for a in patch["attempts"]] for name, patch in patches(tmp_path).items()}
    assert numbers["p001"] == [2]
    assert all(number == [1] for name, number in numbers.items() if name != "p001")


def test_a_run_from_before_a_setting_existed_goes_on_with_its_default(scene: Path, tmp_path: Path) -> None:
    given = options(scene, tmp_path, "patching.max_cameras=12")
    assert run(given, TrainerDouble()) == 0
    written = yaml.safe_load(given.layout.run_yml.read_text())
    del written["settings"]["training"]["antialiased"]
    given.layout.run_yml.write_text(yaml.safe_dump(written))
    assert pipeline.merge(pipeline.RunOptions.of_run(tmp_path, None)) == 0
    written["settings"]["training"]["sh_degree"] = 2
    given.layout.run_yml.write_text(yaml.safe_dump(written))
    with pytest.raises(RunFolderError, match=r"training\.sh_degree 2 -> 1"):
        run(given, TrainerDouble())


def test_a_retrained_patch_is_merged_even_if_the_merge_is_asked_for_later(scene: Path, tmp_path: Path) -> None:
    double = TrainerDouble({})
    run(options(scene, tmp_path), double)
    merged = (tmp_path / "merged" / "splat.ply").stat().st_mtime_ns
    given = options(scene, tmp_path, retrain="all")
    assert pipeline.run(given, stop=threading.Event(), merge=False, trainer=double) == 0
    assert pipeline.status(tmp_path)["merged"]["path"] is None
    assert run(options(scene, tmp_path), double) == 0
    assert (tmp_path / "merged" / "splat.ply").stat().st_mtime_ns > merged


def test_what_comes_after_training_can_be_changed_later_and_is_kept(scene: Path, tmp_path: Path) -> None:
    given = options(scene, tmp_path, "merge.finish=0")
    assert run(given, TrainerDouble()) == 0
    whole = pipeline.status(tmp_path)["merged"]["gaussians"]
    done = cli("merge", tmp_path, "merge.max_distance=0.2")
    assert done.returncode == 0, done.stderr
    assert 0 < (near := pipeline.status(tmp_path)["merged"]["gaussians"]) < whole
    assert pipeline.merge(pipeline.RunOptions.of_run(tmp_path, None)) == 0
    assert pipeline.status(tmp_path)["merged"]["gaussians"] == near
    assert run(given, TrainerDouble()) == 0, "the run's own settings merge it anew, without any training"
    assert pipeline.status(tmp_path)["merged"]["gaussians"] == whole
    assert all(len(patch["attempts"]) == 1 for patch in patches(tmp_path).values())
    refused = cli("merge", tmp_path, "training.iterations=5")
    assert refused.returncode == 2 and "training.iterations=5" in refused.stderr


def test_patches_that_differ_in_exposure_are_named_and_evened_out_when_asked(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = options(scene, tmp_path, "patching.max_cameras=12", "merge.finish=0")
    assert run(given, TrainerDouble()) == 0
    dark = ColorFit(np.full(3, 0.7), np.zeros(3))
    for splat in sorted(tmp_path.glob("attempts/*/01/splat.ply")):
        splats = read_splats(splat)
        splats.scales[:] += np.log(40)  # the double's Gaussians are too small to cover the ground
        write_splats(splat, from_rows(dark.apply(to_rows(splats))) if "p001" in str(splat) else splats)
    capsys.readouterr()
    assert pipeline.merge(pipeline.RunOptions.of_run(tmp_path, None)) == 0
    assert "looks like exposure; merge.match_colors=true evens it out" in capsys.readouterr().err
    merged = pipeline.status(tmp_path)["merged"]
    assert max(one["difference"] for one in merged["details"]["colors"] if "p001" in one["patches"]) > 0.05
    even = pipeline.RunOptions.of_run(tmp_path, None, overrides=["merge.match_colors=true"])
    assert pipeline.merge(even) == 0
    assert "looks like exposure" not in capsys.readouterr().err
    assert pipeline.status(tmp_path)["merged"]["psnr"] > merged["psnr"] + 0.3


def test_what_a_merge_or_a_judgement_cannot_use_is_refused_before_anything_and_stays_off_the_record(
    scene: Path, tmp_path: Path
) -> None:
    assert run(options(scene, tmp_path, "patching.max_cameras=12", "merge.finish=0"), TrainerDouble()) == 0
    record, splat = (tmp_path / "run.yml").read_text(), (tmp_path / "merged" / "splat.ply").stat()
    none = pipeline.RunOptions.of_run(tmp_path, None, overrides=[f"evaluation.lpips_weights={tmp_path}"])
    for do in (pipeline.merge, pipeline.judge):
        with pytest.raises(ConfigError, match="has no LPIPS weights"):
            do(none)
    done = cli("eval", tmp_path, "merge.finish=8")
    assert done.returncode == 2
    assert "'merge.finish=8': of a run's settings, only those of evaluation change here" in done.stderr
    assert (tmp_path / "run.yml").read_text() == record
    assert (tmp_path / "merged" / "splat.ply").stat().st_mtime_ns == splat.st_mtime_ns
    assert pipeline.status(tmp_path)["merged"]["path"]


def test_without_memory_to_compare_exposure_patches_are_merged_unless_it_was_asked_for(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = ["patching.max_cameras=12", "merge.finish=0", "patching.holdout_every=0"]
    assert run(options(scene, tmp_path, *whole), TrainerDouble()) == 0

    def full(*args: Any, **more: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(raster, "rasterization", full)
    capsys.readouterr()
    assert pipeline.merge(pipeline.RunOptions.of_run(tmp_path, None)) == 0
    assert "exposure of patches is not compared: cpu: not enough GPU memory to render" in capsys.readouterr().err
    with pytest.raises(EnvironmentProblem, match="not enough GPU memory"):
        pipeline.merge(pipeline.RunOptions.of_run(tmp_path, None, overrides=["merge.match_colors=true"]))
    assert pipeline.status(tmp_path)["merged"]["gaussians"] > 0, "the earlier one is still there"


def test_the_p7_story_dies_at_the_first_rungs_and_trains_at_the_third(scene: Path, tmp_path: Path) -> None:
    double = TrainerDouble({"p001": {"fails": "lfs_adam", "below": 0.3}})
    assert run(options(scene, tmp_path, "patching.max_cameras=12", "init_scaling.fixed=0.1"), double) == 0
    story = [(a["init_scaling"], a["class"]) for a in patches(tmp_path)["p001"]["attempts"]]
    assert story == [(0.1, "launch_config"), (0.2, "launch_config"), (0.3, None)]
    line = patches(tmp_path)["p001"]["attempts"][0]["line"]
    assert "adam_step_cu kernel launch failed: invalid configuration argument" in line


def test_a_patch_that_cannot_be_trained_costs_only_itself(scene: Path, tmp_path: Path) -> None:
    double = TrainerDouble({"p000": {"fails": "lfs_adam"}})
    assert run(options(scene, tmp_path, "patching.max_cameras=12"), double) == 3
    status = patches(tmp_path)
    assert status["p000"]["outcome"] == "failed"
    assert "invalid configuration argument" in status["p000"]["reason"]
    assert all(patch["outcome"] == "trained" for name, patch in status.items() if name != "p000")
    assert pipeline.status(tmp_path)["merged"]["gaussians"] > 0


def test_when_every_patch_fails_the_exit_code_says_so_and_nothing_is_merged(scene: Path, tmp_path: Path) -> None:
    double = TrainerDouble({"default": {"fails": "lfs_adam"}})
    assert run(options(scene, tmp_path), double) == 4
    assert pipeline.status(tmp_path)["merged"]["path"] is None


def test_a_failed_patch_is_tried_anew_by_the_next_run(scene: Path, tmp_path: Path) -> None:
    given = options(scene, tmp_path)
    run(given, TrainerDouble({"default": {"fails": "lfs_adam"}}))
    assert pipeline.status(tmp_path)["exit_code"] == 4
    assert run(given, TrainerDouble({})) == 0
    assert pipeline.status(tmp_path)["exit_code"] == 0


def test_stopping_keeps_the_attempt_and_the_next_run_goes_on_with_it(scene: Path, tmp_path: Path) -> None:
    stop = threading.Event()
    given = options(scene, tmp_path)

    def stop_in_training() -> None:
        while not list(tmp_path.glob("attempts/p000/01/events.jsonl")):
            time.sleep(0.05)
        stop.set()

    threading.Thread(target=stop_in_training, daemon=True).start()
    with pytest.raises(Interrupted, match="continue with"):
        pipeline.run(given, stop=stop, trainer=TrainerDouble({"default": {"step_s": 2.0}}))
    assert patches(tmp_path)["p000"]["outcome"] == "interrupted"
    assert run(given, TrainerDouble({})) == 0
    assert [a["n"] for a in patches(tmp_path)["p000"]["attempts"]] == [1]


def test_two_runs_on_one_folder_exclude_each_other_with_a_sentence(scene: Path, tmp_path: Path) -> None:
    stop = threading.Event()
    slow = TrainerDouble({"default": {"step_s": 0.5}})

    def first() -> None:
        with pytest.raises(Interrupted):
            pipeline.run(options(scene, tmp_path), stop=stop, trainer=slow)

    thread = threading.Thread(target=first)
    thread.start()
    while not (tmp_path / "attempts").exists():
        time.sleep(0.05)
    try:
        with pytest.raises(RunFolderError, match=f"in use by another run .process {os.getpid()} "):
            run(options(scene, tmp_path), slow)
    finally:
        stop.set()
        thread.join()


def test_other_settings_need_another_folder_and_the_difference_is_named(scene: Path, tmp_path: Path) -> None:
    run(options(scene, tmp_path), TrainerDouble({}))
    with pytest.raises(RunFolderError, match="training.iterations 60 -> 70"):
        run(options(scene, tmp_path, "training.iterations=70"), TrainerDouble({}))
    assert run(options(scene, tmp_path, "limits.silence_s=99"), TrainerDouble({})) == 0


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_the_units_of_a_scene_change_neither_patches_nor_rungs_nor_quality(tmp_path: Path, factor: float) -> None:
    base = synthetic_scene(n_cameras=18, n_points=300)
    results = []
    for name, one in (("base", base), ("scaled", scaled(base, factor))):
        write_scene(tmp_path / name, one)
        out = tmp_path / f"{name}-run"
        assert run(options(tmp_path / name, out, "patching.max_cameras=10", "training.iterations=100")) == 0
        status = pipeline.status(out)
        rungs = [(p["id"], p["cameras"], p["points"], p["init_scaling"]) for p in status["patches"]]
        results.append((rungs, status["merged"]["psnr"]))
    assert results[0][0] == results[1][0]
    assert results[0][1] == pytest.approx(results[1][1], abs=0.3)


def test_killing_splatpipe_at_any_time_loses_nothing_that_was_trained(scene: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "splatpipe.cli", "run", str(scene), "--out", str(tmp_path / "run"), *FAST]
    command += ["patching.max_cameras=12", "training.iterations=150"]
    for delay in (2.0, 4.0, 6.0):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with_children: list[psutil.Process] = []
        deadline = time.monotonic() + delay
        while time.monotonic() < deadline and process.poll() is None:
            with_children = psutil.Process(process.pid).children(recursive=True) or with_children
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        psutil.wait_procs(with_children, timeout=10)
        assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in with_children)
    splats = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("attempts/*/*/splat.ply")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in splats} == splats
    assert pipeline.status(tmp_path / "run")["merged"]["gaussians"] > 0
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_ctrl_c_stops_cleanly_and_says_how_to_continue(scene: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "splatpipe.cli", "run", str(scene), "--out", str(tmp_path / "run"), *FAST]
    process = subprocess.Popen(
        [*command, "training.iterations=100000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    events = tmp_path / "run" / "attempts" / "p000" / "01" / "events.jsonl"
    while not (events.exists() and '"step"' in events.read_text()):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "continue with: splatpipe run" in errors
    assert "Traceback" not in errors
    assert list(events.parent.glob("checkpoints/*.pt"))


def test_the_same_command_twice_gives_the_same_splat(scene: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run(options(scene, tmp_path / name, "training.threads=1")) == 0
    one, two = (np.fromfile(tmp_path / name / "merged" / "splat.ply", np.uint8) for name in ("a", "b"))
    assert np.array_equal(one, two)
