"""What attempts on other machines have in common: one shared run folder, in which only the driver writes the ledger.

A worker makes the attempt in its folder and notes there who it is. The driver reads the events as they are written,
and asks for a stop by a file, because neither signals nor sockets reach every worker.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from splatpipe.errors import EnvironmentProblem
from splatpipe.executors.base import OnEvent, Work
from splatpipe.failures.classes import FailureClass
from splatpipe.files import read_json, write_json
from splatpipe.layout import AttemptLayout
from splatpipe.trainers.base import Attempt, PreparedTrainer, TrainRequest
from splatpipe.trainers.progress import Progress
from splatpipe.trainers.supervise import end_orphan, recover
from splatpipe.trainers.tail import EventTail, read_events

LOOK_S = 0.5
_prepared: set[str] = set()


# ------------------------------------------------------------------ in the worker


def perform(work: Work, request: TrainRequest, stop: threading.Event, place: str = "") -> Attempt:
    """Make one attempt here, for a driver elsewhere. `place`: what the driver knows this machine by.

    Raises EnvironmentProblem where this machine cannot see the run folder.
    """
    files = request.files
    if not request.dataset.is_dir():
        raise EnvironmentProblem(
            f"{_me(place)} does not see {request.dataset}: run folder and scene must be on a file system that all "
            "machines share, under the same path"
        )
    files.root.mkdir(parents=True, exist_ok=True)
    # Not through write_json: nobody needs it after a crash of this machine, and two waits for the disk are saved.
    files.worker.write_text(json.dumps({"place": _me(place), "pid": os.getpid(), "since": time.time()}))
    end_orphan(files)
    with _watching(files, stop):
        _prepare(work, request, stop)
        return work.run(request, lambda event: None, stop)


def _me(place: str) -> str:
    return f"{platform.node()} ({place})" if place else platform.node()


def _prepare(work: Work, request: TrainRequest, stop: threading.Event) -> None:
    """What a trainer does once on a machine; the first step may wait for it, so nobody needs to be told."""
    for trainer in work.trainers:
        if trainer.name == request.trainer and isinstance(trainer, PreparedTrainer) and trainer.name not in _prepared:
            trainer.prepare(request.device, lambda text: None, stop)
            _prepared.add(trainer.name)


@contextlib.contextmanager
def _watching(files: AttemptLayout, stop: threading.Event) -> Iterator[None]:
    """Set `stop` when the driver asks for it."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(LOOK_S):
            # A listing, not a look for one name: network file systems remember for long that a name was not there.
            with contextlib.suppress(OSError):
                if files.stop in files.root.iterdir():
                    stop.set()

    thread = threading.Thread(target=watch, name="stop-file", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def write_outcome(request: TrainRequest, outcome: Attempt | EnvironmentProblem) -> None:
    """Leave word for a driver that cannot be answered otherwise."""
    if isinstance(outcome, EnvironmentProblem):
        write_json(request.files.outcome, {"problem": str(outcome)})
        return
    plain = {one.name: getattr(outcome, one.name) for one in fields(outcome)}
    write_json(request.files.outcome, {**plain, "request": None, "splat": outcome.splat is not None})


# ------------------------------------------------------------------ in the driver


def read_outcome(request: TrainRequest) -> Attempt | EnvironmentProblem | None:
    """What `write_outcome` has left; None when there is nothing (yet)."""
    try:
        data = read_json(request.files.outcome)
    except (OSError, ValueError):
        return None
    if "problem" in data:
        return EnvironmentProblem(data["problem"])
    failure = FailureClass(data["failure"]) if data["failure"] else None
    splat = request.files.splat if data["splat"] else None
    changed = {"request": request, "failure": failure, "splat": splat, "warnings": tuple(data["warnings"])}
    return Attempt(**{**data, **changed})


@dataclass
class _Followed:
    request: TrainRequest
    on_event: OnEvent
    tail: EventTail


@dataclass
class Follower:
    """Reads the events of attempts that are made elsewhere, and passes on the wish to stop."""

    stop: threading.Event
    _followed: dict[str, _Followed] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _closed: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def follow(self, request: TrainRequest, on_event: OnEvent) -> None:
        """From now on; what an earlier stop left in the folder is cleared."""
        request.files.root.mkdir(parents=True, exist_ok=True)
        request.files.stop.unlink(missing_ok=True)
        with self._lock:
            self._followed[_key(request)] = _Followed(request, on_event, EventTail(request.files.events))
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="follower", daemon=True)
            self._thread.start()

    def leave(self, request: TrainRequest) -> None:
        """The attempt is over: its last events are read."""
        with self._lock:
            followed = self._followed.pop(_key(request), None)
        if followed:
            _tell(followed)

    def close(self) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        told: set[str] = set()
        while not self._closed.wait(LOOK_S):
            with self._lock:
                now = dict(self._followed)
            for key, followed in now.items():
                _tell(followed)
                if self.stop.is_set() and key not in told:
                    told.add(key)
                    with contextlib.suppress(OSError):
                        followed.request.files.stop.touch()


def _key(request: TrainRequest) -> str:
    return str(request.out)


def _tell(followed: _Followed) -> None:
    for event in followed.tail.read():
        followed.on_event(event)


def worker_of(files: AttemptLayout) -> str:
    """The machine that makes, or made, the attempt."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return str(read_json(files.worker)["place"])
    return "a machine that never said its name"


def lost(
    work: Work, request: TrainRequest, started: float, why: Callable[[str], str], ended_by: str = "lost"
) -> Attempt:
    """The attempt whose machine is gone: interrupted where its events end, or trained if it had finished.

    `why` makes the sentence from the name of the machine.
    """
    trainer = next(one for one in work.trainers if one.name == request.trainer)
    whole = recover(trainer, request)
    if whole is not None:
        return whole
    progress = Progress()
    for event in read_events(request.files.events):
        progress.add(event)
    line = why(worker_of(request.files))
    health: dict[str, Any] = progress.summary() | {"ended_by": ended_by}
    return Attempt(
        request=request,
        started=started,
        ended=time.time(),
        exit_status=None,
        failure=FailureClass.INTERRUPTED,
        line=line,
        last_step=progress.last_step,
        gaussians=progress.gaussians,
        peak_rss_bytes=0,
        peak_vram_bytes=0,
        splat=None,
        health=health,
    )
