"""Odd surroundings: streams that are closed or that nobody reads, another encoding, too little memory for anything."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from textwrap import dedent

import pytest
from scenes import synthetic_scene, write_scene

from splatpipe.errors import EnvironmentProblem
from splatpipe.ledger import Ledger

SETTINGS = ["training.iterations=60", "training.refine_start=10", "training.device=cpu", "patching.holdout_every=0"]
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of Linux")


def command(repository: Path, scene: Path, out: Path) -> list[str]:
    double = repository / "tests" / "doubles" / "cli_with_double.py"
    return [sys.executable, str(double), "run", str(scene), "--out", str(out), *SETTINGS]


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    write_scene(tmp_path / "scene", synthetic_scene(n_cameras=9, n_points=80))
    return tmp_path / "scene"


def test_a_run_whose_reader_has_gone_finishes(repository: Path, scene: Path, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(command(repository, scene, tmp_path / "run"), stdout=writing, stderr=writing, check=False)
    finally:
        os.close(writing)
    assert done.returncode == 0
    with closing(Ledger(tmp_path / "run" / "ledger.sqlite", read_only=True)) as ledger:
        assert ledger.status()["exit_code"] == 0


def test_a_signal_while_a_line_waits_for_its_reader_is_told_of_and_obeyed() -> None:
    script = """
        import os, signal, sys
        from splatpipe import surroundings
        from splatpipe.console import say

        surroundings.prepare_streams()
        write, told = os.write, []

        def interrupted(number, data):
            if not told:
                told.append(data)
                signal.raise_signal(signal.SIGTERM)
            return write(number, data)

        surroundings.os.write = interrupted
        signal.signal(signal.SIGTERM, lambda number, frame: say("stopping"))
        say("a line")
        say("the next")
    """
    done = subprocess.run([sys.executable, "-c", dedent(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, sorted(done.stderr.splitlines())) == (0, ["a line", "stopping", "the next"])


def test_a_run_without_standard_streams_in_an_old_locale_finishes(
    repository: Path, scene: Path, tmp_path: Path
) -> None:
    odd = tmp_path / "Straße\nund Hof"
    odd.mkdir()
    scene = scene.rename(odd / "scene")
    bare = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command(repository, scene, odd / "run")]
    assert subprocess.run(closed, env={**bare, "LC_ALL": "C"}, check=False).returncode == 0
    with closing(Ledger(odd / "run" / "ledger.sqlite", read_only=True)) as ledger:
        assert [patch["outcome"] for patch in ledger.status()["patches"]] == ["trained"]


def test_a_word_that_the_terminal_cannot_write_is_written_some_way(scene: Path, tmp_path: Path) -> None:
    scene = scene.rename(tmp_path / "Straße")
    inspect = [sys.executable, "-m", "splatpipe.cli", "inspect", str(scene)]
    done = subprocess.run(inspect, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"Stra\\xdfe" in done.stdout


@linux_only
def test_a_folder_whose_name_is_no_utf_8_is_a_sentence(scene: Path) -> None:
    odd = scene.rename(Path(os.fsdecode(os.fsencode(scene.parent) + b"/Stra\xdfe")))
    done = subprocess.run([sys.executable, "-m", "splatpipe.cli", "split", odd], capture_output=True, check=False)
    assert done.returncode == 2
    assert b"Stra\\udcdfe: its name is no UTF-8" in done.stderr and len(done.stderr.splitlines()) == 1


@linux_only
def test_too_few_addresses_for_the_libraries_are_a_sentence(scene: Path) -> None:
    limited = ["sh", "-c", 'ulimit -v 300000; exec "$@"', "sh", sys.executable, "-m", "splatpipe.cli", "inspect"]
    done = subprocess.run([*limited, str(scene)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "0.3 GB of addresses (ulimit -v)" in done.stderr and len(done.stderr.splitlines()) == 1


@linux_only
def test_a_process_that_may_start_no_thread_is_a_sentence() -> None:
    script = """
        import contextlib, os, resource, sys
        from splatpipe import cli
        with contextlib.suppress(OSError):
            os.setuid(65534)  # root is not bound by the limit
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        sys.argv = ["splatpipe", "--version"]
        cli.main()
    """
    done = subprocess.run([sys.executable, "-c", dedent(script)], capture_output=True, text=True, check=False)
    assert done.returncode == EnvironmentProblem.exit_code
    assert done.stderr.startswith("splatpipe: no further process or thread can be started; raise the limit (ulimit -u")
    assert done.stderr.count("\n") == 1


@linux_only
def test_too_few_open_files_are_a_sentence_wherever_they_run_out(scene: Path) -> None:
    script = f"""
        import contextlib, resource, sys
        from splatpipe import cli, pipeline
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        for limit in range(3, 20):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
            sys.argv = ["splatpipe", "inspect", {str(scene)!r}]
            with contextlib.suppress(SystemExit):
                cli.main()
    """
    done = subprocess.run([sys.executable, "-c", dedent(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "camera models" in done.stdout
    lines = done.stderr.splitlines()
    assert lines and all(line.startswith("splatpipe: ") and "Too many open files" in line for line in lines)
    assert "bug" not in done.stderr
