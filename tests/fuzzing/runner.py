"""Deals fuzz cases to workers, starts another one where a case has killed its worker, and counts what happened."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzzing.readers import READERS

CLEAN, SENTENCE = "clean", "sentence"


@dataclass(frozen=True)
class Case:
    """One damaged set of files and what became of it. `kind`: clean, sentence, fault, hang, crash."""

    reader: str
    index: int
    kind: str
    error: str | None = None
    peak_mb: int = 0

    @property
    def good(self) -> bool:
        return self.kind in (CLEAN, SENTENCE)


@dataclass
class Tally:
    """Counts by reader and kind, the largest memory, and every case that was not good."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    bad: list[Case] = field(default_factory=list)
    peak_mb: int = 0

    def add(self, case: Case) -> None:
        self.counts.setdefault(case.reader, Counter())[case.kind] += 1
        self.peak_mb = max(self.peak_mb, case.peak_mb)
        if not case.good:
            self.bad.append(case)


def make_seeds(folder: Path, readers: Sequence[str]) -> None:
    """The whole files of every reader, each in a folder of its own."""
    for name in readers:
        (folder / name).mkdir(parents=True)
        READERS[name].make(folder / name)


def shares(total: int, readers: Sequence[str], least: int = 1) -> list[tuple[str, int]]:
    """(reader, index) of about `total` cases, dealt by the readers' shares."""
    weight = sum(READERS[name].share for name in readers)
    return [
        (name, index) for name in readers for index in range(max(round(total * READERS[name].share / weight), least))
    ]


def run_cases(
    cases: Sequence[tuple[str, int]], seeds: Path, work: Path, *, seed: int, timeout_s: float, jobs: int = 1
) -> Iterator[Case]:
    """Every case's end, as it comes; `jobs` workers side by side."""
    lock, ready = threading.Lock(), threading.Condition()
    found: list[Case] = []
    waiting = iter(cases)
    left = jobs

    def deal() -> Iterator[tuple[str, int]]:
        while True:
            with lock:
                one = next(waiting, None)
            if one is None:
                return
            yield one

    def serve(number: int) -> None:
        nonlocal left
        try:
            for case in _work(deal(), seeds, work / f"worker{number}", seed, timeout_s):
                with ready:
                    found.append(case)
                    ready.notify()
        finally:
            with ready:
                left -= 1
                ready.notify()

    for number in range(jobs):
        threading.Thread(target=serve, args=(number,), daemon=True).start()
    while True:
        with ready:
            ready.wait_for(lambda: found or not left)
            if not found:
                return
            batch, found[:] = list(found), []
        yield from batch


def _work(cases: Iterator[tuple[str, int]], seeds: Path, work: Path, seed: int, timeout_s: float) -> Iterator[Case]:
    worker: subprocess.Popen[str] | None = None
    work.mkdir(parents=True, exist_ok=True)
    for reader, index in cases:
        worker = worker or _start(seeds, work, seed, timeout_s)
        assert worker.stdin and worker.stdout
        worker.stdin.write(f"{index} {reader}\n")
        worker.stdin.flush()
        answer = worker.stdout.readline()
        result = worker.stdout.readline() if answer else ""
        if result:
            facts: dict[str, Any] = json.loads(result.split(" ", 2)[2])
            yield Case(reader, index, facts["kind"], facts["error"], facts["peak_mb"])
            continue
        status = worker.wait()
        worker = None
        name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        yield Case(reader, index, "hang" if status == -signal.SIGALRM else "crash", f"killed its process: {name}")
    if worker and worker.stdin:
        worker.stdin.close()
        worker.wait()


def _start(seeds: Path, work: Path, seed: int, timeout_s: float) -> subprocess.Popen[str]:
    script = Path(__file__).with_name("worker.py")
    return subprocess.Popen(
        [sys.executable, str(script), str(seeds), str(work), str(seed), str(timeout_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
