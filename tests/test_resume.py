"""A new attempt goes on from the last checkpoint of one that was killed. The child is real, and so is the signal."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
from scenes import synthetic_scene, write_scene

from splatpipe import pipeline
from splatpipe.explain import explain
from splatpipe.failures.classes import FailureClass
from splatpipe.layout import RunLayout
from splatpipe.policy.ladder import next_request
from splatpipe.policy.remedies import RetrySettings
from splatpipe.trainers.base import Attempt, TrainRequest
from splatpipe.trainers.gsplat_mcmc import GsplatTrainer
from splatpipe.trainers.process import RECORD
from splatpipe.trainers.supervise import run_attempt

SETTINGS = [
    *("training.iterations=900", "training.checkpoint_every=50", "training.max_cap=300", "training.device=cpu"),
    *("training.sh_degree=0", "init_scaling.fixed=0.4", "health.every=0", "patching.holdout_every=0"),
]


def split(folder: Path) -> tuple[RunLayout, TrainRequest]:
    """A small scene as one patch, and the request of its first attempt."""
    write_scene(folder / "scene", synthetic_scene(n_cameras=8, n_points=120))
    layout = RunLayout(folder / "run")
    options = pipeline.RunOptions.resolve(folder / "scene", layout.root, None, SETTINGS, None, None)
    with pipeline._prepared(options) as (plan, _):
        return layout, plan.patches[0].request(layout, 1, options.config, "gsplat")


class Killer:
    """Sends SIGKILL to the child of an attempt when its first checkpoint is on disk."""

    def __init__(self, request: TrainRequest) -> None:
        self.request = request
        self.events: list[dict[str, Any]] = []

    def __call__(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        if event["event"] == "checkpoint":
            record = json.loads((self.request.out / RECORD).read_text())
            for child in psutil.Process(record["pid"]).children():
                os.kill(child.pid, signal.SIGKILL)


def train(request: TrainRequest, on_event: Any) -> Attempt:
    return run_attempt(GsplatTrainer(), request, on_event=on_event, stop=threading.Event())


@pytest.mark.timeout(600)
def test_what_was_killed_is_not_trained_again(tmp_path: Path) -> None:
    layout, request = split(tmp_path)
    killed = train(request, Killer(request))
    assert (killed.failure, killed.exit_status) == (FailureClass.KILLED, -signal.SIGKILL)
    reached = max(int(path.stem.removeprefix("step_")) for path in request.files.checkpoints.glob("step_*.pt"))
    assert 50 <= reached < 900

    decision = next_request(request, [killed], RetrySettings())
    assert decision.request is not None
    assert (decision.request.attempt, decision.request.continues) == (2, (1,))
    events: list[dict[str, Any]] = []
    second = train(decision.request, events.append)
    assert second.failure is None
    assert (second.health["resumed_from"], second.health["resumed_attempt"]) == (reached, 1)
    assert min(event["step"] for event in events if event["event"] == "step") > reached

    # Whoever begins anew (--retrain) is not given those steps.
    anew = TrainRequest.from_json(request.to_json() | {"attempt": 3, "out": str(layout.attempt("p000", 3).root)})
    killer = Killer(anew)
    train(anew, killer)
    assert next(event for event in killer.events if event["event"] == "start")["resumed_from"] is None


@pytest.mark.timeout(600)
def test_explain_says_from_where_an_attempt_went_on(tmp_path: Path) -> None:
    """The whole run: somebody kills the trainer once, the run ends well and tells of it."""
    write_scene(tmp_path / "scene", synthetic_scene(n_cameras=8, n_points=120))
    layout = RunLayout(tmp_path / "run")
    options = pipeline.RunOptions.resolve(tmp_path / "scene", layout.root, None, SETTINGS, None, None)
    first = layout.attempt("p000", 1)
    done = threading.Event()

    def kill_once() -> None:
        while not done.wait(0.01):
            if list(first.checkpoints.glob("step_*.pt")) and (first.root / RECORD).is_file():
                record = json.loads((first.root / RECORD).read_text())
                for child in psutil.Process(record["pid"]).children():
                    os.kill(child.pid, signal.SIGKILL)
                return

    killer = threading.Thread(target=kill_once)
    killer.start()
    try:
        assert pipeline.run(options, stop=threading.Event(), merge=False) == 0
    finally:
        done.set()
        killer.join()
    attempts = pipeline.status(layout.root)["patches"][0]["attempts"]
    assert [(a["class"], a["remedy"]) for a in attempts] == [("killed", None), (None, "unchanged")]
    step = attempts[1]["health"]["resumed_from"]
    assert f"  It went on from step {step} of attempt 1." in explain(layout.root, "p000")["story"]
