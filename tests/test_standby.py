"""Children that wait, ready, for the attempt after the one that trains: real processes, killed by real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from doubles import trainer_double
from doubles.make_request import make_request
from doubles.trainer_double import TrainerDouble
from scenes import synthetic_scene, write_scene
from test_supervise import is_gone, wait_for

import splatpipe
from splatpipe import pipeline
from splatpipe.executors.base import NO_NEED, Slot, Upcoming, Work
from splatpipe.executors.local import LocalExecutor
from splatpipe.executors.scheduler import Rank, Scheduler, Start
from splatpipe.executors.standbys import CHILD_BYTES, LEAD_S, Standbys, photograph_room
from splatpipe.failures.classify import default_catalogue
from splatpipe.machine import memory_limit
from splatpipe.trainers.base import Attempt, Command, TrainRequest
from splatpipe.trainers.gsplat_mcmc import GsplatTrainer
from splatpipe.trainers.process import RECORD
from splatpipe.trainers.standby import Standby
from splatpipe.trainers.supervise import end_orphan, run_attempt

WAIT = f"""
import os, subprocess, sys
subprocess.Popen(["sleep", "1000"])
sys.stdin.readline()
print("I have waited", flush=True)
path = sys.stdin.readline().rstrip()
if path:
    os.execv(sys.executable, [sys.executable, {trainer_double.__file__!r}, path])
"""


class WaitingDouble(TrainerDouble):
    """The double, which can be started ahead of its request."""

    def standby(self, request: TrainRequest) -> Command:
        return Command((sys.executable, "-c", WAIT), self.command(request).env)


@pytest.fixture
def request_of(tmp_path: Path) -> Any:
    return lambda patch="p007", **changes: make_request(tmp_path / "run", patch, **changes)


def family(standby: Standby) -> list[int]:
    """The pids of a waiting child and of all that it has started, when it has begun to wait."""
    assert standby._child is not None
    guardian = psutil.Process(standby._child.pid)
    assert wait_for(lambda: len(guardian.children(recursive=True)) >= 2)
    return [guardian.pid, *(child.pid for child in guardian.children(recursive=True))]


def has_waited(request: TrainRequest) -> bool:
    """Whether the attempt's child says that it had waited for it."""
    return request.files.log.is_file() and "I have waited" in request.files.log.read_text()


def attempt(request: TrainRequest, standby: Standby | None, trainer: Any = None, events: Any = None) -> Attempt:
    take = (events if events is not None else []).append
    trainer = trainer or WaitingDouble({})
    return run_attempt(trainer, request, on_event=take, stop=threading.Event(), standby=standby)


# ------------------------------------------------------------------ one child


def test_the_child_that_waited_becomes_the_attempt(request_of: Any) -> None:
    request, events, recorded = request_of(), [], []
    standby = Standby(WaitingDouble({}), request_of("p001"), 0)
    pids = family(standby)
    assert not (request.out / RECORD).exists()

    def on_event(event: dict[str, Any]) -> None:
        events.append(event["event"])
        recorded.append(json.loads((request.out / RECORD).read_text())["pid"])

    done = run_attempt(WaitingDouble({}), request, on_event=on_event, stop=threading.Event(), standby=standby)
    assert (done.failure, done.exit_status) == (None, 0)
    assert events[0] == "start" and events[-1] == "done"
    assert set(recorded) == {pids[0]}
    assert has_waited(request)
    assert wait_for(lambda: all(map(is_gone, pids)))


def test_a_waiting_child_that_was_killed_costs_nothing_but_its_head_start(request_of: Any) -> None:
    request = request_of()
    standby = Standby(WaitingDouble({}), request, 0)
    pids = family(standby)
    os.kill(pids[1], signal.SIGKILL)
    assert wait_for(lambda: not standby.alive)
    done = attempt(request, standby)
    assert (done.failure, done.exit_status) == (None, 0)
    assert not has_waited(request)
    assert wait_for(lambda: all(map(is_gone, pids)))


def test_a_waiting_child_for_another_device_or_trainer_is_not_used(request_of: Any) -> None:
    request = request_of(device="cuda:1")
    standby = Standby(WaitingDouble({}), replace(request, device="cuda:0"), 0)
    pids = family(standby)
    done = attempt(request, standby)
    assert done.failure is None
    assert standby.alive
    standby.cancel()
    assert wait_for(lambda: all(map(is_gone, pids)))


def test_a_waiting_child_dies_with_a_splatpipe_that_was_killed(request_of: Any, tmp_path: Path) -> None:
    script = f"""
        import json, sys, time
        sys.path[:0] = {[str(Path(splatpipe.__file__).parents[1]), str(Path(__file__).parent)]!r}
        from test_standby import Standby, TrainRequest, WaitingDouble, family
        request = TrainRequest.from_json(json.loads({json.dumps(json.dumps(request_of().to_json()))}))
        print(*family(Standby(WaitingDouble({{}}), request, 0)), flush=True)
        time.sleep(1000)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) >= 3 and not any(map(is_gone, pids))
    parent.kill()
    parent.wait()
    assert wait_for(lambda: all(map(is_gone, pids)))


def test_a_child_that_had_waited_is_found_in_its_attempt_by_a_later_run(request_of: Any) -> None:
    request = request_of()
    standby = Standby(WaitingDouble({"default": {"fails": "hang_deaf"}}), request_of("p001"), 0)
    pids = family(standby)
    request.out.mkdir(parents=True)
    request.files.request.write_text(json.dumps(request.to_json()))
    child = standby.go(request)
    assert child is not None
    assert end_orphan(request.files)
    assert wait_for(lambda: all(map(is_gone, pids)))
    child.close()


# ------------------------------------------------------------------ when, and how many


@pytest.fixture
def standbys() -> Iterator[Standbys]:
    kept = Standbys([WaitingDouble({})], lambda running, devices: 0)
    yield kept
    kept.close()


def heard(standbys: Standbys, device: str, left_s: float) -> None:
    standbys.heard(device, {"event": "step", "step": 100, "total": 100 + int(10 * left_s), "steps_per_s": 10.0})


def upcoming_of(*requests: TrainRequest) -> Upcoming:
    return lambda count: list(requests[:count])


def test_a_child_is_started_when_an_attempt_is_about_to_end_and_another_follows(
    standbys: Standbys, request_of: Any
) -> None:
    request = request_of()
    standbys.begins("cpu")
    standbys.look_ahead(1, upcoming_of(request))
    heard(standbys, "cpu", 10 * LEAD_S)
    standbys.look_ahead(1, upcoming_of(request))
    assert standbys.take(request) is None
    heard(standbys, "cpu", LEAD_S / 2)
    standbys.look_ahead(1, upcoming_of())
    assert standbys.take(request) is None
    standbys.look_ahead(1, upcoming_of(request))
    standbys.look_ahead(1, upcoming_of(request))
    waiting = standbys.take(request)
    assert waiting is not None and waiting.alive
    assert standbys.take(request) is None
    waiting.cancel()


def test_every_device_has_its_own_child(standbys: Standbys, request_of: Any) -> None:
    first, second = request_of("p001"), request_of("p002")
    for device, left in (("cuda:0", 20.0), ("cuda:1", 10.0), ("cuda:2", 10 * LEAD_S)):
        standbys.begins(device)
        heard(standbys, device, left)
    standbys.look_ahead(3, upcoming_of(first, second, request_of("p003")))
    found = [standbys.take(replace(first, device=f"cuda:{i}")) for i in range(3)]
    assert [one is not None for one in found] == [True, True, False]
    for one in found:
        if one is not None:
            one.cancel()


def test_a_retry_that_jumps_the_queue_gets_the_child_that_waits(standbys: Standbys, request_of: Any) -> None:
    standbys.begins("cpu")
    heard(standbys, "cpu", 1.0)
    standbys.look_ahead(1, upcoming_of(request_of("p001")))
    retry = request_of("p007", attempt=2)
    done = attempt(retry, standbys.take(retry))
    assert done.failure is None
    assert has_waited(retry)


def test_children_that_nobody_needs_any_more_are_ended(standbys: Standbys, request_of: Any) -> None:
    request = request_of()
    standbys.begins("cpu")
    heard(standbys, "cpu", 1.0)
    standbys.look_ahead(1, upcoming_of(request))
    pids = family(standbys._waiting["cpu"])
    standbys.look_ahead(1, upcoming_of())  # others have taken what was left, or the run is being stopped
    assert standbys.take(request) is None
    assert wait_for(lambda: all(map(is_gone, pids)))


def test_where_memory_is_short_no_child_waits(request_of: Any) -> None:
    rooms: list[tuple[int, int]] = []
    kept = Standbys([WaitingDouble({})], lambda running, devices: rooms.append((running, devices)) or -1)  # type: ignore
    kept.begins("cpu")
    heard(kept, "cpu", 1.0)
    kept.look_ahead(3, upcoming_of(request_of()))
    assert kept.take(request_of()) is None
    assert rooms == [(3, 1)]
    assert photograph_room(2, 1, need=memory_limit()) < -CHILD_BYTES
    assert photograph_room(1, 10**6, need=0) < 0


def test_a_trainer_without_such_children_has_none(request_of: Any) -> None:
    kept = Standbys([TrainerDouble({})], lambda running, devices: 0)
    kept.begins("cpu")
    heard(kept, "cpu", 1.0)
    kept.look_ahead(1, upcoming_of(request_of()))
    assert kept.take(request_of()) is None


def test_the_next_in_the_queue_is_made_ready_while_one_trains(request_of: Any) -> None:
    """Scheduler and executor together: what waits is what goes next, and nothing waits after the last."""
    requests = {name: request_of(name) for name in ("p001", "p002", "p003")}
    ready, stop = threading.Event(), threading.Event()
    asked: list[list[str]] = []

    class Looking(Standbys):
        def look_ahead(self, running: int, upcoming: Upcoming) -> None:
            asked.append([request.patch_id for request in upcoming(5)])
            heard(self, "cpu", 1.0)
            super().look_ahead(running, upcoming)
            ready.set()

    class Patient(Work):
        def run(self, request: TrainRequest, on_event: Any, stop: Any, standby: Any = None) -> Attempt:
            assert ready.wait(60)
            ready.clear()
            return super().run(request, on_event, stop, standby)

    trainer = WaitingDouble({})
    kept = Looking([trainer], lambda running, devices: 0)
    executor = LocalExecutor([Slot("cpu", 1)], Patient((trainer,), default_catalogue()), stop, standbys=kept)
    scheduler = Scheduler[str](executor, stop)
    for cost, name in enumerate(requests):
        scheduler.add(name, Rank.NEW, cost, NO_NEED)
    run = scheduler.run(lambda name, slot: Start(requests[name], lambda event: None), lambda name: requests[name])
    done = [one.job for one in run]
    executor.close()
    assert done == ["p003", "p002", "p001"]
    assert asked[0] == ["p002", "p001"] and asked[-1] == []
    waited = [has_waited(requests[name]) for name in done]
    assert waited == [False, True, True]


# ------------------------------------------------------------------ our own trainer


SETTINGS = [
    *("training.iterations=40", "training.max_cap=200", "training.device=cpu", "training.sh_degree=0"),
    *("init_scaling.fixed=0.4", "health.every=0", "patching.holdout_every=0", "training.refine_start=10"),
    *("training.refine_every=10", "training.threads=1"),
]


def requests_of(folder: Path) -> list[TrainRequest]:
    """Twice the same training, in two attempts that know nothing of each other."""
    write_scene(folder / "scene", synthetic_scene(n_cameras=8, n_points=120))
    options = pipeline.RunOptions.resolve(folder / "scene", folder / "run", None, SETTINGS, None, None)
    with pipeline._prepared(options) as (plan, _):
        return [plan.patches[0].request(options.layout, number, options.config, "gsplat") for number in (1, 2)]


def body(request: TrainRequest) -> bytes:
    """The Gaussians of a splat; its header names the attempt."""
    return request.files.splat.read_bytes().partition(b"end_header\n")[2]


@pytest.mark.timeout(600)
def test_a_child_that_waited_trains_the_same_to_the_digit(tmp_path: Path) -> None:
    plain, waited = requests_of(tmp_path)
    assert attempt(plain, None, GsplatTrainer()).failure is None
    standby = Standby(GsplatTrainer(), waited, 1 << 30)
    assert standby._child is not None
    pid = standby._child.pid
    events: list[dict[str, Any]] = []
    done = attempt(waited, standby, GsplatTrainer(), events)
    assert done.failure is None and done.last_step == 40
    assert body(waited) == body(plain) != b""
    assert {event["event"] for event in events} >= {"start", "first_step", "step", "done"}
    assert wait_for(lambda: is_gone(pid))


def test_photographs_are_decoded_ahead_as_training_would_and_no_more_than_fit(tmp_path: Path) -> None:
    import torch

    from splatpipe.splatting.loop import camera_order
    from splatpipe.splatting.views import ViewLoader
    from splatpipe.trainers.gsplat_run import load_views
    from splatpipe.trainers.gsplat_standby import Photographs

    request = requests_of(tmp_path)[0]
    views = load_views(request)
    sizes = [views.decode(index).nbytes for index in range(len(views))]
    everything, few = Photographs(request, 1 << 30), Photographs(request, 3 * max(sizes))
    small_cache = replace(request, settings=replace(request.settings, image_cache_gb=2 * max(sizes) / (1 << 30)))
    fewer = Photographs(small_cache, 1 << 30)
    assert wait_for(lambda: not any(thread.name == "standby" for thread in threading.enumerate()), 120.0)
    order = camera_order(request.settings.seed, 0, len(views))
    assert list(few.take()) == [views.key(int(index)) for index in order[:3]]
    assert len(fewer.take()) == 2
    decoded = everything.take()
    assert len(decoded) == len(views) and not everything.take()

    plain = ViewLoader(views, torch.device("cpu"), 1 << 30)
    pictures = [plain.get(index).image for index in range(len(views))]
    for path in views.paths:
        path.unlink()  # a link of the patch
    ready = ViewLoader(views, torch.device("cpu"), 1 << 30, decoded)
    assert not decoded
    assert all(torch.equal(ready.get(index).image, picture) for index, picture in enumerate(pictures))
