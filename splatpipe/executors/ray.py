"""Attempts on the machines of a Ray cluster: an existing one, or one on this machine only."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import Future
from typing import Any

from splatpipe.errors import EnvironmentProblem, SplatpipeError
from splatpipe.executors.base import Need, OnEvent, Slot, Upcoming, Work
from splatpipe.executors.remote import Follower, lost, perform
from splatpipe.trainers.base import Attempt, TrainRequest

COUNT_S = 1.0  # the cluster's resources are counted again this often: nodes come and go
OBJECT_STORE_BYTES = 100 << 20  # of a cluster of our own; requests and attempts are small


class RayExecutor:
    """One task per attempt. Ray isolates GPUs and notices lost nodes; trying again is the scheduler's."""

    def __init__(
        self,
        work: Work,
        stop: threading.Event,
        *,
        address: str | None = None,
        device: str = "auto",
        threads: int = 0,
        jobs: int = 0,
        per_gpu: int = 1,
    ) -> None:
        """`device` "auto": GPUs where the cluster has any. Raises EnvironmentProblem without Ray or cluster."""
        self._ray = _import()
        self._work, self._stop, self._jobs = work, stop, jobs
        self._ours = not self._ray.is_initialized()
        if self._ours:
            _connect(self._ray, address)
        gpus = self._ray.cluster_resources().get("GPU", 0) > 0
        if device.startswith("cuda") and not gpus:
            self.close()
            raise EnvironmentProblem(f"training.device is {device}, but the Ray cluster has no GPU")
        on_gpu = gpus and device != "cpu"
        self._slot = Slot("cuda:0" if on_gpu else "cpu", threads or (0 if on_gpu else 1))
        self._resource, self._share = ("GPU", 1 / max(per_gpu, 1)) if on_gpu else ("CPU", float(self._slot.threads))
        self._taken = 0
        self._counted, self._room = 0.0, 0
        self._follower = Follower(stop)
        cpus = 1 if on_gpu else self._slot.threads
        # max_calls 0: Ray would start a new worker for every GPU task, but ours leave the GPU to their children.
        options = {"num_gpus": self._share if on_gpu else 0, "num_cpus": cpus, "max_calls": 0}
        self._remote = self._ray.remote(max_retries=0, scheduling_strategy="SPREAD", **options)(_task)
        self._shared = self._ray.put(work)

    def acquire(self, need: Need) -> Slot | None:
        """A place while the cluster has more of them than attempts; Ray chooses the machine."""
        if self._taken >= self._capacity():
            return None
        self._taken += 1
        return self._slot

    def submit(self, slot: Slot, request: TrainRequest, on_event: OnEvent) -> Future[Attempt]:
        self._follower.follow(request, on_event)
        result: Future[Attempt] = Future()
        started = time.time()
        inner = self._remote.remote(self._shared, request).future()
        inner.add_done_callback(lambda done: self._settle(done, result, request, started))
        return result

    def look_ahead(self, upcoming: Upcoming) -> None:
        """A worker starts its child when it gets an attempt."""

    def flush(self) -> None:
        """Every task went when it was submitted."""

    def release(self, slot: Slot) -> None:
        self._taken -= 1

    def close(self) -> None:
        """Leave the cluster; only one that was started for this run ends with it."""
        if hasattr(self, "_follower"):
            self._follower.close()
        if self._ours:
            self._ray.shutdown()

    def _capacity(self) -> int:
        if time.monotonic() - self._counted > COUNT_S:
            total = self._ray.cluster_resources().get(self._resource, 0.0)
            self._room = int(total / self._share + 1e-6)
            self._counted = time.monotonic()
        return min(self._room, self._jobs) if self._jobs else self._room

    def _settle(self, done: Future[Attempt], result: Future[Attempt], request: TrainRequest, started: float) -> None:
        """Turn what Ray says into an attempt, or into an error of ours; never leave `result` open."""
        try:
            self._follower.leave(request)
            error = done.exception()
            if error is None:
                result.set_result(done.result())
            else:
                result.set_result(self._judge(error, request, started))
        except BaseException as problem:
            result.set_exception(problem)

    def _judge(self, error: BaseException, request: TrainRequest, started: float) -> Attempt:
        """A lost machine costs the steps since the last checkpoint; what the task raised is raised here."""
        exceptions = self._ray.exceptions
        if isinstance(error, exceptions.RayTaskError):
            if "No module named" in str(error):
                raise EnvironmentProblem(
                    f"a worker of the Ray cluster cannot load what it needs ({_last_line(error)}): install the same "
                    "splatpipe on every node"
                )
            raise error.cause if isinstance(error.cause, SplatpipeError) else error
        gone = {
            exceptions.OutOfMemoryError: "Ray ended the attempt on {}, which was running out of memory",
            exceptions.WorkerCrashedError: "the worker process on {} died",
            exceptions.NodeDiedError: "{} was lost",
        }
        sentence = next((text for kind, text in gone.items() if isinstance(error, kind)), "{} was lost")
        return lost(self._work, request, started, lambda place: sentence.format(place))


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1].strip()


def _task(work: Work, request: TrainRequest) -> Attempt:
    """Runs in a worker process of Ray."""
    import ray

    return perform(work, request, threading.Event(), f"Ray node {ray.get_runtime_context().get_node_id()[:8]}")


def _import() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise EnvironmentProblem('executor.kind is ray, but Ray is missing: pip install "splatpipe[ray]"') from error
    return ray


def _connect(ray: Any, address: str | None) -> None:
    """Join the cluster at `address`, else the one that Ray finds by itself, else begin one on this machine."""
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        try:
            ray.init(address=address or "auto", **quiet)
        except ConnectionError:
            if address or os.environ.get("RAY_ADDRESS"):
                raise
            ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = f"at {address or os.environ.get('RAY_ADDRESS')}" if address or os.environ.get("RAY_ADDRESS") else "here"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EnvironmentProblem(f"no Ray cluster answers {where}: {reason}") from error
