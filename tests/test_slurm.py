"""Runs through a real Slurm where there is one, and through a double of it; the batch script needs neither."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from doubles import slurm_double
from doubles.trainer_double import TrainerDouble
from scenes import synthetic_scene, write_scene
from typer.testing import CliRunner

from splatpipe import pipeline
from splatpipe.cli import app
from splatpipe.errors import ConfigError, Interrupted
from splatpipe.executors.sbatch import NodeShare, clock, sbatch_script
from splatpipe.executors.settings import ExecutorSettings
from splatpipe.files import read_json

SETTINGS = (
    *("training.iterations=60", "training.max_cap=500", "training.device=cpu", "patching.max_cameras=12"),
    *("limits.grace_s=5", "retry.history=false", "probe.mode=never"),
    *("executor.kind=slurm", "executor.slurm_cpus=1", "executor.slurm_hours=0.5"),
)


def slurm_answers() -> bool:
    found = shutil.which("sinfo")
    return bool(found) and subprocess.run([found, "-h"], capture_output=True, timeout=60, check=False).returncode == 0


slurm = [
    pytest.mark.skipif(not slurm_answers(), reason="no Slurm answers here (docs/cluster.md says how to begin one)"),
    pytest.mark.timeout(600),
]


def needs_slurm(test: Any) -> Any:
    for mark in slurm:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "field"
    write_scene(folder, synthetic_scene(n_cameras=25, n_points=400))
    return folder


@pytest.fixture(autouse=True)
def workers_find_the_double(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (repository, repository / "tests"))))


@pytest.fixture
def double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The queue of a double of Slurm, whose commands come first on PATH."""
    queue = tmp_path / "queue"
    queue.mkdir()
    monkeypatch.setenv("PATH", f"{slurm_double.install(tmp_path / 'slurm')}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_DOUBLE", str(queue))
    return queue


def run(scene: Path, out: Path, behaviours: dict[str, Any], stop: threading.Event | None = None) -> int:
    options = pipeline.RunOptions.resolve(scene, out, None, SETTINGS, None, None)
    trainer = TrainerDouble(behaviours)
    return pipeline.run(options, stop=stop or threading.Event(), merge=False, trainer=trainer)


def patches(out: Path) -> dict[str, dict[str, Any]]:
    return {patch["id"]: patch for patch in pipeline.status(out)["patches"]}


def job_in_training(out: Path) -> str:
    """Wait until p000 trains; its job."""
    events = out / "attempts" / "p000" / "01" / "events.jsonl"
    while not (events.exists() and '"step"' in events.read_text()):
        time.sleep(0.1)
    return str(read_json(events.parent / "job.json")["slurm"])


def test_on_a_double_of_slurm_attempts_are_jobs_and_a_failure_is_tried_again(
    scene: Path, tmp_path: Path, double: Path
) -> None:
    pytest.importorskip("submitit")
    assert run(scene, tmp_path / "run", {"p001": {"fails": "lfs_adam", "below": 0.2}}) == 0
    stories = {name: [a["class"] for a in patch["attempts"]] for name, patch in patches(tmp_path / "run").items()}
    assert stories == {"p000": [None], "p001": ["launch_config", None]}
    assert not list((tmp_path / "run").glob("attempts/*/*/job.json"))


def test_on_a_double_of_slurm_a_preempted_job_goes_on_under_its_number(
    scene: Path, tmp_path: Path, double: Path
) -> None:
    pytest.importorskip("submitit")
    out, jobs = tmp_path / "run", []

    def preempt() -> None:
        jobs.append(job_in_training(out))
        subprocess.run(["scancel", "--signal=USR2", jobs[0]], check=True)

    thread = threading.Thread(target=preempt, daemon=True)
    thread.start()
    assert run(scene, out, {"default": {"step_s": 0.5}}) == 0
    thread.join()
    (attempt,) = patches(out)["p000"]["attempts"]
    assert (attempt["n"], attempt["class"]) == (1, None)
    events = (out / "attempts" / "p000" / "01" / "events.jsonl").read_text()
    assert events.count('"event": "start"') == 2 and '"resumed_from"' in events


def test_the_double_of_slurm_refuses_what_sbatch_would(tmp_path: Path, double: Path) -> None:
    script = tmp_path / "job.sh"
    wrong = {"--gpu=1": "unrecognized option", "--time=0": "invalid value", "--requeue": "is missing"}
    for line, complaint in wrong.items():
        script.write_text(f"#!/bin/bash\n#SBATCH {line}\ntrue\n")
        done = subprocess.run(["sbatch", str(script)], capture_output=True, text=True, check=False)
        assert done.returncode == 1 and complaint in done.stderr


@needs_slurm
def test_attempts_are_jobs_and_a_failure_is_tried_again_in_another(scene: Path, tmp_path: Path) -> None:
    assert run(scene, tmp_path, {"p001": {"fails": "lfs_adam", "below": 0.2}}) == 0
    stories = {name: [a["class"] for a in patch["attempts"]] for name, patch in patches(tmp_path).items()}
    assert stories == {"p000": [None], "p001": ["launch_config", None]}
    assert not list(tmp_path.glob("attempts/*/*/job.json"))


@needs_slurm
def test_a_job_that_is_cancelled_from_outside_goes_on_in_another(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def cancel() -> None:
        subprocess.run(["scancel", "--signal=KILL", job_in_training(tmp_path)], check=True)

    threading.Thread(target=cancel, daemon=True).start()
    assert run(scene, tmp_path, {"default": {"step_s": 0.5}}) == 0
    (attempt,) = patches(tmp_path)["p000"]["attempts"]
    assert (attempt["n"], attempt["class"], attempt["interruptions"]) == (1, None, 1)
    assert "it goes on from its last checkpoint" in capsys.readouterr().err


@needs_slurm
def test_a_stop_ends_running_and_waiting_jobs(scene: Path, tmp_path: Path) -> None:
    stop = threading.Event()

    def ask() -> None:
        job_in_training(tmp_path)
        stop.set()

    threading.Thread(target=ask, daemon=True).start()
    with pytest.raises(Interrupted):
        run(scene, tmp_path, {"default": {"step_s": 1.0}}, stop)
    assert {patch["outcome"] for patch in patches(tmp_path).values()} == {"interrupted"}
    assert run(scene, tmp_path, {}) == 0


@needs_slurm
def test_jobs_of_a_killed_driver_are_ended_before_their_patches_go_on(scene: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code = f"import test_slurm as t; from pathlib import Path as P; t.run(P({str(scene)!r}), P({str(out)!r}), " + (
        "{'default': {'step_s': 3.0}})"
    )
    driver = subprocess.Popen([sys.executable, "-c", code])
    job = job_in_training(out)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert run(scene, out, {}) == 0
    still = subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True, check=False)
    assert still.stdout.strip() in ("", "CANCELLED", "COMPLETING")
    assert [a["n"] for a in patches(out)["p000"]["attempts"]] == [1]


def test_the_script_gives_python_the_signal_and_the_job_back_to_the_queue(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["slurm-script", str(scene), "training.iterations=100", "--out", str(tmp_path / "a run"), "--gpus", "2"]
    settings = ["executor.slurm_partition=long", "executor.slurm_hours=36", "limits.grace_s=30"]
    monkeypatch.chdir(tmp_path)  # not where the checkout's settings would be found
    done = CliRunner().invoke(app, [*arguments, *settings, "--chain", "3"])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0] == "#!/bin/bash"
    wanted = ["signal=B:TERM@120", "requeue", "gres=gpu:2", "cpus-per-task=16", "partition=long", "time=1-12:00:00"]
    assert {f"#SBATCH --{option}" for option in [*wanted, "array=1-3%1", "open-mode=append"]} <= set(lines)
    assert lines[-1].startswith(f"exec {sys.executable} -m splatpipe.cli run --batch {scene}")
    assert f"--out '{tmp_path / 'a run'}'" in lines[-1]
    assert subprocess.run(["bash", "-n"], input=done.output, text=True, check=False).returncode == 0


def test_a_value_that_would_break_out_of_its_directive_is_refused() -> None:
    settings = ExecutorSettings(slurm_partition="gpu\n#SBATCH --uid=0")
    with pytest.raises(ConfigError, match="partition"):
        sbatch_script(["true"], "name", settings, NodeShare(), 30)


def test_hours_become_slurms_notation() -> None:
    assert [clock(hours) for hours in (0.001, 1.5, 24, 100)] == ["0-00:01:00", "0-01:30:00", "1-00:00:00", "4-04:00:00"]
