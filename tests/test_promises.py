"""The promises of docs/reliability.md: the one about checkpoints, and that every test it names is there."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
from scenes import synthetic_scene, write_scene

from splatpipe import pipeline
from splatpipe.trainers.gsplat_mcmc import GsplatTrainer
from splatpipe.trainers.process import RECORD
from splatpipe.trainers.supervise import run_attempt

EVERY = 20
SETTINGS = [
    *("training.iterations=1500", f"training.checkpoint_every={EVERY}", "training.max_cap=200", "training.device=cpu"),
    *("training.sh_degree=0", "init_scaling.fixed=0.4", "health.every=0", "patching.holdout_every=0"),
]


@pytest.mark.timeout(600)
def test_a_kill_costs_at_most_the_steps_between_two_checkpoints(tmp_path: Path) -> None:
    write_scene(tmp_path / "scene", synthetic_scene(n_cameras=8, n_points=120))
    options = pipeline.RunOptions.resolve(tmp_path / "scene", tmp_path / "run", None, SETTINGS, None, None)
    with pipeline._prepared(options) as (plan, _):
        request = plan.patches[0].request(options.layout, 1, options.config, "gsplat")

    def kill_late(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] >= 3 * EVERY - 2:
            record = json.loads((request.out / RECORD).read_text())
            for child in psutil.Process(record["pid"]).children():
                os.kill(child.pid, signal.SIGKILL)

    killed = run_attempt(GsplatTrainer(), request, on_event=kill_late, stop=threading.Event())
    assert killed.exit_status == -signal.SIGKILL and killed.last_step >= 3 * EVERY - 2
    second = run_attempt(GsplatTrainer(), request, on_event=lambda event: None, stop=threading.Event())
    assert second.failure is None
    assert killed.last_step - second.health["resumed_from"] <= EVERY


def test_every_promise_names_a_test_that_is_there(repository: Path) -> None:
    text = (repository / "docs" / "reliability.md").read_text()
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", text)
    assert len(named) > 20
    missing = [f"{file}::{test}" for file, test in named if f"def {test}(" not in (repository / file).read_text()]
    assert not missing
