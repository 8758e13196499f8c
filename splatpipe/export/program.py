"""A program that is started and waited for: it does not outlive us, and does not stand still for ever."""

from __future__ import annotations

import re
import select
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from splatpipe.trainers.base import Command
from splatpipe.trainers.process import ChildProcess

STILL_SECONDS = 600.0  # without a word and without work
WORK = 0.5  # seconds of processor time that count as work
LOOK_SECONDS = 1.0
TAIL_BYTES = 1 << 16
TOLD = 300  # characters of what a program said that go into a sentence
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_ERROR = re.compile("error: ", re.IGNORECASE)


@dataclass(frozen=True)
class Ended:
    """How a program ended. `status` is None when it was ended for standing still, or for taking too long."""

    status: int | None  # as subprocess has it: negative is a signal
    said: str  # the end of what it wrote to stdout and stderr

    @property
    def how(self) -> str:
        """To follow the program's name: `ended with 1`."""
        if self.status is None:
            return "stood still and was ended"
        if self.status >= 0:
            return f"ended with {self.status}"
        return f"was ended by {signal.Signals(-self.status).name}"

    def last_words(self, lines: int = 3) -> str:
        """The last error it named, else its last lines, as one short line of printable characters."""
        text = _ESCAPE.sub("", self.said.replace("\r", "\n"))
        clean = ("".join(c for c in line if c.isprintable()).strip(" \ufffd\u2717") for line in text.splitlines())
        told = [line for line in clean if line]
        errors = [line for line in told if _ERROR.search(line)]
        return " ".join(errors[-1:] or told[-lines:])[:TOLD]


def run_program(argv: Sequence[str], most_s: float = float("inf")) -> Ended:
    """Run a program to its end, in a session of its own that is killed when this process ends, however it does.

    It is ended after `most_s` seconds, and after STILL_SECONDS in which it wrote nothing and used no processor time.
    Raises `EnvironmentProblem` when it cannot be started.
    """
    child = ChildProcess(Command(tuple(argv), {}), Path(), waits=True)
    try:
        said, still = _follow(child, most_s)
        child.clear()
        child.reap()
    except BaseException:
        child.kill()
        child.reap()
        raise
    finally:
        child.close()
    return Ended(None if still else child.exit_status, said.decode("utf-8", "replace"))


def _follow(child: ChildProcess, most_s: float) -> tuple[bytes, bool]:
    """Until it ends: the end of its output, and whether it had to be killed."""
    said, worked = b"", 0.0
    begin = looked = alive = time.monotonic()
    while not child.has_exited():
        waited_for = [] if child.output_ended else [child.output]
        select.select(waited_for, [], [], LOOK_SECONDS if waited_for else LOOK_SECONDS / 50)
        data = child.read()
        said, now = (said + data)[-TAIL_BYTES:], time.monotonic()
        if data:
            alive = now
        elif now - looked >= LOOK_SECONDS:
            looked, work = now, _processor_seconds(child.pid)
            if work - worked > WORK:
                alive, worked = now, work
        if now - begin > most_s or now - alive > STILL_SECONDS:
            child.kill()
            return said, True
    while data := child.read():
        said = (said + data)[-TAIL_BYTES:]
    return said, False


def _processor_seconds(pid: int) -> float:
    """Of a process and those it started, as far as they still run."""
    try:
        process = psutil.Process(pid)
        times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    except psutil.Error:
        return 0.0
    return sum(one.user + one.system for one in times)
