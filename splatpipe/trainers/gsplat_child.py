"""The child process of one attempt: `python -m splatpipe.trainers.gsplat_child REQUEST.json`.

With `--standby` in place of the request it gets ready and waits for one (`base.StandbyTrainer`).

Trains through `splatting/` on the request's device and reports through `events.jsonl` (docs/contracts.md).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import psutil

from splatpipe.errors import SplatpipeError
from splatpipe.failures.classes import FailureClass
from splatpipe.files import read_json
from splatpipe.trainers.base import TrainRequest

if TYPE_CHECKING:
    from splatpipe.splatting.views import DecodedViews

STANDBY = "--standby"
EXIT_CRASHED = 1
EXIT_GUARD = 3
EXIT_STOPPED = 143


class EventLog:
    """Appends events to `events.jsonl`; each line is written and flushed whole."""

    def __init__(self, path: Path) -> None:
        self._handle = path.open("a", encoding="utf-8")
        if self._handle.tell() and not path.read_bytes().endswith(b"\n"):
            self._handle.write("\n")  # a killed predecessor left half a line

    def __call__(self, event: str, **values: Any) -> None:
        self._handle.write(json.dumps({"t": round(time.time(), 3), "event": event, **values}) + "\n")
        self._handle.flush()


class Laps:
    """Seconds that each part of a beginning took, in order."""

    def __init__(self, began: float) -> None:
        """`began`: seconds since the epoch."""
        self.seconds: dict[str, float] = {}
        self._last = began

    def __call__(self, part: str) -> None:
        """This part is over."""
        now = time.time()
        self.seconds[part], self._last = round(max(now - self._last, 0.0), 3), now


class StopSignal:
    """Turns SIGTERM and SIGINT into a flag that the training loop asks for."""

    def __init__(self) -> None:
        self._raised = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._raise)

    def __call__(self) -> bool:
        return self._raised

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self._raised = True


def main(argv: list[str]) -> int:
    stop = StopSignal()
    if argv[0] == STANDBY:
        return _stand_by(stop)
    return _train(Path(argv[0]), Laps(psutil.Process().create_time()), stop)


def _stand_by(stop: StopSignal) -> int:
    """Get ready, wait for a request and train it; see `base.StandbyTrainer`."""
    given = json.loads(sys.stdin.readline())
    expected = TrainRequest.from_json(given["request"])
    from splatpipe.trainers.gsplat_standby import Photographs, load_kernels

    load_kernels(expected)
    photographs = Photographs(expected, given["room"])
    path = sys.stdin.readline().rstrip("\n")
    return _train(Path(path), Laps(time.time()), stop, photographs.take()) if path else 0


def _train(path: Path, laps: Laps, stop: StopSignal, decoded: DecodedViews | None = None) -> int:
    """Train the request at `path`; the exit status."""
    request = TrainRequest.from_json(read_json(path))
    report = EventLog(request.files.events)
    laps("process")
    # torch and numba are imported here, so that the signal handlers are in place within milliseconds
    from splatpipe.splatting.loop import Stopped, TrainingFailure
    from splatpipe.trainers.gsplat_run import run

    laps("imports")
    try:
        run(request, report, stop, laps, decoded or {})
    except TrainingFailure as failure:
        report("error", **{"class": failure.failure, "message": str(failure), "step": failure.step})
        return EXIT_GUARD
    except SplatpipeError as error:
        report("error", **{"class": FailureClass.DATA_ERROR.value, "message": str(error), "step": 0})
        return EXIT_GUARD
    except Stopped:
        return EXIT_STOPPED
    return 0


if __name__ == "__main__":
    try:
        status = main(sys.argv[1:])
    except BaseException:
        traceback.print_exc()
        status = EXIT_CRASHED
    sys.stdout.flush()
    # Skip interpreter teardown: decoder threads and CUDA unloading can turn a finished run into a crash, and hang or
    # abort after an error of the GPU.
    os._exit(status)
