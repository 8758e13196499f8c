"""Text that somebody else is writing: a child's output, its event file, and our copy of its log."""

from __future__ import annotations

import contextlib
import json
import re
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from splatpipe.files import parse_json

ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
BREAK = re.compile(rb"[\r\n]+")
LONGEST_LINE = 1 << 16  # a child that never ends its line must not fill our memory


class LineSplitter:
    """Raw bytes in, clean lines out: split on carriage return and newline, ANSI codes and bad UTF-8 replaced."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """The lines that `data` completes; empty ones are left out."""
        *whole, self._rest = BREAK.split(self._rest + data)
        if len(self._rest) > LONGEST_LINE:
            whole.append(self._rest)
            self._rest = b""
        return [line for line in map(_clean, whole) if line]

    def flush(self) -> list[str]:
        """The line that was never ended, if there is one."""
        line, self._rest = _clean(self._rest), b""
        return [line] if line else []


def _clean(raw: bytes) -> str:
    text = ANSI.sub("", raw.decode("utf-8", "replace"))
    return "".join(c for c in text if c.isprintable() or c == "\t").rstrip()


class EventTail:
    """New whole lines of an `events.jsonl` as dictionaries; half a line waits for its other half."""

    def __init__(self, path: Path, from_start: bool = False) -> None:
        """Begin at the present end of the file, or at its start."""
        self._path = path
        self._rest = b""
        with contextlib.suppress(OSError):
            self._close_half_line(from_start)
        self._offset = 0 if from_start or not path.exists() else path.stat().st_size

    def _close_half_line(self, from_start: bool) -> None:
        """End the half line of a killed predecessor, lest the next event be glued to it."""
        if from_start or not self._path.stat().st_size:
            return
        with self._path.open("rb+") as handle:
            handle.seek(-1, 2)
            if handle.read(1) != b"\n":
                handle.write(b"\n")

    def read(self) -> list[dict[str, Any]]:
        """Events written since the last call; lines that are no event are passed over."""
        try:
            with self._path.open("rb") as handle:
                handle.seek(self._offset)
                data = handle.read()
        except OSError:
            return []
        self._offset += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        return [event for event in map(_event, whole) if event is not None]


def read_events(path: Path) -> list[dict[str, Any]]:
    """All events of a file, which need not exist; lines that are no event are passed over."""
    if not path.is_file():
        return []
    return [event for line in path.read_bytes().splitlines() if (event := _event(line)) is not None]


def append_event(path: Path, event: dict[str, Any]) -> None:
    """Record an event of a child that writes none itself; a full disk must not end the attempt."""
    with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(event) + "\n")


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        value = parse_json(line.decode("utf-8", "replace"))
    except ValueError:
        return None
    return value if isinstance(value, dict) and isinstance(value.get("event"), str) else None


class BoundedLog:
    """A log file that keeps its beginning and its end when it outgrows `limit_bytes`.

    A disk that is full costs log lines, never the attempt: `problem` then says what happened.
    """

    def __init__(self, path: Path, limit_bytes: int = 50 << 20) -> None:
        self._path = path
        self._limit = limit_bytes
        self.problem: str | None = None
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, lines: list[str]) -> None:
        """Append lines."""
        if not lines:
            return
        try:
            with self._path.open("ab") as handle:
                handle.write(("\n".join(lines) + "\n").encode())
                size = handle.tell()
            if size > self._limit:
                self._shorten()
        except OSError as error:
            self.problem = f"{self._path.name} is incomplete: {error.strerror or error}"

    def _shorten(self) -> None:
        keep = self._limit // 4
        with self._path.open("rb+") as handle:
            size = handle.seek(0, 2)
            handle.seek(size - keep)
            end = handle.read().partition(b"\n")[2]
            handle.seek(keep)
            handle.write(f"\n[splatpipe: {size - 2 * keep} bytes left out here]\n".encode() + end)
            handle.truncate()


class LineMemory:
    """The lines that can matter for the verdict, in order: the first, the last, and every telling one between."""

    def __init__(self, telling: Callable[[str], bool], keep: int = 2000) -> None:
        self._telling = telling
        self._keep = keep
        self._first: list[str] = []
        self._between: list[str] = []
        self._last: deque[str] = deque(maxlen=keep)

    def add(self, line: str) -> None:
        if len(self._first) < self._keep:
            self._first.append(line)
            return
        if len(self._last) == self._keep and len(self._between) < self._keep and self._telling(self._last[0]):
            self._between.append(self._last[0])
        self._last.append(line)

    @property
    def lines(self) -> list[str]:
        return [*self._first, *self._between, *self._last]
