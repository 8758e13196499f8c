"""From what an attempt left behind to the name of its failure. Pure: reads no file but the catalogue."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from splatpipe.errors import ConfigError
from splatpipe.failures.classes import FailureClass

Kind = Literal["error", "warn", "ignore"]
When = Literal["", "start", "early", "late", "collapsing"]
EndedBy = Literal["", "silence", "wall", "stop", "guard"]

CONTEXT_LINES = 40  # how far before a line its traceback is searched
COLLAPSING_SHARE = 0.5  # relocated share of a refinement that announces the end (trainers.md, D)
SHELL_SIGNAL = 128  # a shell reports death by signal n as exit status 128 + n


@dataclass(frozen=True)
class Row:
    """One message and what it means; see the head of catalogue.yml."""

    pattern: re.Pattern[str]
    failure: FailureClass | None  # None for warnings and noise
    kind: Kind
    when: When
    near: re.Pattern[str] | None
    ref: str
    cause: str


@dataclass(frozen=True)
class Evidence:
    """What is known about an attempt that did not succeed.

    `lines` are the child's output in order; `errors` its `error` events in order; `ended_by` says why the
    supervisor ended it, if it did; `output_problem` is what is wrong with the splat of a child that exited 0.
    """

    exit_status: int | None
    lines: Sequence[str] = ()
    errors: Sequence[Mapping[str, Any]] = ()
    stepped: bool = True
    last_step: int = 0
    ended_by: EndedBy = ""
    refine_start: int = 500
    blind_cameras: int = 0
    relocated_share: float = 0.0  # of the last refinement
    oom_killer: bool = False
    output_problem: str | None = None
    output_failure: FailureClass = FailureClass.EXPORT_MISSING


@dataclass(frozen=True)
class Verdict:
    """The class of a failure and the line that decided it; `ref` and `cause` when a catalogue row did."""

    failure: FailureClass
    line: str
    ref: str = ""
    cause: str = ""


class Catalogue:
    """Rows in the order in which they are tried on a line."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = tuple(rows)
        self._any = re.compile("|".join(f"(?:{row.pattern.pattern})" for row in rows), re.IGNORECASE)

    def telling(self, line: str) -> bool:
        """Whether any row knows this line."""
        return self._any.search(line) is not None

    def match(self, lines: Sequence[str], index: int, evidence: Evidence) -> Row | None:
        """The first row that fits line `index`, given what stands around it and how far training was."""
        line = lines[index]
        if not self.telling(line):
            return None
        for row in self.rows:
            if row.pattern.search(line) and _stage_fits(row.when, evidence) and _near(row, lines, index):
                return row
        return None


def _stage_fits(when: When, evidence: Evidence) -> bool:
    late = evidence.last_step >= evidence.refine_start
    match when:
        case "start":
            return not evidence.stepped
        case "early":
            return not late
        case "late":
            return late
        case "collapsing":
            return late and not evidence.blind_cameras and evidence.relocated_share >= COLLAPSING_SHARE
        case _:
            return True


def _near(row: Row, lines: Sequence[str], index: int) -> bool:
    around = lines[max(0, index - CONTEXT_LINES) : index + 6]
    return row.near is None or any(row.near.search(line) for line in around)


@cache
def default_catalogue() -> Catalogue:
    """The rows that splatpipe comes with."""
    path = Path(__file__).with_name("catalogue.yml")
    return Catalogue(parse_rows(yaml.safe_load(path.read_text(encoding="utf-8")), path.name))


def extended_catalogue(rows: Sequence[Mapping[str, Any]], where: str) -> Catalogue:
    """The default rows after a user's own, which win; ConfigError names `where` and the row that is wrong."""
    return Catalogue([*parse_rows(rows, where), *default_catalogue().rows])


def parse_rows(rows: Iterable[Mapping[str, Any]], where: str) -> list[Row]:
    """Check and compile catalogue rows."""
    return [_parse_row(row, f"{where}, row {number}") for number, row in enumerate(rows, 1)]


def _parse_row(row: Mapping[str, Any], where: str) -> Row:
    known = {"pattern", "class", "kind", "when", "near", "ref", "cause"}
    if not isinstance(row, Mapping) or not isinstance(row.get("pattern"), str):
        raise ConfigError(f"{where}: a row needs at least 'pattern', a regular expression, and 'class'.")
    if unknown := sorted(set(row) - known):
        raise ConfigError(f"{where}: unknown key '{unknown[0]}'; known are {', '.join(sorted(known))}.")
    kind, when = row.get("kind", "error"), row.get("when", "")
    for name, value, choices in (("kind", kind, get_args(Kind)), ("when", when, get_args(When))):
        if value not in choices:
            raise ConfigError(f"{where}: '{name}' is one of {', '.join(filter(None, choices))}, not '{value}'.")
    try:
        failure = FailureClass(row["class"]) if kind == "error" else None
        pattern = re.compile(row["pattern"], re.IGNORECASE)
        near = re.compile(row["near"], re.IGNORECASE) if "near" in row else None
    except (KeyError, ValueError):
        raise ConfigError(f"{where}: 'class' is one of {', '.join(FailureClass)}.") from None
    except re.error as error:
        raise ConfigError(f"{where}: '{row['pattern']}' is no regular expression ({error}).") from None
    return Row(pattern, failure, kind, when, near, str(row.get("ref", "")), str(row.get("cause", "")))


def classify(evidence: Evidence, catalogue: Catalogue | None = None) -> Verdict:
    """The failure's class and the line that decided it.

    A stop that was asked for is an interruption. Else the child's own first `error` event decides, else the
    first line in time that the catalogue knows, else how the supervisor or a signal ended the child, else
    its exit status.
    """
    reported = _reported(evidence)
    if reported is not None:
        return reported
    if evidence.ended_by == "stop":
        return Verdict(FailureClass.INTERRUPTED, f"stopped on request at step {evidence.last_step}")
    return _from_log(evidence, catalogue or default_catalogue()) or _from_ending(evidence)


def warnings(lines: Sequence[str], catalogue: Catalogue | None = None) -> tuple[str, ...]:
    """Lines that are no failure but that a user should know of, each once."""
    catalogue = catalogue or default_catalogue()
    evidence = Evidence(exit_status=0)
    found: dict[str, str] = {}
    for index in range(len(lines)):
        row = catalogue.match(lines, index, evidence)
        if row is not None and row.kind == "warn":
            found.setdefault(row.pattern.pattern, lines[index])
    return tuple(found.values())


def _reported(evidence: Evidence) -> Verdict | None:
    """What the child's first `error` event says; None if there is none or it does not know either."""
    for event in evidence.errors:
        name, message = str(event.get("class", "")), str(event.get("message", ""))
        if name in set(FailureClass) - {FailureClass.UNKNOWN}:
            return Verdict(FailureClass(name), message)
    return None


def _from_log(evidence: Evidence, catalogue: Catalogue) -> Verdict | None:
    for index, line in enumerate(evidence.lines):
        row = catalogue.match(evidence.lines, index, evidence)
        if row is not None and row.failure is not None:
            return Verdict(row.failure, line, row.ref, row.cause)
    return None


def _from_ending(evidence: Evidence) -> Verdict:
    """The verdict when no line is known: from the supervisor's reason, the signal, or the exit status."""
    at = f"at step {evidence.last_step}" if evidence.stepped else "before the first step"
    if evidence.ended_by == "silence":
        return Verdict(FailureClass.HANG, f"no sign of life {at}, ended by splatpipe")
    if evidence.ended_by == "wall":
        return Verdict(FailureClass.HANG, f"time limit reached {at}, ended by splatpipe")
    status = evidence.exit_status
    if status is None:
        return Verdict(FailureClass.UNKNOWN, f"the child could not be ended {at}")
    number = _signal_number(status)
    if number:
        return _from_signal(number, at, evidence)
    if evidence.output_problem is not None and status == 0:
        return Verdict(evidence.output_failure, f"exit status 0, but {evidence.output_problem}")
    if status in (126, 127):
        return Verdict(
            FailureClass.ENVIRONMENT, _last(evidence.lines) or f"the program did not start (status {status})"
        )
    line = traceback_line(evidence.lines) or _last(evidence.lines)
    return Verdict(FailureClass.UNKNOWN, line or f"exit status {status} {at}, and no output")


def _signal_number(status: int) -> int:
    """The signal behind an exit status of Python's or the shell's kind; 0 if there is none."""
    number = -status if status < 0 else status - SHELL_SIGNAL
    return number if number in set(signal.Signals) else 0


def _from_signal(number: int, at: str, evidence: Evidence) -> Verdict:
    name = signal.Signals(number).name
    if number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        return Verdict(FailureClass.INTERRUPTED, f"ended from outside by {name} {at}")
    if number == signal.SIGKILL and evidence.oom_killer:
        return Verdict(FailureClass.HOST_OOM, f"killed by {name} {at}: the machine ran out of memory")
    if number == signal.SIGKILL:
        return Verdict(FailureClass.KILLED, f"killed by {name} {at}, not by splatpipe")
    if number == signal.SIGILL:
        return Verdict(FailureClass.ENVIRONMENT, f"died of {name} {at}: the program was built for another processor")
    line = traceback_line(evidence.lines) or _abort_line(evidence.lines)
    return Verdict(FailureClass.UNKNOWN, f"died of {name} {at}" + (f": {line}" if line else ""))


def _abort_line(lines: Sequence[str]) -> str:
    """What the C or C++ run-time said before it gave up."""
    marks = ("what():", "terminate called", "Fatal Python error", "free():", "malloc", "corrupt", "Assertion")
    return next((line.strip() for line in lines if any(mark in line for mark in marks)), "")


def traceback_line(lines: Sequence[str]) -> str:
    """The exception line that ends the last Python traceback; empty if there is none."""
    found, inside = "", False
    for line in lines:
        if "Traceback (most recent call last)" in line:
            inside = True
        elif inside and not line.startswith((" ", "\t")):
            found, inside = line, False
    return found


def _last(lines: Sequence[str]) -> str:
    return lines[-1].strip() if lines else ""
