"""A run's ledger, made anew from the folders of its attempts and probes when it is gone or damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from splatpipe.entries import Outcome, ProbeRecord
from splatpipe.errors import EnvironmentProblem, LedgerDamaged
from splatpipe.failures.classes import FailureClass
from splatpipe.files import read_json
from splatpipe.layout import AttemptLayout, RunLayout
from splatpipe.ledger import Ledger
from splatpipe.records import AttemptRecord, placed, read_record
from splatpipe.trainers.base import Attempt, Trainer, TrainRequest
from splatpipe.trainers.supervise import recover

CUT_OFF = "the ledger was lost while it ran"


def open_ledger(layout: RunLayout, trainer: Trainer | None, say: Callable[[str], None]) -> Ledger:
    """The run's ledger, checked whole; one that is damaged is set aside, and what the attempts' folders hold restored.

    So is one that leads to another folder, whose attempts would be read, and gone on with, instead of this one's.

    `trainer` reads the events of attempts that left no record. Needs the run's lock.
    """
    try:
        tried = _folders(layout.attempts) or _folders(layout.probes)
        if tried and not (layout.ledger.exists() and layout.ledger.stat().st_size):
            raise LedgerDamaged(f"{layout.ledger}: the ledger is gone.")
        ledger = Ledger(layout.ledger)
        try:
            ledger.check()
            home = ledger.home()
            if home is not None and home.resolve() != layout.root.resolve():
                raise LedgerDamaged(f"{layout.ledger} tells of {home}: the folder was moved or copied.")
        except BaseException:
            ledger.close()
            raise
        return ledger
    except LedgerDamaged as error:
        say(f"warning: {error}")
    kept = _set_aside(layout.ledger)
    ledger = Ledger(layout.ledger)
    try:
        restored = restore(ledger, layout, trainer)
    except BaseException:
        ledger.close()
        raise
    trained = sum(record.outcome.trained for record in ledger.patches())
    old = f"; the one before is {kept}" if kept else ""
    say(f"the ledger was made anew from {restored} attempts, {trained} of its patches are trained{old}")
    return ledger


def restore(ledger: Ledger, layout: RunLayout, trainer: Trainer | None) -> int:
    """Enter every attempt that is on disk, the outcomes that follow, and probes; the number of attempts."""
    count = 0
    for folder in _folders(layout.attempts):
        found = [one for one in (_restored(layout, path, trainer) for path in _numbered(folder)) if one is not None]
        if not found:
            continue
        first = _first_that_counts([one.attempt.failure is None for one in found])
        for i, one in enumerate(found):
            ledger.restore_attempt(one, counts=i >= first)
        ledger.put_patch(folder.name, cameras=0, points=0)  # what was measured is entered by the plan
        ledger.set_outcome(folder.name, *_outcome(found[-1].attempt))
        count += len(found)
    for folder in _folders(layout.probes):
        records = [read_record(layout, path) for path in _numbered(folder)]
        for record in filter(None, records):
            ledger.put_probe(ProbeRecord.of(record.attempt))
    return count


def _restored(layout: RunLayout, folder: Path, trainer: Trainer | None) -> AttemptRecord | None:
    """The attempt in a folder: by its record, else by its splat and events, else as one that was cut off."""
    record = read_record(layout, folder)
    if record is not None and record.attempt.failure is not FailureClass.INTERRUPTED:
        return record
    try:
        request = placed(TrainRequest.from_json(read_json(AttemptLayout(folder).request)), layout, folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return record  # it never began, or its request is damaged
    whole = recover(trainer, request) if trainer is not None else None
    if whole is not None:
        return AttemptRecord(whole)
    if record is not None:
        return record
    since = AttemptLayout(folder).request.stat().st_mtime
    return AttemptRecord(Attempt(request, since, since, None, FailureClass.INTERRUPTED, CUT_OFF, 0, None, 0, 0, None))


def _first_that_counts(trained: list[bool]) -> int:
    """Nothing follows a success but a training that was asked for anew, for which those before do not count."""
    ended = [i for i, one in enumerate(trained[:-1]) if one]
    return ended[-1] + 1 if ended else 0


def _outcome(last: Attempt) -> tuple[Outcome, str | None, dict[str, object]]:
    """How a patch stands after its last attempt, and what was measured of it."""
    if last.failure is None:
        names = ("psnr", "ssim", "views", "loss")
        metrics = {name: last.health.get(name) for name in names} | {"gaussians": last.gaussians}
        outcome = Outcome.TRAINED_WITH_WARNINGS if last.warnings else Outcome.TRAINED
        return outcome, "; ".join(last.warnings) or None, metrics
    if last.failure is FailureClass.INTERRUPTED:
        return Outcome.INTERRUPTED, last.line, {}
    return Outcome.PENDING, None, {}


def _folders(of_patches: Path) -> list[Path]:
    return sorted(path for path in of_patches.glob("*") if path.is_dir())


def _numbered(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))


def _set_aside(ledger: Path) -> Path | None:
    """Move a damaged ledger, with what SQLite keeps beside it, to a name that is free; None when there is none."""
    numbers = (n for n in range(1, 1000) if not ledger.with_name(f"{ledger.name}.damaged{n}").exists())
    aside = ledger.with_name(f"{ledger.name}.damaged{next(numbers)}")
    try:
        for end in ("-wal", "-shm", "-journal"):
            beside = ledger.with_name(ledger.name + end)
            if beside.exists():
                beside.replace(aside.with_name(aside.name + end))
        if not ledger.exists():
            return None
        ledger.replace(aside)
    except OSError as error:
        raise EnvironmentProblem(f"{ledger}: cannot be moved aside ({error.strerror or error}).") from error
    return aside
