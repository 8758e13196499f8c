"""What a ledger holds: its tables, and their rows as the records that the rest of splatpipe reads."""

from __future__ import annotations

import hashlib
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

SCHEMA = 3

TABLES = """
CREATE TABLE runs (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, settings_hash TEXT NOT NULL, settings TEXT NOT NULL,
    versions TEXT NOT NULL, command TEXT NOT NULL, started REAL NOT NULL, ended REAL, exit_code INTEGER
);
CREATE TABLE patches (
    id TEXT PRIMARY KEY, cameras INTEGER NOT NULL, points INTEGER NOT NULL, extent REAL, init_scaling REAL,
    statistics TEXT NOT NULL, preflight TEXT NOT NULL, choice TEXT NOT NULL,
    outcome TEXT NOT NULL DEFAULT 'pending', reason TEXT, metrics TEXT NOT NULL DEFAULT '{}', updated REAL NOT NULL
);
CREATE TABLE attempts (
    patch TEXT NOT NULL, n INTEGER NOT NULL, request TEXT NOT NULL, init_scaling REAL NOT NULL, remedy TEXT,
    why TEXT, state TEXT NOT NULL, superseded INTEGER NOT NULL DEFAULT 0, class TEXT, line TEXT,
    exit_status INTEGER, started REAL NOT NULL, ended REAL, step INTEGER NOT NULL DEFAULT 0, gaussians INTEGER,
    peak_rss INTEGER NOT NULL DEFAULT 0, peak_vram INTEGER NOT NULL DEFAULT 0, splat TEXT,
    health TEXT NOT NULL DEFAULT '{}', warnings TEXT NOT NULL DEFAULT '[]', interruptions INTEGER NOT NULL DEFAULT 0,
    spent REAL NOT NULL DEFAULT 0, stalled INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (patch, n)
);
CREATE TABLE probes (
    patch TEXT NOT NULL, init_scaling REAL NOT NULL, key TEXT NOT NULL, request TEXT NOT NULL, class TEXT, line TEXT,
    step INTEGER NOT NULL, psnr REAL, seconds REAL NOT NULL, PRIMARY KEY (patch, init_scaling)
);
CREATE TABLE merged (
    id INTEGER PRIMARY KEY CHECK (id = 1), path TEXT NOT NULL, gaussians INTEGER NOT NULL, psnr REAL, ssim REAL,
    details TEXT NOT NULL, made REAL NOT NULL
);
"""


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
    def of(cls, attempt: Attempt) -> ProbeRecord:
        """Of a probe that has ended."""
        request = attempt.request
        return cls(
            request.patch_id,
            request.init_scaling,
            probe_key(request),
            request.to_json(),
            attempt.failure,
            attempt.line,
            attempt.last_step,
            attempt.health.get("psnr") if attempt.failure is None else None,
            attempt.seconds,
        )


def probe_key(request: TrainRequest) -> str:
    """Identifies what a probe trains, wherever it runs."""
    data = request.to_json()
    facts = {name: data[name] for name in ("trainer", "init_scaling", "settings", "skip_cameras", "similarity")}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def patch_of(row: sqlite3.Row) -> PatchRecord:
    plain = {name: row[name] for name in ("id", "cameras", "points", "extent", "init_scaling", "reason")}
    data = {name: json.loads(row[name]) for name in ("statistics", "preflight", "choice", "metrics")}
    return PatchRecord(**plain, **data, outcome=Outcome(row["outcome"]))


def trial_of(row: sqlite3.Row) -> TrialRecord:
    failure = FailureClass(row["class"]) if row["class"] else None
    trainer = str(json.loads(row["request"])["trainer"])
    return TrialRecord(row["patch"], trainer, row["init_scaling"], failure, row["ended"])


def probe_of(row: sqlite3.Row) -> ProbeRecord:
    plain = {name: row[name] for name in ("init_scaling", "key", "line", "step", "psnr", "seconds")}
    failure = FailureClass(row["class"]) if row["class"] else None
    return ProbeRecord(patch_id=row["patch"], request=json.loads(row["request"]), failure=failure, **plain)


def attempt_of(row: sqlite3.Row) -> Attempt:
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


def json_text(value: Any) -> str:
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
    return value if value is not None and math.isfinite(value) else None
