"""Loading pycolmap without losing our signal handlers."""

from __future__ import annotations

import signal
import sys
import threading
from types import ModuleType

TAKEN = (signal.SIGTERM, signal.SIGINT)


def load_pycolmap() -> ModuleType:
    """The module pycolmap. Its logging library takes SIGTERM over on import and aborts on it; we take it back.

    Handlers can only be set in the main thread; in any other the import must have happened before.
    """
    if "pycolmap" not in sys.modules and threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in TAKEN}
        import pycolmap

        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    import pycolmap

    return pycolmap
