<<<<<<< HEAD
"""`attempt.json`: how an attempt ended, kept beside its splat, so that the ledger can be made anew from the folders."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path

from splatpipe.failures.classes import FailureClass
from splatpipe.files import read_json, write_json
from splatpipe.layout import AttemptLayout, RunLayout
from splatpipe.trainers.base import Attempt, TrainRequest

BLOCK = 1 << 20


@dataclass(frozen=True)
class AttemptRecord:
    """An ended attempt, the remedy it was made with, and the check sum of the splat it left."""

    attempt: Attempt
    remedy: str | None = None
    why: str = ""
    sha256: str | None = None  # of splat.ply


def write_record(record: AttemptRecord) -> None:
    """Keep `record` in the attempt's folder; a disk that is full must not end the run."""
    attempt = record.attempt
    if not attempt.request.files.root.is_dir():
        return
    with contextlib.suppress(OSError, ValueError):
        sha256 = digest(attempt.splat) if attempt.splat else None
        plain = {field.name: getattr(attempt, field.name) for field in fields(attempt)}
        more = {"request": attempt.request.to_json(), "remedy": record.remedy, "why": record.why, "sha256": sha256}
        write_json(attempt.request.files.record, {**plain, **more, "splat": None})


def read_record(layout: RunLayout, folder: Path) -> AttemptRecord | None:
    """The record in an attempt's folder, with the paths of where the run is now; None without a whole one."""
    try:
        data = read_json(AttemptLayout(folder).record)
        sha256, remedy, why = data.pop("sha256"), data.pop("remedy"), data.pop("why")
        request = placed(TrainRequest.from_json(data.pop("request")), layout)
        failure = FailureClass(data["failure"]) if data["failure"] else None
        data["warnings"] = tuple(data["warnings"])
        splat = None if failure else request.files.splat
        attempt = Attempt(**{**data, "request": request, "failure": failure, "splat": splat})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return AttemptRecord(attempt, remedy, why, sha256)


def placed(request: TrainRequest, layout: RunLayout) -> TrainRequest:
    """The request with the folders of `layout`, to which the run may have been moved."""
    out = layout.attempt(request.patch_id, request.attempt).root
    return replace(request, dataset=layout.patch(request.patch_id).root, out=out)


def digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def is_as_recorded(splat: Path) -> bool:
    """Whether `splat` still has the bytes that its attempt's record speaks of; True where there is no record."""
    try:
        sha256 = read_json(AttemptLayout(splat.parent).record)["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return True
    if sha256 is None:
        return True
    stat = splat.stat()
    return bool(sha256 == _digest_once(splat, stat.st_size, stat.st_mtime_ns))


@cache
def _digest_once(path: Path, size: int, changed_ns: int) -> str:
    """Check sums are asked for at the start of a run and before merging; reading a file once is enough."""
    return digest(path)
=======
"""What the ledger's rows mean: the records it gives back, and their shape in `splatpipe status --json`."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from splatpipe.failures.classes import FailureClass
from splatpipe.trainers.base import Attempt, TrainRequest


class Outcome(StrEnum):
    """How a patch stands; the first two mean that there is a splat to merge."""

    TRAINED = "trained"
    TRAINED_WITH_WARNINGS = "trained_with_warnings"
    FAILED = "failed"
    SKIPPED = "skipped"
    INTERRUPTED = "interrupted"
    PENDING = "pending"
    RUNNING = "running"

    @property
    def trained(self) -> bool:
        return self in (Outcome.TRAINED, Outcome.TRAINED_WITH_WARNINGS)


@dataclass(frozen=True)
class PatchRecord:
    """What the ledger knows of one patch. `metrics`: psnr, ssim, gaussians and what else was measured."""

    id: str
    cameras: int
    points: int
    extent: float | None  # scene units, largest axis
    init_scaling: float | None  # the first rung
    statistics: dict[str, Any]
    preflight: Any
    choice: dict[str, Any]  # the first rung and why
    outcome: Outcome
    reason: str | None
    metrics: dict[str, Any]


@dataclass(frozen=True)
class TrialRecord:
    """An attempt that has ended and was not interrupted, of whatever generation, in short."""

    patch_id: str
    trainer: str
    init_scaling: float
    failure: FailureClass | None
    ended: float


@dataclass(frozen=True)
class ProbeRecord:
    """A short training that helped to decide a patch's first rung. `key` identifies what was trained."""

    patch_id: str
    init_scaling: float
    key: str
    request: dict[str, Any]  # `TrainRequest.to_json`
    failure: FailureClass | None
    line: str | None
    step: int
    psnr: float | None  # of the hold-out views
    seconds: float

    @classmethod
    def of(cls, attempt: Attempt, key: str) -> ProbeRecord:
        """Of a probe that has ended."""
        request = attempt.request
        return cls(
            request.patch_id,
            request.init_scaling,
            key,
            request.to_json(),
            attempt.failure,
            attempt.line,
            attempt.last_step,
            attempt.health.get("psnr") if attempt.failure is None else None,
            attempt.seconds,
        )


def as_json(value: Any) -> str:
    """JSON text; values that are not finite become null, which every reader understands."""
    return json.dumps(_clean(value), allow_nan=False)


def _clean(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_clean(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # NumPy scalars and arrays
        return _clean(value.tolist())
    return finite(value) if isinstance(value, float) else value


def finite(value: float | None) -> float | None:
    """None for what is not finite."""
    return value if value is not None and math.isfinite(value) else None


def patch_of(row: sqlite3.Row) -> PatchRecord:
    """From a row of `patches`."""
    plain = {name: row[name] for name in ("id", "cameras", "points", "extent", "init_scaling", "reason")}
    data = {name: json.loads(row[name]) for name in ("statistics", "preflight", "choice", "metrics")}
    return PatchRecord(**plain, **data, outcome=Outcome(row["outcome"]))


def trial_of(row: sqlite3.Row) -> TrialRecord:
    """From a row of `attempts`."""
    failure = FailureClass(row["class"]) if row["class"] else None
    trainer = str(json.loads(row["request"])["trainer"])
    return TrialRecord(row["patch"], trainer, row["init_scaling"], failure, row["ended"])


def probe_of(row: sqlite3.Row) -> ProbeRecord:
    """From a row of `probes`."""
    plain = {name: row[name] for name in ("init_scaling", "key", "line", "step", "psnr", "seconds")}
    failure = FailureClass(row["class"]) if row["class"] else None
    return ProbeRecord(patch_id=row["patch"], request=json.loads(row["request"]), failure=failure, **plain)


def attempt_of(row: sqlite3.Row) -> Attempt:
    """From a row of `attempts`, whole."""
    return Attempt(
        request=TrainRequest.from_json(json.loads(row["request"])),
        started=row["started"],
        ended=row["ended"],
        exit_status=row["exit_status"],
        failure=FailureClass(row["class"]) if row["class"] else None,
        line=row["line"],
        last_step=row["step"],
        gaussians=row["gaussians"],
        peak_rss_bytes=row["peak_rss"],
        peak_vram_bytes=row["peak_vram"],
        splat=Path(row["splat"]) if row["splat"] else None,
        health=json.loads(row["health"]),
        warnings=tuple(json.loads(row["warnings"])),
        spent=row["spent"],
        stalled=row["stalled"],
    )


def patch_status(row: sqlite3.Row, attempts: list[sqlite3.Row], probes: list[sqlite3.Row]) -> dict[str, Any]:
    """One patch in `splatpipe status --json`."""
    metrics = json.loads(row["metrics"])
    last = attempts[-1] if attempts else None
    return {
        **{name: row[name] for name in ("id", "outcome", "reason", "cameras", "points", "extent")},
        "init_scaling": last["init_scaling"] if last else row["init_scaling"],
        "first_init_scaling": row["init_scaling"],
        "psnr": metrics.get("psnr"),
        "ssim": metrics.get("ssim"),
        "gaussians": last["gaussians"] if last else None,
        "seconds": sum(filter(None, map(_seconds, attempts))),
        "choice": json.loads(row["choice"]),
        "probes": [_probe_status(probe) for probe in probes],
        "attempts": [_attempt_status(attempt) for attempt in attempts],
    }


def _seconds(attempt: sqlite3.Row) -> float | None:
    return None if attempt["ended"] is None else round(attempt["spent"] + attempt["ended"] - attempt["started"], 3)


def _probe_status(row: sqlite3.Row) -> dict[str, Any]:
    settings = json.loads(row["request"])["settings"]
    named = {name: row[name] for name in ("init_scaling", "class", "line", "step", "psnr", "seconds")}
    return named | {"steps": settings["iterations"], "max_width": settings["max_width"]}


def _attempt_status(row: sqlite3.Row) -> dict[str, Any]:
    names = ("n", "init_scaling", "class", "line", "step")
    more = ("state", "exit_status", "remedy", "why", "gaussians", "peak_rss", "peak_vram", "splat", "interruptions")
    return {
        **{name: row[name] for name in names},
        "trainer": json.loads(row["request"])["trainer"],
        "seconds": _seconds(row),
        **{name: row[name] for name in more},
        "warnings": json.loads(row["warnings"]),
        "health": json.loads(row["health"]),
    }


def merged_status(row: sqlite3.Row | None) -> dict[str, Any]:
    """The `merged` part; all null while nothing is merged."""
    if row is None:
        return {"path": None, "gaussians": None, "psnr": None, "ssim": None}
    return {name: row[name] for name in ("path", "gaussians", "psnr", "ssim")} | {"details": json.loads(row["details"])}
>>>>>>> edf62bd (Ledger and its records are two modules; fewer cameras as the last remedy of a launch failure)
