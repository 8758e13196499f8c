"""Jobs on slots."""

from __future__ import annotations

import threading

import pytest

from splatpipe.errors import EnvironmentProblem
from splatpipe.executors.local import LocalExecutor, Slot

CPU = Slot("cpu", 1)


def test_one_slot_does_every_job_in_order() -> None:
    results = list(LocalExecutor([CPU]).run(range(20), lambda job, slot: (job, slot.device)))
    assert [done.result for done in results] == [(job, "cpu") for job in range(20)]


def test_as_many_jobs_run_at_once_as_there_are_slots_each_on_its_own() -> None:
    slots = [Slot("cuda:0"), Slot("cuda:1"), Slot("cuda:2")]
    together = threading.Barrier(3)

    def work(job: int, slot: Slot) -> str:
        together.wait(timeout=20)  # nobody passes unless three are inside
        return slot.device

    devices = [done.result for done in LocalExecutor(slots).run(range(6), work)]
    assert sorted(devices) == sorted(["cuda:0", "cuda:1", "cuda:2"] * 2)


def test_a_bug_in_one_job_costs_only_that_job() -> None:
    def work(job: int, slot: Slot) -> int:
        return 10 // job

    results = {done.job: done for done in LocalExecutor([CPU]).run([2, 0, 5], work)}
    assert isinstance(results[0].error, ZeroDivisionError)
    assert (results[2].result, results[5].result) == (5, 2)


def test_a_problem_of_the_machine_stops_the_handing_out() -> None:
    def work(job: int, slot: Slot) -> int:
        if job == 1:
            raise EnvironmentProblem("no driver")
        return job

    results = list(LocalExecutor([CPU]).run([0, 1, 2, 3], work))
    assert [done.job for done in results] == [0, 1]
    assert str(results[1].error) == "no driver"


def test_after_a_stop_running_jobs_end_and_no_other_begins() -> None:
    stop = threading.Event()
    begun = []

    def work(job: int, slot: Slot) -> bool:
        begun.append(job)
        stop.set()
        return stop.wait(20)

    results = list(LocalExecutor([CPU], stop).run(range(10), work))
    assert [done.job for done in results] == begun == [0]


def test_a_caller_that_leaves_early_does_not_leave_work_behind() -> None:
    stop, ended = threading.Event(), []

    def work(job: int, slot: Slot) -> None:
        if job > 0:
            stop.wait(20)
        ended.append(job)

    with pytest.raises(KeyboardInterrupt):
        for _ in LocalExecutor([CPU, CPU], stop).run(range(10), work):
            raise KeyboardInterrupt
    assert stop.is_set()
    assert set(ended) >= {0}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("slot")]


def test_an_executor_without_slots_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one slot"):
        LocalExecutor([])
