"""The record of a run: patches, attempts, outcomes, and what was merged. SQLite, written when it happens."""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any

from splatpipe.database import Database, damaged
from splatpipe.failures.classes import FailureClass
from splatpipe.records import AttemptRecord, write_record
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


class Ledger:
    """One run's record. Safe to use from several threads; several processes may read while one writes.

    Opening raises LedgerDamaged for a file that is damaged, RunFolderError for one that is foreign or from a newer
    splatpipe, and EnvironmentProblem where the disk is full or read-only; so does every method.
    """

    def __init__(self, path: Path, read_only: bool = False) -> None:
        self.path = path
        self._db = Database(path, TABLES, SCHEMA, read_only)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What is recorded in the block is on disk when it ends, all of it or nothing: one wait for the disk."""
        with self._db.write():
            yield

    def start_run(
        self, name: str, settings_hash: str, settings: Any = None, versions: Any = None, command: str = ""
    ) -> int:
        """Note that `splatpipe` was started on this run; returns the id for `end_run`."""
        sql = "INSERT INTO runs (name, settings_hash, settings, versions, command, started) VALUES (?, ?, ?, ?, ?, ?)"
        values = (name, settings_hash, _json(settings or {}), _json(versions or {}), command, time.time())
        with self._db.write() as db:
            return int(db.execute(sql, values).lastrowid or 0)

    def end_run(self, run_id: int, exit_code: int) -> None:
        """Note how that call of `splatpipe` ended."""
        with self._db.write() as db:
            db.execute("UPDATE runs SET ended = ?, exit_code = ? WHERE id = ?", (time.time(), exit_code, run_id))

    def put_patch(
        self,
        patch_id: str,
        *,
        cameras: int,
        points: int,
        extent: float | None = None,
        init_scaling: float | None = None,
        statistics: Mapping[str, Any] | None = None,
        preflight: Any = None,
        choice: Mapping[str, Any] | None = None,
    ) -> None:
        """Record a patch, or what was measured and decided about it anew; its outcome stays."""
        sql = """INSERT INTO patches (id, cameras, points, extent, init_scaling, statistics, preflight, choice, updated)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET cameras = excluded.cameras,
            points = excluded.points, extent = excluded.extent, init_scaling = excluded.init_scaling,
            statistics = excluded.statistics, preflight = excluded.preflight, choice = excluded.choice,
            updated = excluded.updated"""
        facts = (_json(statistics or {}), _json(preflight), _json(choice or {}))
        with self._db.write() as db:
            db.execute(sql, (patch_id, cameras, points, extent, init_scaling, *facts, time.time()))

    def set_outcome(
        self, patch_id: str, outcome: Outcome, reason: str | None = None, metrics: Mapping[str, Any] | None = None
    ) -> None:
        """Record how a patch stands; `metrics` None keeps those that are there."""
        sql = "UPDATE patches SET outcome = ?, reason = ?, metrics = coalesce(?, metrics), updated = ? WHERE id = ?"
        measured = None if metrics is None else _json(metrics)
        with self._db.write() as db:
            db.execute(sql, (outcome, reason, measured, time.time(), patch_id))

    def start_attempt(self, request: TrainRequest, remedy: str | None = None, why: str = "") -> None:
        """Record that an attempt begins, or that an interrupted one goes on; its patch is `running`."""
        sql = """INSERT INTO attempts (patch, n, request, init_scaling, remedy, why, state, started)
            VALUES (?, ?, ?, ?, ?, ?, 'running', ?) ON CONFLICT (patch, n) DO UPDATE SET request = excluded.request,
            state = 'running', spent = spent + max(coalesce(ended - started, 0), 0), started = excluded.started,
            ended = NULL, class = NULL, line = NULL, interruptions = interruptions + 1"""
        values = (request.patch_id, request.attempt, _json(request.to_json()), request.init_scaling, remedy, why)
        with self._db.write() as db:
            db.execute(sql, (*values, time.time()))
            db.execute(
                "UPDATE patches SET outcome = 'running', reason = NULL, updated = ? WHERE id = ?",
                (time.time(), request.patch_id),
            )

    def end_attempt(self, attempt: Attempt) -> None:
        """Record how an attempt went; its patch keeps its outcome until `set_outcome`."""
        outside = attempt.failure is FailureClass.INTERRUPTED and attempt.health.get("ended_by") != "stop"
        sql = """UPDATE attempts SET stalled = CASE WHEN ? AND ? <= step THEN stalled + 1 ELSE 0 END,
            state = 'ended', class = ?, line = ?, exit_status = ?, started = ?, ended = ?, step = ?,
            gaussians = ?, peak_rss = max(peak_rss, ?), peak_vram = max(peak_vram, ?), splat = ?, health = ?,
            warnings = ? WHERE patch = ? AND n = ?"""
        values = (
            *(outside, attempt.last_step),
            *(attempt.failure, attempt.line, attempt.exit_status),
            *(attempt.started, attempt.ended, attempt.last_step, attempt.gaussians),  # a job may have queued for long
            *(attempt.peak_rss_bytes, attempt.peak_vram_bytes, str(attempt.splat) if attempt.splat else None),
            *(_json(attempt.health), _json(list(attempt.warnings)), attempt.request.patch_id, attempt.request.attempt),
        )
        with self._db.write() as db:
            db.execute(sql, values)
        self._keep_record(attempt)

    def _keep_record(self, attempt: Attempt) -> None:
        """Note the attempt in its folder as well, as the ledger now has it."""
        request = attempt.request
        sql = "SELECT * FROM attempts WHERE patch = ? AND n = ?"
        with self._decoding():
            for row in self._db.read(sql, request.patch_id, request.attempt):
                write_record(AttemptRecord(replace(_attempt(row), request=request), row["remedy"], row["why"] or ""))

    def restore_attempt(self, record: AttemptRecord, counts: bool = True) -> None:
        """Put back an attempt of a lost ledger; `counts` False: it was superseded."""
        attempt, request = record.attempt, record.attempt.request
        sql = """INSERT OR REPLACE INTO attempts (patch, n, request, init_scaling, remedy, why, state, superseded,
            class, line, exit_status, started, ended, step, gaussians, peak_rss, peak_vram, splat, health, warnings,
            spent, stalled) VALUES (?, ?, ?, ?, ?, ?, 'ended', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
        values = (
            *(request.patch_id, request.attempt, _json(request.to_json()), request.init_scaling),
            *(record.remedy, record.why, not counts, attempt.failure, attempt.line, attempt.exit_status),
            *(attempt.started, attempt.ended, attempt.last_step, attempt.gaussians),
            *(attempt.peak_rss_bytes, attempt.peak_vram_bytes, str(attempt.splat) if attempt.splat else None),
            *(_json(attempt.health), _json(list(attempt.warnings)), attempt.spent, attempt.stalled),
        )
        with self._db.write() as db:
            db.execute(sql, values)

    def lose_splat(self, patch_id: str, line: str) -> None:
        """Note that the splat of a trained patch is gone or damaged: its attempt goes on from its last checkpoint."""
        sql = """UPDATE attempts SET class = ?, line = ?, splat = NULL WHERE patch = ? AND class IS NULL
            AND state = 'ended' AND NOT superseded"""
        with self._db.write() as db:
            db.execute(sql, (FailureClass.INTERRUPTED, line, patch_id))
            db.execute(
                "UPDATE patches SET outcome = 'interrupted', reason = ?, updated = ? WHERE id = ?",
                (line, time.time(), patch_id),
            )

    def put_probe(self, probe: ProbeRecord) -> None:
        """Record a short training; one of the same patch and rung is forgotten."""
        sql = "INSERT OR REPLACE INTO probes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
        what = (probe.patch_id, probe.init_scaling, probe.key, _json(probe.request))
        how = (probe.failure, probe.line, probe.step, _finite(probe.psnr), probe.seconds)
        with self._db.write() as db:
            db.execute(sql, (*what, *how))

    def probes(self) -> dict[str, list[ProbeRecord]]:
        """By patch, its short trainings, oldest first."""
        found: dict[str, list[ProbeRecord]] = {}
        with self._decoding():
            for row in self._db.read("SELECT * FROM probes ORDER BY patch, rowid"):
                found.setdefault(row["patch"], []).append(_probe(row))
        return found

    def retrain(self, patch_id: str) -> None:
        """Make a patch pending again; its attempts stay on record but no longer count."""
        with self._db.write() as db:
            db.execute("UPDATE attempts SET superseded = 1 WHERE patch = ?", (patch_id,))
            db.execute(
                "UPDATE patches SET outcome = 'pending', reason = NULL, metrics = '{}', updated = ? WHERE id = ?",
                (time.time(), patch_id),
            )

    def set_merged(
        self,
        path: Path | str,
        gaussians: int,
        psnr: float | None = None,
        ssim: float | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Record the merged splat."""
        sql = """INSERT OR REPLACE INTO merged (id, path, gaussians, psnr, ssim, details, made)
            VALUES (1, ?, ?, ?, ?, ?, ?)"""
        values = (str(path), gaussians, _finite(psnr), _finite(ssim), _json(details or {}), time.time())
        with self._db.write() as db:
            db.execute(sql, values)

    def clear_merged(self) -> None:
        """Forget the merged splat, because a patch in it is being trained anew."""
        with self._db.write() as db:
            db.execute("DELETE FROM merged")

    def patches(self) -> list[PatchRecord]:
        """All patches, by id."""
        with self._decoding():
            return [_patch(row) for row in self._db.read("SELECT * FROM patches ORDER BY id")]

    def patch(self, patch_id: str) -> PatchRecord | None:
        """One patch, if it is on record."""
        with self._decoding():
            rows = self._db.read("SELECT * FROM patches WHERE id = ?", patch_id)
            return _patch(rows[0]) if rows else None

    def history(self, patch_id: str) -> list[Attempt]:
        """The patch's attempts that count and have ended, oldest first: what `policy.ladder` decides on."""
        sql = "SELECT * FROM attempts WHERE patch = ? AND state = 'ended' AND NOT superseded ORDER BY n"
        with self._decoding():
            return [_attempt(row) for row in self._db.read(sql, patch_id)]

    def trials(self, patch_id: str | None = None) -> list[TrialRecord]:
        """Every attempt that came to an end by itself, superseded ones too, oldest first; of one patch or of all."""
        sql = f"""SELECT patch, request, init_scaling, class, ended FROM attempts
            WHERE state = 'ended' AND class IS NOT ? {"AND patch = ?" if patch_id else ""} ORDER BY patch, n"""
        values = (FailureClass.INTERRUPTED.value, *([patch_id] if patch_id else []))
        with self._decoding():
            return [_trial(row) for row in self._db.read(sql, *values)]

    def next_number(self, patch_id: str) -> int:
        """The number of a patch's next attempt, superseded ones counted."""
        sql = "SELECT coalesce(max(n), 0) + 1 AS n FROM attempts WHERE patch = ?"
        with self._decoding():
            return int(self._db.read(sql, patch_id)[0]["n"])

    def unfinished(self) -> list[TrainRequest]:
        """Attempts that were running when splatpipe was killed, or that are running now."""
        with self._decoding():
            rows = self._db.read("SELECT request FROM attempts WHERE state = 'running' ORDER BY patch, n")
            return [TrainRequest.from_json(json.loads(row["request"])) for row in rows]

    def mark_interrupted(self, request: TrainRequest, line: str, step: int = 0) -> None:
        """Record that an unfinished attempt was cut off, so that it will be resumed."""
        sql = """UPDATE attempts SET state = 'ended', class = ?, line = ?, ended = max(started, min(?, ?)),
            step = max(step, ?) WHERE patch = ? AND n = ? AND state = 'running'"""
        now = time.time()
        with self._db.write() as db:
            times = now, _last_sign(request)
            db.execute(sql, (FailureClass.INTERRUPTED, line, *times, step, request.patch_id, request.attempt))
            db.execute(
                "UPDATE patches SET outcome = 'interrupted', reason = ?, updated = ? WHERE id = ? AND outcome = ?",
                (line, now, request.patch_id, Outcome.RUNNING),
            )

    def status(self) -> dict[str, Any]:
        """The run as JSON data, in the shape of `splatpipe status --json`; one consistent moment of it."""
        with self._decoding(), self._db.moment() as read:
            runs = read("SELECT * FROM runs ORDER BY id")
            patches = read("SELECT * FROM patches ORDER BY id")
            attempts = read("SELECT * FROM attempts WHERE NOT superseded ORDER BY patch, n")
            merged = read("SELECT * FROM merged")
            probes = read("SELECT * FROM probes ORDER BY patch, rowid")
            last = runs[-1] if runs else None
            tried, probed = _by_patch(attempts), _by_patch(probes)
            return {
                "run": last["name"] if last else self.path.parent.name,
                "settings_hash": last["settings_hash"] if last else None,
                "started": runs[0]["started"] if runs else None,
                "ended": last["ended"] if last else None,
                "exit_code": last["exit_code"] if last else None,
                "patches": [_patch_status(row, tried.get(row["id"], []), probed.get(row["id"], [])) for row in patches],
                "merged": _merged_status(merged[0] if merged else None),
            }

    def check(self) -> None:
        """Read all there is. Raises LedgerDamaged when a page or a row is damaged."""
        if (verdict := self._db.quick_check()) != "ok":
            raise damaged(self.path, verdict)
        for record in self.patches():
            self.history(record.id)
        self.unfinished()
        self.trials()
        self.probes()
        self.status()

    @contextlib.contextmanager
    def _decoding(self) -> Iterator[None]:
        """A row that is not as we wrote it means that the file is damaged."""
        try:
            yield
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, OverflowError) as error:
            raise damaged(self.path, f"{type(error).__name__}: {error}") from error


def _last_sign(request: TrainRequest) -> float:
    """When an attempt wrote last: the time until somebody noticed that it was cut off is no training time."""
    stamps = [0.0]
    for path in (request.files.request, request.files.events, request.files.log, request.files.checkpoints):
        with contextlib.suppress(OSError):
            stamps.append(path.stat().st_mtime)
    return max(stamps)


def _json(value: Any) -> str:
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
    return _finite(value) if isinstance(value, float) else value


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _patch(row: sqlite3.Row) -> PatchRecord:
    plain = {name: row[name] for name in ("id", "cameras", "points", "extent", "init_scaling", "reason")}
    data = {name: json.loads(row[name]) for name in ("statistics", "preflight", "choice", "metrics")}
    return PatchRecord(**plain, **data, outcome=Outcome(row["outcome"]))


def _trial(row: sqlite3.Row) -> TrialRecord:
    failure = FailureClass(row["class"]) if row["class"] else None
    trainer = str(json.loads(row["request"])["trainer"])
    return TrialRecord(row["patch"], trainer, row["init_scaling"], failure, row["ended"])


def _probe(row: sqlite3.Row) -> ProbeRecord:
    plain = {name: row[name] for name in ("init_scaling", "key", "line", "step", "psnr", "seconds")}
    failure = FailureClass(row["class"]) if row["class"] else None
    return ProbeRecord(patch_id=row["patch"], request=json.loads(row["request"]), failure=failure, **plain)


def _attempt(row: sqlite3.Row) -> Attempt:
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


def _patch_status(row: sqlite3.Row, attempts: list[sqlite3.Row], probes: list[sqlite3.Row]) -> dict[str, Any]:
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


def _by_patch(rows: list[sqlite3.Row]) -> dict[str, list[sqlite3.Row]]:
    found: dict[str, list[sqlite3.Row]] = {}
    for row in rows:
        found.setdefault(row["patch"], []).append(row)
    return found


def _seconds(attempt: sqlite3.Row) -> float | None:
    return None if attempt["ended"] is None else round(attempt["spent"] + attempt["ended"] - attempt["started"], 3)


def _probe_status(row: sqlite3.Row) -> dict[str, Any]:
    settings = json.loads(row["request"])["settings"]
    named = {name: row[name] for name in ("init_scaling", "class", "line", "step", "psnr", "seconds")}
    return named | {"steps": settings["iterations"], "max_width": settings["max_width"]}


def _attempt_status(row: sqlite3.Row) -> dict[str, Any]:
    names = ("n", "init_scaling", "class", "line", "step")
    times = ("state", "started", "ended")
    more = ("exit_status", "remedy", "why", "gaussians", "peak_rss", "peak_vram", "splat", "interruptions")
    return {
        **{name: row[name] for name in names},
        "trainer": json.loads(row["request"])["trainer"],
        "seconds": _seconds(row),
        **{name: row[name] for name in (*times, *more)},
        "warnings": json.loads(row["warnings"]),
        "health": json.loads(row["health"]),
    }


def _merged_status(row: sqlite3.Row | None) -> dict[str, Any]:
    """The `merged` part; all null while nothing is merged."""
    if row is None:
        return {"path": None, "gaussians": None, "psnr": None, "ssim": None}
    return {name: row[name] for name in ("path", "gaussians", "psnr", "ssim")} | {"details": json.loads(row["details"])}
