"""A report that is kept up to date by a thread of its own while a run goes on; training never waits for it."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from types import TracebackType

from splatpipe.report.write import RunReport

LOOK_S = 0.5  # between two looks at whether the ledger has changed
EVERY_S = 30.0  # between two pages at most, so that the curves of a long attempt grow
REST = 20.0  # times the work that a page took before the next one: at most a twentieth of one core


class LiveReport:
    """Use as a context manager; leaving it writes the page for the last time. No method raises.

    It looks at the ledger's files, so nobody who writes to the ledger needs to know of it.
    """

    def __init__(self, report: RunReport) -> None:
        self.report = report
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="report", daemon=True)
        self._told = False

    def __enter__(self) -> LiveReport:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._end.set()
        self._thread.join()
        self._write(running=False)

    def _work(self) -> None:
        seen: tuple[tuple[int, int], ...] | None = None
        written = rest = -EVERY_S
        first = True  # reads the map of the scene, once
        while not self._end.wait(LOOK_S):
            now, began = self._state(), time.monotonic()
            if began < rest or (now == seen and began < written + EVERY_S):
                continue
            seen, worked = now, time.thread_time()
            self._write(running=True)
            written = time.monotonic()
            rest = written + (0.0 if first else REST * (time.thread_time() - worked))
            first = False

    def _state(self) -> tuple[tuple[int, int], ...]:
        """Size and time stamp of the ledger and of its journal, which takes what is written first."""
        ledger = self.report.layout.ledger
        files = (ledger, ledger.with_name(ledger.name + "-wal"))
        found = []
        for path in files:
            with contextlib.suppress(OSError):  # not there yet, or not any more
                found.append((path.stat().st_size, path.stat().st_mtime_ns))
        return tuple(found)

    def _write(self, running: bool) -> None:
        try:
            self.report.write(running)
        except Exception as error:  # a page is never worth a training, whatever is wrong with it
            if not self._told:
                print(f"warning: the report could not be written ({error})", file=sys.stderr, flush=True)
            self._told = True
