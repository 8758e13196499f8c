"""Disks that fail: a few of the cases of benchmarks/faults.py, whose whole table is in docs/reliability.md."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from doubles.trainer_double import TrainerDouble
from scenes import synthetic_scene, write_scene

from splatpipe import cli, pipeline
from splatpipe.entries import Outcome
from splatpipe.errors import SplatpipeError
from splatpipe.files import atomic_path, write_text
from splatpipe.ledger import Ledger

SETTINGS = ["training.iterations=60", "training.refine_start=10", "training.device=cpu", "patching.holdout_every=0"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not sys.platform.startswith("linux") or not shutil.which("cc"), reason="needs Linux and cc")
def test_a_call_that_fails_loses_nothing_and_the_next_run_finishes(repository: Path, tmp_path: Path) -> None:
    script = [sys.executable, str(repository / "benchmarks" / "faults.py"), "--json", str(tmp_path / "table.json")]
    chosen = ["--calls", "write,rename,pwrite", "--files", r"attempts/p001/01/\.?attempt|ledger", "--limit", "5"]
    done = subprocess.run([*script, *chosen], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    cases = json.loads((tmp_path / "table.json").read_text())["cases"]
    assert sum(case["where"] != "never reached" for case in cases) >= 3
    assert all(case["rerun"] == 0 for case in cases)


def test_a_rename_that_a_signal_interrupts_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = Path.replace, []

    def interrupted(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 1:
            raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    write_text(tmp_path / "a.txt", "whole")
    assert (tmp_path / "a.txt").read_text() == "whole" and len(calls) == 2


def test_an_error_without_a_name_gets_that_of_the_file_that_was_being_written(tmp_path: Path) -> None:
    with pytest.raises(OSError) as error, atomic_path(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert error.value.filename == str(tmp_path / "a.txt")


def test_a_patch_whose_success_was_noted_but_not_its_outcome_is_not_trained_again(tmp_path: Path) -> None:
    write_scene(tmp_path / "scene", synthetic_scene(n_cameras=9, n_points=80))
    options = pipeline.RunOptions.resolve(tmp_path / "scene", tmp_path / "run", None, SETTINGS, None, None)
    assert pipeline.run(options, stop=threading.Event(), trainer=TrainerDouble({"default": {}}), merge=False) == 0
    with Ledger(options.layout.ledger) as ledger:
        ledger.set_outcome("p000", Outcome.RUNNING)

    class Untouchable(TrainerDouble):
        def command(self, request: object) -> object:
            raise AssertionError("trained again")

    assert pipeline.run(options, stop=threading.Event(), trainer=Untouchable(), merge=False) == 0


def test_files_that_may_not_grow_are_a_sentence_and_exit_code_2(tmp_path: Path) -> None:
    write_scene(tmp_path / "scene", synthetic_scene(n_cameras=9, n_points=80))
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)); import signal; "
    limit += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from splatpipe.cli import main; main()"
    command = [sys.executable, "-c", limit, "split", str(tmp_path / "scene"), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "File too large" in done.stderr and str(tmp_path / "run") in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_in_place_of_the_run_folder_is_a_sentence(tmp_path: Path) -> None:
    write_scene(tmp_path / "scene", synthetic_scene(n_cameras=9, n_points=80))
    (tmp_path / "run").write_text("no folder")
    options = pipeline.RunOptions.resolve(tmp_path / "scene", tmp_path / "run", None, SETTINGS, None, None)
    with pytest.raises(SplatpipeError, match=r"cannot write to the run folder .*; make it a folder that can be"):
        pipeline.run(options, stop=threading.Event(), trainer=TrainerDouble({"default": {}}))


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EROFS", "EIO", "EACCES"])
def test_each_way_in_which_a_disk_refuses_is_a_sentence_that_says_what_to_do(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scene(tmp_path / "scene", synthetic_scene(n_cameras=9, n_points=80))
    number = getattr(errno, name)

    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr(sys, "argv", ["splatpipe", "split", str(tmp_path / "scene"), "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert os.strerror(number) in said and str(tmp_path / "run") in said
    assert "bug" not in said
