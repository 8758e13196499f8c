"""A request to stop, and where it may end the process on the spot."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

WHILE_PLANNING = "stopped while the scene was read or its patches were planned; run again to continue"
GRACE_S = 0.5  # for a stop in good order, before the process is ended


class Stop(threading.Event):
    """An event that is set to ask for a stop.

    Steps that take long, hold nothing and write nothing, as reading a large model, need not look at it: a `harmless`
    block that it finds running is ended by `leave`, which must end the process.
    """

    def __init__(self, leave: Callable[[], None]) -> None:
        super().__init__()
        self._leave = leave
        self.within_harmless = False

    @contextlib.contextmanager
    def harmless(self) -> Iterator[None]:
        """While the block runs, the process may end at any moment."""
        done = threading.Event()
        threading.Thread(target=self._watch, args=(done,), name="stop", daemon=True).start()
        self.within_harmless = True
        try:
            yield
        finally:
            self.within_harmless = False
            done.set()

    def _watch(self, done: threading.Event) -> None:
        self.wait()
        if not done.wait(GRACE_S):
            self._leave()


def harmless(stop: threading.Event | None) -> contextlib.AbstractContextManager[None]:
    """`Stop.harmless` for a `Stop`; any other event has to wait for the end of the block."""
    return stop.harmless() if isinstance(stop, Stop) else contextlib.nullcontext()
