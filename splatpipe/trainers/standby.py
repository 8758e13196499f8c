"""A child that has begun before its attempt: it waits, ready, until the one before it is over."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import replace

from splatpipe.trainers.base import StandbyTrainer, TrainRequest
from splatpipe.trainers.process import ChildProcess

MANY_NAMES = 200  # of images left out: the request must fit into a pipe, and more decoded photographs do no harm
END_S = 5.0
_number = itertools.count(1)


class Standby:
    """Started for `request`, about; trains whatever request it gets for the same device. Used by one thread at a time.

    Like any child it ends with splatpipe, however that ends (`launch.py`); and when nobody can tell it anything more.
    """

    def __init__(self, trainer: StandbyTrainer, request: TrainRequest, room: int) -> None:
        """`room`: bytes of main memory for decoded photographs. Raises EnvironmentProblem when it cannot be started."""
        self.trainer, self.device = trainer.name, request.device
        if len(request.skip_cameras) > MANY_NAMES:
            request = replace(request, skip_cameras=())
        marker = request.out.with_name(f"standby-{next(_number)}")
        self._child: ChildProcess | None = ChildProcess(trainer.standby(request), marker, waits=True)
        self._child.tell(json.dumps({"request": request.to_json(), "room": room}))

    @property
    def alive(self) -> bool:
        return self._child is not None and not self._child.has_exited()

    def suits(self, request: TrainRequest) -> bool:
        """Whether it can train this request."""
        return (self.trainer, self.device) == (request.trainer, request.device)

    def go(self, request: TrainRequest) -> ChildProcess | None:
        """The child, which begins with the request that is on disk; None when it cannot: it has died, or is in use."""
        child, self._child = self._child, None
        if child is None or not self.suits(request):
            self._child = child
            return None
        if child.has_exited() or not child.tell(str(request.files.request), last=True):
            _end(child)
            return None
        child.belongs_to(request.files.root)
        return child

    def cancel(self) -> None:
        """Nobody needs it any more; nothing happens once it has been told to go."""
        child, self._child = self._child, None
        if child is not None:
            _end(child)


def _end(child: ChildProcess) -> None:
    child.kill()
    deadline = time.monotonic() + END_S
    while not child.has_exited() and time.monotonic() < deadline:
        time.sleep(0.01)
    if child.has_exited():
        child.clear()
        child.reap()
    child.close()
