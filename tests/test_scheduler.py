"""Jobs on places: order, what runs together, what a failure costs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from splatpipe.errors import EnvironmentProblem
from splatpipe.executors.base import Need, Slot
from splatpipe.executors.choose import Demand, local_slots
from splatpipe.executors.gpus import SETTLE_S, GpuGate, Use
from splatpipe.executors.local import LocalExecutor
from splatpipe.executors.scheduler import Finished, Rank, Scheduler, Start
from splatpipe.executors.settings import ExecutorSettings
from splatpipe.executors.slots import cpu_slots, gpu_slots
from splatpipe.trainers.base import TrainerInfo
from splatpipe.trainers.devices import visible_devices

CPU = Slot("cpu", 1)
GIB = 1 << 30


class Function:
    """In the place of `Work`: an attempt is a call of `work(job, slot, stop)`, what it gives back the attempt."""

    def __init__(self, work: Callable[[Any, Slot, threading.Event], Any]) -> None:
        self._work = work

    def run(self, request: Any, on_event: Any, stop: threading.Event) -> Any:
        return self._work(*request, stop)


def schedule(
    slots: Sequence[Slot],
    jobs: Sequence[tuple[Any, Rank, float]],
    work: Callable[[Any, Slot, threading.Event], Any],
    stop: threading.Event | None = None,
) -> tuple[Scheduler[Any], Any]:
    """A scheduler with `jobs` in it, and its run."""
    stop = stop or threading.Event()
    scheduler = Scheduler[Any](LocalExecutor(slots, Function(work), stop), stop)  # type: ignore[arg-type]
    for job, rank, cost in jobs:
        scheduler.add(job, rank, cost)
    return scheduler, scheduler.run(lambda job, slot: Start((job, slot), print))  # type: ignore[arg-type]


def new(*jobs: Any) -> list[tuple[Any, Rank, float]]:
    return [(job, Rank.NEW, 0.0) for job in jobs]


def test_the_costliest_goes_first_and_equals_in_the_order_of_coming() -> None:
    jobs = [("small", Rank.NEW, 1.0), ("large", Rank.NEW, 9.0), ("a", Rank.NEW, 5.0), ("b", Rank.NEW, 5.0)]
    _, run = schedule([CPU], jobs, lambda job, slot, stop: job)
    assert [done.attempt for done in run] == ["large", "a", "b", "small"]


def test_a_retry_goes_ahead_of_new_work_whatever_it_costs() -> None:
    scheduler, run = schedule([CPU], [("a", Rank.NEW, 9.0), ("b", Rank.NEW, 8.0)], lambda job, slot, stop: job)
    order = []
    for done in run:
        order.append(done.job)
        if order == ["a"]:
            scheduler.add("a again", Rank.RETRY, 0.1)
    assert order == ["a", "a again", "b"]


def test_nothing_begins_until_the_canary_has_ended_its_retries_included() -> None:
    alone: list[bool] = []
    inside: set[str] = set()

    def work(job: str, slot: Slot, stop: threading.Event) -> str:
        inside.add(job)
        alone.append(len(inside) == 1)
        inside.discard(job)
        return job

    scheduler, run = schedule([CPU] * 3, [*new("a", "b"), ("canary", Rank.CANARY, 0.0)], work)
    order = []
    for done in run:
        order.append(done.job)
        if order == ["canary"]:
            scheduler.add("canary", Rank.CANARY)
    assert order[:2] == ["canary", "canary"]
    assert sorted(order[2:]) == ["a", "b"]
    assert alone[:2] == [True, True]


def test_better_estimates_sort_what_waits_anew() -> None:
    scheduler, run = schedule([CPU], [(1, Rank.NEW, 3.0), (2, Rank.NEW, 2.0), (3, Rank.NEW, 1.0)], lambda j, s, e: j)
    order = []
    for done in run:
        order.append(done.job)
        scheduler.revalue(lambda job: job)
    assert order == [1, 3, 2]


def test_as_many_jobs_run_at_once_as_there_are_slots_each_on_its_own() -> None:
    slots = [Slot("cuda:0"), Slot("cuda:1"), Slot("cuda:2")]
    together = threading.Barrier(3)

    def work(job: int, slot: Slot, stop: threading.Event) -> str:
        together.wait(timeout=60)  # nobody passes unless three are inside
        return slot.device

    _, run = schedule(slots, new(*range(6)), work)
    assert sorted(done.attempt for done in run) == sorted(["cuda:0", "cuda:1", "cuda:2"] * 2)


def test_a_bug_in_one_job_costs_only_that_job() -> None:
    _, run = schedule([CPU], new(2, 0, 5), lambda job, slot, stop: 10 // job)
    results: dict[int, Finished[int]] = {done.job: done for done in run}
    assert isinstance(results[0].error, ZeroDivisionError)
    assert (results[2].attempt, results[5].attempt) == (5, 2)


def test_a_job_that_cannot_begin_gives_its_place_back() -> None:
    stop = threading.Event()
    scheduler = Scheduler[int](LocalExecutor([CPU], Function(lambda job, slot, end: job), stop), stop)  # type: ignore
    for job in range(4):
        scheduler.add(job)

    def begin(job: int, slot: Slot) -> Start | None:
        if job == 0:
            raise ZeroDivisionError
        return None if job == 1 else Start((job, slot), print)  # type: ignore[arg-type]

    ended = [(done.job, done.error is None) for done in scheduler.run(begin)]
    assert ended == [(0, False), (2, True), (3, True)]


def test_a_problem_of_the_machine_stops_the_handing_out_but_not_what_was_begun() -> None:
    def work(job: Any, slot: Slot, stop: threading.Event) -> Any:
        if job == 1:
            raise EnvironmentProblem("no driver")
        return job

    scheduler, run = schedule([CPU], new(0, 1, 2, 3), work)
    ended = []
    for done in run:
        ended.append(done.job)
        if done.error:
            assert str(done.error) == "no driver"
            scheduler.add("retry", Rank.RETRY)
    assert ended == [0, 1, "retry"]


def test_after_a_stop_running_jobs_end_and_no_other_begins() -> None:
    begun = []

    def work(job: int, slot: Slot, stop: threading.Event) -> bool:
        begun.append(job)
        stop.set()
        return stop.wait(60)

    _, run = schedule([CPU], new(*range(10)), work)
    assert [done.job for done in run] == begun == [0]


def test_a_caller_that_leaves_early_does_not_leave_work_behind() -> None:
    stop, ended = threading.Event(), []

    def work(job: int, slot: Slot, stop: threading.Event) -> None:
        if job > 0:
            stop.wait(60)
        ended.append(job)

    _, run = schedule([CPU, CPU], new(*range(10)), work, stop)
    next(run)
    run.close()
    assert stop.is_set()
    assert ended.count(0) == 1
    assert len(ended) <= 3


def test_an_executor_without_slots_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one slot"):
        LocalExecutor([], Function(print), threading.Event())  # type: ignore[arg-type]


def test_a_gpu_that_is_not_there_is_named_before_anything_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    info = TrainerInfo("gsplat", True, "", "", frozenset({"cpu", "cuda"}))
    slots = local_slots(ExecutorSettings(jobs=1), Demand("cuda:1", 0, 0, 0.0), info)
    assert [slot.device for slot in slots] == ["cuda:1"]
    with pytest.raises(EnvironmentProblem, match=r"training.device is cuda:2, but the GPUs here are cuda:0, cuda:1"):
        local_slots(ExecutorSettings(), Demand("cuda:2", 0, 0, 0.0), info)


def test_a_child_sees_the_gpu_that_its_parent_counts() -> None:
    assert visible_devices("cuda:1", {})["CUDA_VISIBLE_DEVICES"] == "1"
    assert visible_devices("cuda", {"CUDA_VISIBLE_DEVICES": "3, 5"})["CUDA_VISIBLE_DEVICES"] == "3"
    assert visible_devices("cuda:1", {"CUDA_VISIBLE_DEVICES": "3, 5"})["CUDA_VISIBLE_DEVICES"] == "5"
    assert visible_devices("cuda:0", {"CUDA_VISIBLE_DEVICES": "MIG-1a,MIG-2b"})["CUDA_VISIBLE_DEVICES"] == "MIG-1a"
    assert visible_devices("cpu", {"CUDA_VISIBLE_DEVICES": "3"})["CUDA_VISIBLE_DEVICES"] == ""


def test_a_device_with_fewer_attempts_comes_first() -> None:
    slots = gpu_slots(["cuda:0", "cuda:1"], jobs=0, per_gpu=2, threads=0)
    executor = LocalExecutor(slots, Function(print), threading.Event())  # type: ignore[arg-type]
    taken = [executor.acquire(Need()) for _ in range(5)]
    assert [slot.device for slot in taken[:4] if slot] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert taken[4] is None


def test_cpu_places_follow_cores_and_memory_unless_they_are_given() -> None:
    def count(**given: int) -> int:
        return len(cpu_slots(**({"jobs": 0, "threads": 0, "cores": 64, "memory": 256 * GIB, "need": GIB} | given)))

    assert count() == 8
    assert count(memory=6 * GIB, need=2 * GIB) == 2
    assert count(memory=GIB, need=8 * GIB) == 1
    assert count(cores=2) == 1
    assert count(jobs=5, cores=2) == 5
    assert {slot.threads for slot in cpu_slots(0, 0, 64, 256 * GIB, GIB)} == {8}
    assert count(threads=16) == 4


class Watched:
    """A GPU whose use and clock the test decides."""

    def __init__(self, total: int, free: int, busy: float) -> None:
        self.use: Use | None = Use(total, free, busy)
        self.now = 100.0
        self.gate = GpuGate(lambda device: self.use, lambda: self.now)
        self.gate.begins("cuda:0")

    def admits(self, need: int) -> bool:
        return self.gate.admits("cuda:0", Need(need))


def test_a_second_patch_joins_a_gpu_only_when_the_first_has_settled_and_there_is_room() -> None:
    gpu = Watched(80 * GIB, 60 * GIB, 0.4)
    assert not gpu.admits(10 * GIB)  # it may still be decoding its images
    gpu.now += SETTLE_S + 1
    assert gpu.admits(10 * GIB)
    assert not gpu.admits(55 * GIB)
    gpu.use = None
    assert not gpu.admits(10 * GIB)


def test_a_gpu_that_is_busy_gets_no_second_patch() -> None:
    gpu = Watched(80 * GIB, 60 * GIB, 0.97)
    gpu.now += SETTLE_S + 1
    assert not any(gpu.admits(GIB) for _ in range(20))
