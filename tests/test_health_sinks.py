"""Health signals also go to TensorBoard and W&B, by names that read well; a sink that breaks costs no training."""

from __future__ import annotations

import importlib.util
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from doubles.make_request import make_request
from doubles.trainer_double import TrainerDouble

from splatpipe.errors import ConfigError
from splatpipe.health.settings import HealthSettings
from splatpipe.health.sinks import Sinks, check_sinks, scalars
from splatpipe.trainers.supervise import run_attempt

HEALTH = {
    "t": 1.0, "event": "health", "step": 100, "loss": 0.2, "psnr": None, "alive_share": 0.9,
    "sigmas": [0.1, 0.2, 0.3, 0.4, None], "gradients": {"means": 0.01, "sh1": None}, "updates": {"means": 1e-4},
    "quiet": {"sh1": 0.5},
}  # fmt: skip


def test_signals_have_the_names_of_their_groups_and_unknown_values_are_left_out() -> None:
    assert scalars(HEALTH) == {
        "health/loss": 0.2, "health/alive_share": 0.9, "health/sigma_q05": 0.1, "health/sigma_median": 0.2,
        "health/sigma_q95": 0.3, "health/sigma_q99": 0.4, "grad_norm/means": 0.01, "update_ratio/means": 1e-4,
        "no_gradient_share/sh1": 0.5,
    }  # fmt: skip


def read_back(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_an_attempt_writes_event_files_that_tensorboard_reads(tmp_path: Path) -> None:
    request = replace(make_request(tmp_path), health=HealthSettings(sinks=("tensorboard",)))
    told: list[dict[str, Any]] = []
    attempt = run_attempt(TrainerDouble({}), request, on_event=told.append, stop=threading.Event())
    assert attempt.failure is None and not attempt.warnings
    found = read_back(request.out / "tensorboard")
    steps = [(e["step"], e["loss"]) for e in told if e["event"] == "step"]
    assert [step for step, _ in found["train/loss"]] == [step for step, _ in steps]
    assert [loss for _, loss in found["train/loss"]] == pytest.approx([loss for _, loss in steps])
    assert found["eval/psnr"] == [(steps[-1][0], 25.0)]


def test_a_sink_that_breaks_is_told_of_once_and_ends_no_training(tmp_path: Path) -> None:
    request = replace(make_request(tmp_path), health=HealthSettings(sinks=("tensorboard",)))
    request.out.mkdir(parents=True)
    (request.out / "tensorboard").write_text("a file where the folder should be")
    attempt = run_attempt(TrainerDouble({}), request, on_event=lambda e: None, stop=threading.Event())
    assert attempt.failure is None
    assert [note for note in attempt.warnings if note.startswith("health.sinks: tensorboard gave up")] != []
    assert len(attempt.warnings) == 1


def test_a_missing_package_is_one_sentence_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ConfigError, match=r"splatpipe\[wandb\]"):
        check_sinks(("wandb",))


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="the extra wandb is not installed")
def test_wandb_writes_an_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    notes: list[str] = []
    sinks = Sinks(("wandb",), tmp_path, "p000/01", notes.append)
    sinks.add(HEALTH)
    sinks.close()
    assert notes == []
    assert list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
