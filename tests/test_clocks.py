"""Clocks that are set while splatpipe runs do no harm: waiting uses another clock, time stamps only inform."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from doubles.make_request import make_request
from doubles.trainer_double import TrainerDouble

from splatpipe.trainers import process, supervise


@pytest.mark.parametrize("jump_s", [-86_400.0, 86_400.0])
def test_an_attempt_whose_clock_jumps_at_every_look_trains_and_took_as_long_as_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    looks = itertools.count()
    jumping = SimpleNamespace(
        time=lambda: time.time() + jump_s * next(looks), monotonic=time.monotonic, sleep=time.sleep
    )
    monkeypatch.setattr(supervise, "time", jumping)
    began = time.monotonic()
    attempt = supervise.run_attempt(
        TrainerDouble({"default": {"step_s": 0.02}}),
        make_request(tmp_path),
        on_event=lambda event: None,
        stop=threading.Event(),
    )
    assert attempt.failure is None
    assert 0 < attempt.seconds <= time.monotonic() - began


def test_an_orphan_is_found_though_the_clock_was_set_since_it_began(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(600)"],
        env={**os.environ, process.MARKER: str(tmp_path.resolve())},
        start_new_session=True,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None and child.stdout.readline()
    record = {"pid": child.pid, "create_time": time.time() - 86_400, "parent": 1}
    (tmp_path / process.RECORD).write_text(json.dumps(record))
    try:
        assert process.end_recorded(tmp_path)
        child.wait(timeout=30)  # psutil has taken its exit status
    finally:
        child.kill()
        child.communicate()
