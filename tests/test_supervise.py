"""The real supervisor with real child processes that die by real signals (tests/doubles/trainer_double.py)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from doubles.make_request import make_request
from doubles.trainer_double import TrainerDouble, write_ply
from hypothesis import given
from hypothesis import strategies as st

import splatpipe
from splatpipe.failures.classes import FailureClass
from splatpipe.policy.ladder import next_request
from splatpipe.policy.remedies import RetrySettings
from splatpipe.trainers.base import Attempt, Command, Limits, TrainRequest
from splatpipe.trainers.output import NonFiniteSplat, check_splat
from splatpipe.trainers.process import MARKER, RECORD
from splatpipe.trainers.supervise import end_orphan, recover, run_attempt
from splatpipe.trainers.tail import BoundedLog, EventTail, LineMemory, LineSplitter

QUICK = Limits(startup_silence_s=20.0, silence_s=0.8, wall_s=0.0, grace_s=0.5)


def attempt(request: TrainRequest, events: list[dict[str, Any]] | None = None, **behaviour: Any) -> Attempt:
    """One supervised attempt of the double."""
    take = (events if events is not None else []).append
    trainer = TrainerDouble({"default": behaviour})
    return run_attempt(trainer, request, on_event=take, stop=threading.Event())


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_for(condition: Any, seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_a_training_that_works_leaves_a_splat_and_nothing_running(tmp_path: Path) -> None:
    request = make_request(tmp_path, threads=1)
    events: list[dict[str, Any]] = []
    result = attempt(request, events, noise=True, grandchild=True)
    assert (result.failure, result.line, result.exit_status) == (None, None, 0)
    assert result.splat == request.files.splat
    assert check_splat(request.files.splat) == result.gaussians == 50
    assert result.last_step == 240
    assert result.peak_rss_bytes > 5 << 20
    assert result.health["psnr"] == 25.0
    assert events[0]["event"] == "start"
    assert events[-1]["event"] == "done"
    assert TrainRequest.from_json(json.loads(request.files.request.read_text())) == request
    assert is_gone(int((request.out / "grandchild.pid").read_text()))
    assert not (request.out / RECORD).exists()


def test_the_log_has_clean_lines_whatever_the_child_writes(tmp_path: Path) -> None:
    request = make_request(tmp_path)
    attempt(request, noise=True)
    lines = request.files.log.read_text(encoding="utf-8").splitlines()
    assert "bad �� bytes" in lines
    assert lines[-1] == "half a"
    assert sum("240/240" in line for line in lines) == 1
    assert not any("\x1b" in line or "\r" in line for line in lines)


@pytest.mark.parametrize(
    ("behaviour", "failure", "line"),
    [
        ({"fails": "lfs_adam"}, "launch_config", "adam_step_cu kernel launch failed: invalid configuration argument"),
        ({"fails": "lfs_c10", "status": 134}, "launch_config", "what():  CUDA error: invalid configuration argument"),
        ({"fails": "gsplat_launch"}, "launch_config", "CUDA error: invalid configuration argument"),
        ({"fails": "gsplat_multinomial", "at": 200}, "mcmc_collapse", "CUDA error: invalid configuration argument"),
        ({"fails": "cuda_oom"}, "oom_device", "Tried to allocate 5.32 GiB"),
        ({"fails": "lfs_bucket"}, "oom_raster", "Failed to allocate bucket buffers"),
        ({"fails": "illegal_access"}, "illegal_access", "an illegal memory access was encountered"),
        ({"fails": "memory_error"}, "host_oom", "MemoryError"),
        ({"fails": "disk_full"}, "environment", "No space left on device"),
        ({"fails": "bad_data", "at": 0}, "data_error", "Missing required COLMAP files"),
        ({"fails": "bad_flag", "at": 0}, "config_error", "no-save-eval-images"),
        ({"fails": "own_bug"}, "unknown", "KeyError: 'opacities'"),
        ({"fails": "guard_nan_divergence"}, "nan_divergence", "guard: nan_divergence"),
        ({"fails": "sigkill"}, "killed", "killed by SIGKILL at step 20, not by splatpipe"),
        ({"fails": "sigsegv", "at": 0}, "unknown", "died of SIGSEGV before the first step"),
        ({"fails": "sigabrt"}, "unknown", "died of SIGABRT at step 20: free(): invalid pointer"),
        ({"fails": "sigterm"}, "interrupted", "ended from outside by SIGTERM at step 20"),
        ({"fails": "no_ply"}, "export_missing", "there is no splat.ply"),
        ({"fails": "half_ply"}, "export_missing", "the header announces 50 Gaussians, the file holds 21"),
        ({"fails": "not_done"}, "export_missing", "never said that it was done"),
        ({"fails": "wrong_count"}, "export_missing", "holds 50 Gaussians, the child announced 57"),
        ({"fails": "nan_ply"}, "nan_divergence", "opacity of Gaussian 49 of 50 is not finite"),
        ({"fails": "silent_exit", "status": 0}, "export_missing", "exit status 0"),
        ({"fails": "silent_exit", "status": 7}, "unknown", "exit status 7 at step 20, and no output"),
    ],
    ids=lambda value: value.get("fails") if isinstance(value, dict) else "",
)
def test_each_way_to_die_has_its_class_and_its_line(
    tmp_path: Path, behaviour: dict[str, Any], failure: str, line: str
) -> None:
    result = attempt(make_request(tmp_path), **behaviour)
    assert result.failure == failure
    assert line in (result.line or "")
    assert result.splat is None
    assert result.last_step == behaviour.get("at", 20)


def test_a_splat_that_was_whole_before_the_child_crashed_counts(tmp_path: Path) -> None:
    result = attempt(make_request(tmp_path), fails="dirty_exit")
    assert (result.failure, result.exit_status) == (None, 1)
    assert result.warnings == ("the child left with status 1 after its splat was whole",)


def test_a_splat_of_an_earlier_run_never_counts(tmp_path: Path) -> None:
    request = make_request(tmp_path)
    attempt(request)
    assert attempt(request, fails="silent_exit", status=0).failure == "export_missing"
    assert not request.files.splat.exists()


@pytest.mark.parametrize("kind", ["hang", "hang_deaf"])
def test_a_silent_child_is_ended_with_all_it_started(tmp_path: Path, kind: str) -> None:
    request = make_request(tmp_path, limits=QUICK)
    result = attempt(request, fails=kind, grandchild=True, stray=True)
    assert result.failure == FailureClass.HANG
    assert result.line == "no sign of life at step 20, ended by splatpipe"
    assert result.exit_status == (-signal.SIGKILL if kind == "hang_deaf" else -signal.SIGTERM)
    assert is_gone(int((request.out / "grandchild.pid").read_text()))


def test_silence_before_the_first_step_has_a_limit_of_its_own(tmp_path: Path) -> None:
    starting = Limits(startup_silence_s=0.8, silence_s=60.0, grace_s=0.5)
    result = attempt(make_request(tmp_path, limits=starting), fails="hang", at=0)
    assert result.line == "no sign of life before the first step, ended by splatpipe"
    patient = Limits(startup_silence_s=60.0, silence_s=0.8, grace_s=0.5)
    assert attempt(make_request(tmp_path, limits=patient), fails="hang").failure == "hang"


def test_a_child_that_only_talks_meets_the_wall_limit(tmp_path: Path) -> None:
    limits = Limits(startup_silence_s=20.0, silence_s=0.8, wall_s=1.5, grace_s=5.0)
    result = attempt(make_request(tmp_path, limits=limits), fails="talk_forever")
    assert (result.failure, result.line) == ("hang", "time limit reached at step 20, ended by splatpipe")
    assert result.health["ended_by"] == "wall"


def test_a_hang_after_the_splat_was_whole_is_a_success_with_a_warning(tmp_path: Path) -> None:
    result = attempt(make_request(tmp_path, limits=QUICK), fails="hang_after_done")
    assert result.failure is None
    assert "after its splat was whole" in result.warnings[0]


def test_a_stopped_attempt_goes_on_where_it_was(tmp_path: Path) -> None:
    request, stop = make_request(tmp_path), threading.Event()
    trainer = TrainerDouble({"default": {"step_s": 0.05}})
    first = run_attempt(trainer, request, stop=stop, on_event=lambda e: e.get("step", 0) >= 60 and stop.set())
    assert first.failure == FailureClass.INTERRUPTED
    assert 60 <= first.last_step < 240
    events: list[dict[str, Any]] = []
    second = attempt(request, events)
    assert second.failure is None
    assert events[0]["resumed_from"] == first.last_step
    assert all(event["step"] > first.last_step for event in events if event["event"] == "step")


def test_half_an_event_of_a_killed_predecessor_is_not_glued_to_the_next(tmp_path: Path) -> None:
    request = make_request(tmp_path)
    request.out.mkdir(parents=True)
    request.files.events.write_text('{"t": 1, "event": "step", "step": 7')
    events: list[dict[str, Any]] = []
    assert attempt(request, events).failure is None
    assert events[0]["event"] == "start"


def test_no_trainer_outlives_a_splatpipe_that_was_killed(tmp_path: Path) -> None:
    request = make_request(tmp_path)
    script = f"""
        import json, sys, threading
        sys.path[:0] = {[str(Path(splatpipe.__file__).parents[1]), str(Path(__file__).parent)]!r}
        from doubles.trainer_double import TrainerDouble
        from splatpipe.trainers.base import TrainRequest
        from splatpipe.trainers.supervise import run_attempt
        request = TrainRequest.from_json(json.loads({json.dumps(json.dumps(request.to_json()))}))
        trainer = TrainerDouble({{"default": {{"fails": "hang_deaf", "grandchild": True}}}})
        work = lambda: run_attempt(trainer, request, on_event=lambda e: None, stop=threading.Event())
        threading.Thread(target=work).start()
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    noted, grandchild = request.out / RECORD, request.out / "grandchild.pid"
    assert wait_for(lambda: noted.exists() and grandchild.exists() and grandchild.read_text())
    guardian = json.loads(noted.read_text())["pid"]
    family = [guardian, *(child.pid for child in psutil.Process(guardian).children(recursive=True))]
    assert int(grandchild.read_text()) in family
    parent.kill()
    parent.wait()
    assert wait_for(lambda: all(map(is_gone, family)))


def test_a_killed_guardian_takes_the_trainer_with_it(tmp_path: Path) -> None:
    request = make_request(tmp_path)
    family: list[psutil.Process] = []

    def kill_guardian(event: dict[str, Any]) -> None:
        if event["event"] == "step" and not family:
            guardian = psutil.Process(json.loads((request.out / RECORD).read_text())["pid"])
            family.extend(guardian.children(recursive=True))
            guardian.kill()

    trainer = TrainerDouble({"default": {"fails": "hang_deaf"}})
    result = run_attempt(trainer, request, on_event=kill_guardian, stop=threading.Event())
    assert result.failure == FailureClass.KILLED
    assert family
    assert wait_for(lambda: all(is_gone(process.pid) for process in family))


def orphan(out: Path, marked: bool = True) -> subprocess.Popen[bytes]:
    out.mkdir(parents=True, exist_ok=True)
    sleep = "import time; time.sleep(600)"
    environment = {**os.environ, MARKER: str(out)} if marked else None
    return subprocess.Popen([sys.executable, "-c", sleep], start_new_session=True, env=environment)


def test_an_orphan_of_an_earlier_run_is_found_and_ended(tmp_path: Path) -> None:
    request = make_request(tmp_path)
    left = orphan(request.out)
    created = psutil.Process(left.pid).create_time()
    (request.out / RECORD).write_text(json.dumps({"pid": left.pid, "create_time": created}))
    assert end_orphan(request.files)
    assert is_gone(left.pid)
    assert not end_orphan(request.files)


def test_a_stranger_with_a_reused_process_id_is_left_alone(tmp_path: Path) -> None:
    request = make_request(tmp_path)
    stranger = orphan(request.out, marked=False)
    try:
        created = psutil.Process(stranger.pid).create_time() - 3600
        (request.out / RECORD).write_text(json.dumps({"pid": stranger.pid, "create_time": created}))
        assert not end_orphan(request.files)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


class Program:
    """A trainer that runs one given command and parses `step N` lines."""

    name = "gsplat"

    def __init__(self, *argv: str) -> None:
        self._argv = argv

    def command(self, request: TrainRequest) -> Command:
        return Command(self._argv, {})

    def probe(self) -> Any:
        raise NotImplementedError

    def parse_line(self, line: str) -> dict[str, Any] | None:
        word, _, number = line.partition(" ")
        return {"event": "step", "step": int(number), "gaussians": 50} if word == "step" else None


def test_a_trainer_that_cannot_start_is_a_problem_of_the_machine(tmp_path: Path) -> None:
    plain, folder, foreign = tmp_path / "plain", tmp_path / "folder", tmp_path / "foreign"
    plain.write_text("text")
    folder.mkdir()
    foreign.write_bytes(b"\x7fELFnot really")
    foreign.chmod(0o755)
    sayings = {
        str(tmp_path / "missing"): "there is no such program",
        str(plain): "not executable",
        str(folder): "a folder",
        str(foreign): "Exec format error",
    }
    for program, saying in sayings.items():
        result = run_attempt(Program(program), make_request(tmp_path), on_event=lambda e: None, stop=threading.Event())
        assert result.failure == FailureClass.ENVIRONMENT
        assert saying in (result.line or "")


def test_a_folder_that_cannot_be_written_is_a_problem_of_the_machine(tmp_path: Path) -> None:
    request = make_request(tmp_path)
    request.out.parent.mkdir(parents=True)
    request.out.write_text("a file where the folder should be")
    result = attempt(request)
    assert result.failure == FailureClass.ENVIRONMENT
    assert "cannot write" in (result.line or "")


def test_a_trainer_that_only_logs_is_followed_through_its_lines(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    code = "import sys; sys.stdout.write('step 1\\rstep 2\\n\\x1b[31mstep 3'); sys.exit(5)"
    program = Program(sys.executable, "-c", code)
    result = run_attempt(program, make_request(tmp_path), on_event=events.append, stop=threading.Event())
    assert [event["step"] for event in events] == [1, 2, 3]
    assert (result.last_step, result.gaussians, result.exit_status) == (3, 50, 5)


def test_an_error_of_our_own_while_watching_ends_the_child(tmp_path: Path) -> None:
    request = make_request(tmp_path)

    def broken(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_attempt(
            TrainerDouble({"default": {"fails": "hang_deaf", "grandchild": True}}),
            request,
            on_event=broken,
            stop=threading.Event(),
        )
    assert is_gone(int((request.out / "grandchild.pid").read_text()))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_costs_log_lines_and_not_the_training(tmp_path: Path) -> None:
    request = make_request(tmp_path)
    request.out.mkdir(parents=True)
    request.files.log.symlink_to("/dev/full")
    result = attempt(request, noise=True)
    assert result.failure is None
    assert result.warnings == ("log.txt is incomplete: No space left on device",)


def test_a_training_that_finished_unrecorded_is_recovered_and_an_unfinished_one_is_not(tmp_path: Path) -> None:
    request = make_request(tmp_path)
    trainer = TrainerDouble({})
    assert recover(trainer, request) is None
    attempt(request)
    found = recover(trainer, request)
    assert found is not None
    assert (found.failure, found.last_step, found.gaussians, found.splat) == (None, 240, 50, request.files.splat)
    os.truncate(request.files.splat, 1000)
    assert recover(trainer, request) is None


def test_the_p7_story_needs_two_failed_attempts_and_then_trains(tmp_path: Path) -> None:
    words = {"fails": "lfs_adam", "below": 0.3}
    history: list[Attempt] = []
    first = make_request(tmp_path)
    decision = next_request(first, history, RetrySettings())
    while decision.request is not None:
        step = 20 if decision.request.init_scaling < 0.2 else 100
        history.append(attempt(decision.request, **words, at=step))
        decision = next_request(first, history, RetrySettings())
    assert [(a.request.init_scaling, a.failure, a.last_step) for a in history] == [
        (0.1, "launch_config", 20),
        (0.2, "launch_config", 100),
        (0.3, None, 240),
    ]
    assert [a.request.out.name for a in history] == ["01", "02", "03"]
    assert check_splat(history[-1].request.files.splat) == 50


def test_a_blind_camera_is_left_out_before_any_larger_gaussians(tmp_path: Path) -> None:
    request = make_request(tmp_path)
    cure = {"cured_by": ["skip_cameras", ">=", 1], "blind": ["a/07.jpg"]}
    first = attempt(request, fails="lfs_adam", **cure)
    decision = next_request(request, [first], RetrySettings())
    assert decision.request is not None
    assert (decision.request.skip_cameras, decision.request.init_scaling) == (("a/07.jpg",), 0.1)
    assert attempt(decision.request, fails="lfs_adam", **cure).failure is None


@given(st.lists(st.integers(0, 60)), st.booleans())
def test_lines_do_not_depend_on_how_the_bytes_arrive(cuts: list[int], flush: bool) -> None:
    data = "ein\x1b[1;31m Bär\x1b[0m\r50%|██▌|\r\n\nlast \x1b]0;title\x07line\t1".encode() + b"\xff"
    edges = [0, *sorted(cuts), len(data)]
    splitter = LineSplitter()
    lines = [line for a, b in pairwise(edges) for line in splitter.feed(data[a:b])]
    assert lines + splitter.flush() == ["ein Bär", "50%|██▌|", "last line\t1�"]


def test_a_line_without_end_does_not_fill_the_memory() -> None:
    splitter = LineSplitter()
    lines = [line for _ in range(40) for line in splitter.feed(b"x" * 10_000)]
    assert len(lines) >= 5
    assert sum(map(len, lines + splitter.flush())) == 400_000


def test_a_long_log_keeps_its_beginning_and_its_end(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "log.txt", limit_bytes=20_000)
    for number in range(20_000):
        log.write([f"line {number}"])
    text = (tmp_path / "log.txt").read_text()
    assert text.startswith("line 0\nline 1\n")
    assert text.endswith("line 19998\nline 19999\n")
    assert "left out here" in text
    assert len(text) <= 20_100


def test_a_telling_line_in_the_middle_of_a_flood_is_remembered() -> None:
    memory = LineMemory(lambda line: "error" in line, keep=10)
    for number in range(1000):
        memory.add("the error" if number == 500 else f"line {number}")
    assert memory.lines == [*(f"line {n}" for n in range(10)), "the error", *(f"line {n}" for n in range(990, 1000))]


def test_events_are_read_whole_and_foreign_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = EventTail(path)
    assert tail.read() == []
    with path.open("a") as handle:
        handle.write('{"event": "start"}\nno json\n[1]\n{"no": "event"}\n{"event": "st')
        handle.flush()
        assert tail.read() == [{"event": "start"}]
        handle.write('ep", "loss": NaN}\n')
    assert [event["event"] for event in tail.read()] == ["step"]


def test_a_splat_is_checked_to_its_last_value(tmp_path: Path) -> None:
    path = tmp_path / "splat.ply"
    rows = np.ones((70_000, 62), np.float32)
    write_ply(path, rows)
    assert check_splat(path) == 70_000
    rows[69_999, 61] = np.inf
    write_ply(path, rows)
    with pytest.raises(NonFiniteSplat, match="rot_3 of Gaussian 69999"):
        check_splat(path)
    write_ply(path, rows[:0])
    with pytest.raises(ValueError, match="no Gaussian"):
        check_splat(path)
