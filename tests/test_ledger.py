"""The record of a run: what is written is there, whatever happens to the writer."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles.make_request import make_request

import splatpipe
from splatpipe.entries import Outcome
from splatpipe.errors import EnvironmentProblem, RunFolderError
from splatpipe.failures.classes import FailureClass
from splatpipe.ledger import Ledger
from splatpipe.policy.ladder import next_request
from splatpipe.policy.remedies import RetrySettings
from splatpipe.trainers.base import Attempt, TrainRequest


def ended(request: TrainRequest, failure: FailureClass | None = None, **values: Any) -> Attempt:
    splat = None if failure else request.files.splat
    known = {"exit_status": 0, "line": failure and "the line", "last_step": 240, "gaussians": 50, "splat": splat}
    peaks = {"peak_rss_bytes": 1 << 30, "peak_vram_bytes": 0}
    return Attempt(request=request, started=100.0, ended=112.5, failure=failure, **{**known, **peaks, **values})


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite")


def test_the_status_has_the_promised_shape(ledger: Ledger, tmp_path: Path) -> None:
    assert ledger.status()["merged"] == {"path": None, "gaussians": None, "psnr": None, "ssim": None}
    ledger.start_run("brighton", "abc123", versions={"splatpipe": "1"}, command="splatpipe run scene")
    ledger.put_patch("p007", cameras=12, points=50, extent=1.31, init_scaling=0.1, choice={"rule": "extent"})
    ledger.put_patch("p000", cameras=9, points=40)
    first = make_request(tmp_path)
    ledger.start_attempt(first)
    ledger.end_attempt(ended(first, FailureClass.LAUNCH_CONFIG, exit_status=1, last_step=20))
    second = make_request(tmp_path, attempt=2, init_scaling=0.2)
    ledger.start_attempt(second, "next_rung", "launch_config at step 20")
    ledger.end_attempt(ended(second, warnings=("a warning",)))
    ledger.set_outcome("p007", Outcome.TRAINED, metrics={"psnr": 24.5, "ssim": 0.8})
    ledger.set_merged("merged/splat.ply", 50, 24.0, 0.79)
    status = json.loads(json.dumps(ledger.status(), allow_nan=False))
    assert (status["run"], status["settings_hash"]) == ("brighton", "abc123")
    assert [patch["id"] for patch in status["patches"]] == ["p000", "p007"]
    assert status["patches"][0]["outcome"] == "pending"
    patch = status["patches"][1]
    wanted = {"id": "p007", "outcome": "trained", "cameras": 12, "points": 50, "extent": 1.31}
    assert {name: patch[name] for name in wanted} == wanted
    assert (patch["init_scaling"], patch["first_init_scaling"], patch["psnr"]) == (0.2, 0.1, 24.5)
    names = ("n", "init_scaling", "class", "line", "step")
    assert [tuple(attempt[name] for name in names) for attempt in patch["attempts"]] == [
        (1, 0.1, "launch_config", "the line", 20),
        (2, 0.2, None, None, 240),
    ]
    assert patch["attempts"][1]["remedy"] == "next_rung"
    assert {name: status["merged"][name] for name in ("path", "gaussians", "psnr", "ssim")} == {
        "path": "merged/splat.ply",
        "gaussians": 50,
        "psnr": 24.0,
        "ssim": 0.79,
    }


def test_an_attempt_comes_back_as_it_was_recorded(ledger: Ledger, tmp_path: Path) -> None:
    request = make_request(tmp_path, skip_cameras=("a.jpg",))
    attempt = ended(request, health={"blind_cameras": ["a.jpg"], "loss": 0.1}, warnings=("w",))
    ledger.start_attempt(request)
    assert ledger.history("p007") == []
    ledger.end_attempt(attempt)
    (found,) = ledger.history("p007")
    assert replace(found, started=attempt.started) == attempt


def test_values_that_are_not_finite_and_numpy_values_are_stored_as_json(ledger: Ledger) -> None:
    statistics = {"a": np.float32(1.5), "b": np.arange(2), "c": float("nan"), "d": Path("x"), "e": (1, float("inf"))}
    ledger.put_patch("p000", cameras=1, points=1, statistics=statistics)
    record = ledger.patch("p000")
    assert record is not None
    assert record.statistics == {"a": 1.5, "b": [0, 1], "c": None, "d": "x", "e": [1, None]}
    assert ledger.patch("p001") is None


def test_measuring_a_patch_again_keeps_its_outcome(ledger: Ledger) -> None:
    ledger.put_patch("p000", cameras=1, points=1)
    ledger.set_outcome("p000", Outcome.TRAINED, "fine", {"psnr": 20.0})
    ledger.put_patch("p000", cameras=2, points=3)
    (record,) = ledger.patches()
    assert (record.cameras, record.outcome, record.outcome.trained, record.metrics) == (
        2,
        "trained",
        True,
        {"psnr": 20},
    )


def test_what_was_running_when_splatpipe_died_is_found_and_resumed(tmp_path: Path) -> None:
    request = make_request(tmp_path)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.put_patch("p007", cameras=1, points=1)
        ledger.start_attempt(request)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        assert ledger.status()["patches"][0]["outcome"] == "running"
        assert ledger.unfinished() == [request]
        ledger.mark_interrupted(request, "splatpipe was killed", step=60)
        assert ledger.unfinished() == []
        record = ledger.patch("p007")
        assert record is not None
        assert record.outcome == Outcome.INTERRUPTED
        decision = next_request(request, ledger.history("p007"), RetrySettings())
        assert decision.request == request
        ledger.start_attempt(request)
        ledger.end_attempt(ended(request))
        (attempt,) = ledger.status()["patches"][0]["attempts"]
        assert (attempt["n"], attempt["interruptions"], attempt["class"]) == (1, 1, None)


def test_retraining_forgets_nothing_and_starts_with_a_clean_history(ledger: Ledger, tmp_path: Path) -> None:
    ledger.put_patch("p007", cameras=1, points=1)
    request = make_request(tmp_path)
    ledger.start_attempt(request)
    ledger.end_attempt(ended(request))
    ledger.set_outcome("p007", Outcome.TRAINED, metrics={"psnr": 20.0})
    ledger.retrain("p007")
    record = ledger.patch("p007")
    assert record is not None
    assert (record.outcome, record.metrics) == (Outcome.PENDING, {})
    assert ledger.history("p007") == []
    assert ledger.next_number("p007") == 2


def test_several_threads_write_and_a_reader_sees_whole_records(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    requests = [make_request(tmp_path, f"p{k:03d}") for k in range(4)]

    def write(request: TrainRequest) -> None:
        ledger.put_patch(request.patch_id, cameras=1, points=1)
        for n in range(1, 11):
            numbered = replace(request, attempt=n)
            ledger.start_attempt(numbered)
            ledger.end_attempt(ended(numbered, FailureClass.UNKNOWN))
        ledger.set_outcome(request.patch_id, Outcome.FAILED)

    threads = [threading.Thread(target=write, args=(request,)) for request in requests]
    for thread in threads:
        thread.start()
    with Ledger(path, read_only=True) as reader:
        while any(thread.is_alive() for thread in threads):
            for patch in reader.status()["patches"]:
                assert [attempt["n"] for attempt in patch["attempts"]] == list(range(1, len(patch["attempts"]) + 1))
        patches = reader.status()["patches"]
    assert [(patch["outcome"], len(patch["attempts"])) for patch in patches] == [("failed", 10)] * 4


def test_a_writer_killed_at_any_moment_leaves_a_ledger_that_holds_what_was_acknowledged(tmp_path: Path) -> None:
    script = f"""
        import sys
        sys.path.insert(0, {str(Path(splatpipe.__file__).parents[1])!r})
        from pathlib import Path
        from splatpipe.entries import Outcome
        from splatpipe.ledger import Ledger
        ledger = Ledger(Path(sys.argv[1]))
        for k in range(10_000):
            ledger.put_patch(f"p{{k:03d}}", cameras=k, points=k)
            ledger.set_outcome(f"p{{k:03d}}", Outcome.TRAINED)
            print(k, flush=True)
    """
    path = tmp_path / "ledger.sqlite"
    for wait in (0.05, 0.1, 0.2):
        command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(wait)
        writer.kill()
        told = writer.communicate()[0].split()
        with Ledger(path) as ledger:
            records = ledger.patches()
            assert ledger._db.read("PRAGMA integrity_check")[0][0] == "ok"
        known = {record.id for record in records if record.outcome.trained}
        assert {f"p{int(k):03d}" for k in told[:-1]} <= known


@pytest.mark.parametrize(
    "damage", [b"this is no database, it is a text file of some length" * 40, b"SQLite format 3\0junk"]
)
def test_a_damaged_ledger_is_one_sentence(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(damage)
    with pytest.raises(RunFolderError, match="damaged") as error:
        Ledger(path)
    assert str(path) in str(error.value)


def test_a_foreign_a_newer_and_a_missing_ledger_are_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as db:
        db.execute("CREATE TABLE notes (text)")
    with pytest.raises(RunFolderError, match="not a ledger of splatpipe"):
        Ledger(foreign)
    newer = tmp_path / "newer.sqlite"
    Ledger(newer).close()
    with sqlite3.connect(newer) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(RunFolderError, match="newer splatpipe"):
        Ledger(newer)
    with sqlite3.connect(newer) as db:
        db.execute("PRAGMA user_version = 1")
    with pytest.raises(RunFolderError, match="older splatpipe"):
        Ledger(newer)
    with pytest.raises(RunFolderError, match="no ledger here"):
        Ledger(tmp_path / "missing.sqlite", read_only=True)
    assert not (tmp_path / "missing.sqlite").exists()


def test_a_reader_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as writer:
        writer.put_patch("p000", cameras=1, points=1)
    with Ledger(path, read_only=True) as reader, pytest.raises(EnvironmentProblem, match="cannot be written"):
        reader.set_outcome("p000", Outcome.FAILED)


def test_a_full_disk_is_a_problem_of_the_machine_and_loses_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.put_patch("p000", cameras=1, points=1)
    pages = ledger._db.read("PRAGMA page_count")[0][0]
    ledger._db.read(f"PRAGMA max_page_count = {pages}")  # SQLite's own way to run out of space
    with pytest.raises(EnvironmentProblem, match="full"):
        ledger.put_patch("p001", cameras=1, points=1, statistics={"long": "x" * 100_000})
    assert [record.id for record in ledger.patches()] == ["p000"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_permission_is_a_problem_of_the_machine(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(EnvironmentProblem, match="permissions"):
            Ledger(tmp_path / "ledger.sqlite")
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_run_on_read_only_media_can_still_be_read(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        ledger.put_patch("p000", cameras=1, points=1)
    tmp_path.chmod(0o555)
    try:
        with Ledger(path, read_only=True) as reader:
            assert [patch["id"] for patch in reader.status()["patches"]] == ["p000"]
    finally:
        tmp_path.chmod(0o755)


def test_the_time_until_a_killed_run_is_taken_up_again_is_no_training_time(tmp_path: Path) -> None:
    request = make_request(tmp_path)
    request.files.root.mkdir(parents=True)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.start_attempt(request)
        began = time.time()
        ledger._db._db.execute("UPDATE attempts SET started = ?", (began - 100_000,))
        request.files.events.write_text("{}\n")
        os.utime(request.files.events, (began - 99_950, began - 99_950))
        ledger.mark_interrupted(request, "splatpipe was killed")
        assert ledger.history("p007")[0].seconds == pytest.approx(50, abs=1)


def test_a_clock_that_is_set_back_makes_no_attempt_shorter_than_nothing(tmp_path: Path) -> None:
    request = make_request(tmp_path)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.start_attempt(request)
        ledger._db._db.execute("UPDATE attempts SET started = started + 86400")  # and then the clock was set back
        ledger.mark_interrupted(request, "splatpipe was killed")
        ledger.start_attempt(request)
        ledger.mark_interrupted(request, "splatpipe was killed")
        assert 0 <= ledger.history("p007")[0].seconds < 60
