"""The child process of one attempt: `python -m splatpipe.trainers.gsplat_child REQUEST.json`.

Trains through `splatting/` on the request's device and reports through `events.jsonl` (docs/contracts.md).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from splatpipe.errors import SplatpipeError
from splatpipe.failures.classes import FailureClass
from splatpipe.files import read_json
from splatpipe.trainers.base import TrainRequest

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
    request = TrainRequest.from_json(read_json(Path(argv[0])))
    report = EventLog(request.files.events)
    stop = StopSignal()
    # torch and numba are imported here, so that the signal handlers are in place within milliseconds
    from splatpipe.splatting.loop import Stopped, TrainingFailure
    from splatpipe.trainers.gsplat_run import run

    try:
        run(request, report, stop)
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
    status = main(sys.argv[1:])
    sys.stdout.flush()
    # Skip interpreter teardown: decoder threads and CUDA unloading can turn a finished run into a crash.
    os._exit(status)
