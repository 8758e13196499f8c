"""A stop that comes before anything trains: at once, with the exit code for it, and nothing half done."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from doubles.trainer_double import TrainerDouble
from scenes import synthetic_scene, write_scene

import splatpipe
from splatpipe import pipeline
from splatpipe.errors import Interrupted
from splatpipe.scene.colmap import read_scene
from splatpipe.scene.undistort import undistort
from splatpipe.stopping import WHILE_PLANNING

SETTINGS = [
    "training.device=cpu",
    "training.max_cap=200",
    "training.iterations=60",
    "patching.max_cameras=5",
    "patching.holdout_every=0",
]


class Later(threading.Event):
    """Set when it is asked for the `after`-th time."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._left = after

    def is_set(self) -> bool:
        self._left -= 1
        if self._left <= 0:
            self.set()
        return super().is_set()


def test_sigterm_while_splatpipe_is_still_importing_leaves_with_143(tmp_path: Path) -> None:
    write_scene(tmp_path / "scene", synthetic_scene(n_cameras=6, n_points=60))
    script = f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(splatpipe.__file__).parents[1])!r})
        from splatpipe import cli

        class Impatient:
            def find_spec(self, name, path=None, target=None):
                if name == "splatpipe.pipeline":
                    os.kill(os.getpid(), signal.SIGTERM)

        sys.meta_path.insert(0, Impatient())
        sys.argv = ["splatpipe", "run", "--batch", {str(tmp_path / "scene")!r}]
        cli.main()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (143, "stopped\n")
    assert not (tmp_path / "scene" / "splatpipe").exists()


@pytest.mark.parametrize(
    ("command", "number"), [("run", signal.SIGINT), ("split", signal.SIGTERM), ("inspect", signal.SIGINT)]
)
def test_a_stop_while_a_large_scene_is_read_does_not_wait_for_the_end_of_that(
    tmp_path: Path, command: str, number: signal.Signals
) -> None:
    write_scene(tmp_path / "scene", synthetic_scene(n_cameras=6, n_points=60))
    script = f"""
        import sys, time
        sys.path.insert(0, {str(Path(splatpipe.__file__).parents[1])!r})
        from splatpipe import cli, pipeline

        def takes_an_hour(*arguments):
            print("reading", flush=True)
            time.sleep(3600)

        pipeline.read_scene = takes_an_hour
        sys.argv = ["splatpipe", {command!r}, {str(tmp_path / "scene")!r}, "training.device=cpu"]
        cli.main()
    """
    python = [sys.executable, "-c", textwrap.dedent(script)]
    process = subprocess.Popen(python, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "reading\n"
    process.send_signal(number)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 128 + number
    assert errors.endswith(f"stopping\n{WHILE_PLANNING}\n")
    assert not (tmp_path / "scene" / "splatpipe").exists()


@pytest.mark.parametrize("after", [1, 2, 4, 5])
def test_a_stop_while_patches_are_planned_or_written_is_obeyed_and_the_next_run_goes_on(
    tmp_path: Path, after: int
) -> None:
    write_scene(tmp_path / "scene", synthetic_scene(n_cameras=9, n_points=150))
    options = pipeline.RunOptions.resolve(tmp_path / "scene", tmp_path / "run", None, SETTINGS, None, None)
    with pytest.raises(Interrupted, match=WHILE_PLANNING):
        pipeline.run(options, stop=Later(after), trainer=TrainerDouble({}))
    assert not options.layout.ledger.exists() and not list(tmp_path.glob("run/attempts/*"))
    if after == 4:
        assert pipeline.run(options, stop=threading.Event(), trainer=TrainerDouble({})) == 0
        assert len(list(tmp_path.glob("run/attempts/*"))) == 2


def test_a_stop_while_images_are_undistorted_leaves_nothing_behind(tmp_path: Path) -> None:
    write_scene(tmp_path, synthetic_scene(4, 50), camera_model="SIMPLE_RADIAL")
    scene, cache = read_scene(tmp_path).scene, tmp_path / "run" / "scene"

    def stopped() -> None:
        raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        undistort(scene, cache, check=stopped)
    assert not list((tmp_path / "run").iterdir())
    assert undistort(scene, cache).n_cameras == 4
