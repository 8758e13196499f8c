"""What the process was started with: streams that may be closed or lose their reader, and a limit on its memory."""

from __future__ import annotations

import errno
import io
import os
import sys
import threading
from typing import TextIO

from splatpipe.errors import EnvironmentProblem

LEAST_BYTES = 1 << 30  # of addresses, to load the libraries; with less some of them wait for memory for ever
LEAST_THREADS = 4  # beside the first; with fewer some libraries send the process a signal that looks like Ctrl-C
NO_THREAD = "can't start new thread"  # what Python says
GB = 10**9


class _Patient(io.RawIOBase):
    """A file descriptor that nobody has to read: when its reader is gone, what is written goes nowhere.

    Of stderr any trouble is borne, a full disk under a log as well: words must not end a run that trains.
    """

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        return self._number

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def write(self, data) -> int:  # type: ignore[no-untyped-def]  # the base class takes any buffer
        try:
            return os.write(self._number, data)
        except OSError as error:
            if self._number != 2 and error.errno != errno.EPIPE:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._number)
            os.close(nowhere)
            return len(data)


def prepare_streams() -> None:
    """Give the process all three standard streams, and let it live on when nobody reads them any more.

    A closed one would be taken by the next file that is opened, a ledger say, which then gets the words of libraries.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115  # for as long as the process lives
    if sys.stdout is sys.__stdout__:  # else somebody has put their own in place
        sys.stdout = _patient(sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _patient(sys.stderr, 2)


def _patient(stream: TextIO | None, number: int) -> TextIO:
    if stream is not None:
        stream.flush()
    encoding = stream.encoding if stream is not None else "utf-8"
    raw = io.BufferedWriter(_Patient(number))
    lines = number == 2 or os.isatty(number)
    return io.TextIOWrapper(raw, encoding, errors="backslashreplace", line_buffering=lines)


def address_limit() -> int | None:
    """Bytes of addresses that the process may have (ulimit -v); None without a limit."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def check_memory() -> None:
    """Raises EnvironmentProblem where the libraries could not even be loaded."""
    limit = address_limit()
    if limit is not None and limit < LEAST_BYTES:
        raise EnvironmentProblem(
            f"this process may have {limit / GB:.1f} GB of addresses (ulimit -v); splatpipe needs "
            f"{LEAST_BYTES / GB:.1f} GB to load its libraries and several times as much to train; raise the limit, or "
            "limit memory by a control group"
        )


def short_of_memory(detail: str) -> EnvironmentProblem:
    """What to say of a MemoryError."""
    limit = address_limit()
    why = f"{detail}; " if detail else ""
    why += f"ulimit -v allows {limit / GB:.1f} GB of addresses; " if limit is not None else ""
    return EnvironmentProblem(f"not enough memory; {why}lower what the settings ask for, or free some")


def check_threads() -> None:
    """Raises EnvironmentProblem where not even a few threads can be started."""
    over = threading.Event()
    threads = [threading.Thread(target=over.wait, daemon=True) for _ in range(LEAST_THREADS)]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError:
        raise short_of_processes() from None
    finally:
        over.set()


def short_of_processes() -> EnvironmentProblem:
    """What to say when no further process or thread can be started."""
    return EnvironmentProblem(
        "no further process or thread can be started; raise the limit (ulimit -u, or that of the container), or run "
        "fewer things at once"
    )
