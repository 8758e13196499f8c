"""Attempts as jobs of a Slurm cluster, submitted in arrays through submitit.

How an attempt went is read from its own folder, never from submitit's pickles or sacct, which some clusters lack;
squeue only says whether a job is still there.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from splatpipe.errors import EnvironmentProblem
from splatpipe.executors.base import Need, OnEvent, Slot, Upcoming, Work
from splatpipe.executors.remote import Follower, lost, perform, read_outcome, worker_of, write_outcome
from splatpipe.executors.settings import ExecutorSettings
from splatpipe.files import read_json, write_json
from splatpipe.layout import AttemptLayout
from splatpipe.trainers.base import Attempt, TrainRequest

LOOK_S = 1.0
ASK_S = 5.0  # between calls of squeue, which clusters do not like to be asked often
GONE_S = 30.0  # a job that squeue no longer knows may have left an outcome that the file system shows later
MARGIN_S = 60  # of the warning before the time limit, beside the child's own grace
MOST_JOBS = 500  # in the queue at once, unless executor.jobs says
TIMEOUTS = 1000  # how often one attempt may run into its time limit; every time it goes on from its checkpoint


@dataclass
class Errand:
    """What a job does. submitit calls `checkpoint` before a time limit or a preemption, and queues the job again."""

    work: Work
    request: TrainRequest
    _stop: threading.Event | None = field(default=None, repr=False)
    _thread: threading.Thread | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"work": self.work, "request": self.request, "_stop": None, "_thread": None}

    def __call__(self) -> None:
        result: list[Attempt | EnvironmentProblem] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._perform, args=(self._stop, result), name="attempt")
        self._thread.start()
        while self._thread.is_alive():
            self._thread.join(1.0)  # in pieces: signals are handled between them
        for outcome in result:
            write_outcome(self.request, outcome)

    def checkpoint(self) -> Any:
        """Have the child write its checkpoint; then the same again in a job of the same number."""
        from submitit.helpers import DelayedSubmission

        if self._stop is not None and self._thread is not None:
            self._stop.set()
            self._thread.join()
        return DelayedSubmission(Errand(self.work, self.request))

    def _perform(self, stop: threading.Event, result: list[Attempt | EnvironmentProblem]) -> None:
        try:
            result.append(perform(self.work, self.request, stop, "Slurm"))
        except EnvironmentProblem as problem:
            result.append(problem)


@dataclass
class _Job:
    request: TrainRequest
    future: Future[Attempt]
    submitted: float
    id: str = ""
    missing_since: float | None = None


class SlurmExecutor:
    """One job per attempt; jobs that are submitted together are one array."""

    def __init__(
        self, work: Work, stop: threading.Event, settings: ExecutorSettings, folder: Path, device: str, grace_s: float
    ) -> None:
        """`folder` is for submitit's files. Raises EnvironmentProblem without submitit or sbatch."""
        self._work, self._stop = work, stop
        on_gpu = bool(settings.slurm_gpu) and device != "cpu"
        self._slot = Slot("cuda:0" if on_gpu else "cpu", settings.slurm_cpus)
        self._most = settings.jobs or MOST_JOBS
        self._submitit = _executor(settings, folder, on_gpu, grace_s)
        self._follower = Follower(stop)
        self._taken = 0
        self._waiting: list[_Job] = []
        self._jobs: list[_Job] = []
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._asked = 0.0
        self._thread = threading.Thread(target=self._watch, name="slurm", daemon=True)
        self._thread.start()

    def acquire(self, need: Need) -> Slot | None:
        if self._taken >= self._most:
            return None
        self._taken += 1
        return self._slot

    def submit(self, slot: Slot, request: TrainRequest, on_event: OnEvent) -> Future[Attempt]:
        end_recorded_job(request.files)
        self._follower.follow(request, on_event)
        request.files.outcome.unlink(missing_ok=True)
        job = _Job(request, Future(), time.time())
        self._waiting.append(job)
        return job.future

    def look_ahead(self, upcoming: Upcoming) -> None:
        """A worker starts its child when it gets an attempt."""

    def flush(self) -> None:
        """Submit what has been collected as one array."""
        jobs, self._waiting = self._waiting, []
        if not jobs:
            return
        try:
            with self._submitit.batch():
                handles = [self._submitit.submit(Errand(self._work, job.request)) for job in jobs]
        except Exception as error:  # submitit raises what sbatch said, in classes of its own
            problem = EnvironmentProblem(f"sbatch refused the jobs: {' '.join(str(error).split())[-300:]}")
            for job in jobs:
                self._follower.leave(job.request)
                job.future.set_exception(problem)
            return
        for job, handle in zip(jobs, handles, strict=True):
            job.id = str(handle.job_id)
            write_json(job.request.files.job, {"slurm": job.id})
        with self._lock:
            self._jobs += jobs

    def release(self, slot: Slot) -> None:
        self._taken -= 1

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        self._follower.close()

    def _watch(self) -> None:
        while not self._closed.wait(LOOK_S):
            with self._lock:
                jobs = list(self._jobs)
            states = self._states(jobs)
            for job in jobs:
                try:
                    done = self._look(job, states)
                except BaseException as error:
                    self._end(job)
                    job.future.set_exception(error)
                    continue
                if done is not None:
                    self._end(job)
                    job.future.set_result(done)

    def _end(self, job: _Job) -> None:
        self._follower.leave(job.request)
        job.request.files.job.unlink(missing_ok=True)
        with self._lock:
            self._jobs.remove(job)

    def _states(self, jobs: Sequence[_Job]) -> dict[str, str] | None:
        """What squeue says of our jobs, now and then; None in between, and when it does not answer."""
        if not jobs or time.monotonic() - self._asked < ASK_S:
            return None
        self._asked = time.monotonic()
        return queue()

    def _look(self, job: _Job, states: dict[str, str] | None) -> Attempt | None:
        """The attempt, if it is over."""
        outcome = read_outcome(job.request)
        if isinstance(outcome, EnvironmentProblem):
            raise outcome
        if outcome is not None or states is None:
            return outcome
        state = states.get(job.id, "")
        if self._stop.is_set() and state == "PENDING":
            _slurm("scancel", job.id)
            return self._lost(job, "stopped before its job began", "stop")
        if state:
            job.missing_since = None
            return None
        job.missing_since = job.missing_since or time.monotonic()
        if time.monotonic() - job.missing_since < GONE_S:
            return None
        return self._lost(job, f"Slurm job {job.id} on {worker_of(job.request.files)} was lost", "lost")

    def _lost(self, job: _Job, line: str, ended_by: str) -> Attempt:
        return lost(self._work, job.request, job.submitted, lambda place: line, ended_by)


def queue() -> dict[str, str] | None:
    """This user's jobs in the queue, by id (array tasks as 12_3), with their states; None when squeue fails."""
    answer = _slurm("squeue", "--noheader", "--array", "--me", "--format=%i %T")
    if answer is None:
        return None
    rows = (line.split() for line in answer.splitlines())
    return {row[0]: row[1] for row in rows if len(row) == 2}


def end_recorded_job(files: AttemptLayout, wait_s: float = 60.0) -> bool:
    """Cancel the job that a killed splatpipe left in the queue for this attempt; whether there was one.

    Raises EnvironmentProblem while it cannot be ended: two must not write into one folder.
    """
    try:
        job = str(read_json(files.job)["slurm"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if shutil.which("scancel") is None:
        raise EnvironmentProblem(
            f"{files.root}: Slurm job {job} may still be training here, and there is no scancel on this machine; "
            f"end the job on the cluster, then delete {files.job.name}"
        )
    deadline = time.monotonic() + wait_s
    _slurm("scancel", job)
    while (states := queue()) is None or job in states:
        if time.monotonic() > deadline:
            raise EnvironmentProblem(f"{files.root}: Slurm job {job} does not end; try again when it has")
        time.sleep(1.0)
    files.job.unlink(missing_ok=True)
    return True


def _slurm(*command: str) -> str | None:
    """What a command of Slurm prints; None when it fails."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout
    return None


def _executor(settings: ExecutorSettings, folder: Path, on_gpu: bool, grace_s: float) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise EnvironmentProblem(
            'executor.kind is slurm, but submitit is missing: pip install "splatpipe[slurm]"'
        ) from error
    if shutil.which("sbatch") is None:
        raise EnvironmentProblem("executor.kind is slurm, but there is no sbatch on this machine")
    executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=TIMEOUTS)
    parameters = {
        "job_name": "splatpipe",
        "time": max(round(settings.slurm_hours * 60), 1),
        "cpus_per_task": settings.slurm_cpus,
        "signal_delay_s": round(grace_s) + MARGIN_S,
        "array_parallelism": settings.jobs or MOST_JOBS,
        "partition": settings.slurm_partition,
        "account": settings.slurm_account,
        "mem": f"{settings.slurm_memory_gb}GB" if settings.slurm_memory_gb else None,
        "gres": f"{settings.slurm_gpu}:1" if on_gpu else None,
        "additional_parameters": {"requeue": True},
    }
    executor.update_parameters(**{name: value for name, value in parameters.items() if value is not None})
    return executor
