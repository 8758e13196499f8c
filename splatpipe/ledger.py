"""The record of a run: patches, attempts, outcomes, and what was merged. SQLite, written when it happens."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from splatpipe.database import Database, damaged
from splatpipe.entries import (
    SCHEMA,
    TABLES,
    Outcome,
    PatchRecord,
    ProbeRecord,
    TrialRecord,
    attempt_of,
    finite,
    json_text,
    patch_of,
    probe_of,
    trial_of,
)
from splatpipe.failures.classes import FailureClass
from splatpipe.records import AttemptRecord, write_record
from splatpipe.standing import run_status
from splatpipe.trainers.base import Attempt, TrainRequest


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
        values = (name, settings_hash, json_text(settings or {}), json_text(versions or {}), command, time.time())
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
        facts = (json_text(statistics or {}), json_text(preflight), json_text(choice or {}))
        with self._db.write() as db:
            db.execute(sql, (patch_id, cameras, points, extent, init_scaling, *facts, time.time()))

    def set_outcome(
        self, patch_id: str, outcome: Outcome, reason: str | None = None, metrics: Mapping[str, Any] | None = None
    ) -> None:
        """Record how a patch stands; `metrics` None keeps those that are there."""
        sql = "UPDATE patches SET outcome = ?, reason = ?, metrics = coalesce(?, metrics), updated = ? WHERE id = ?"
        measured = None if metrics is None else json_text(metrics)
        with self._db.write() as db:
            db.execute(sql, (outcome, reason, measured, time.time(), patch_id))

    def start_attempt(self, request: TrainRequest, remedy: str | None = None, why: str = "") -> None:
        """Record that an attempt begins, or that an interrupted one goes on; its patch is `running`."""
        sql = """INSERT INTO attempts (patch, n, request, init_scaling, remedy, why, state, started)
            VALUES (?, ?, ?, ?, ?, ?, 'running', ?) ON CONFLICT (patch, n) DO UPDATE SET request = excluded.request,
            state = 'running', spent = spent + max(coalesce(ended - started, 0), 0), started = excluded.started,
            ended = NULL, class = NULL, line = NULL, interruptions = interruptions + 1"""
        values = (request.patch_id, request.attempt, json_text(request.to_json()), request.init_scaling, remedy, why)
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
            *(json_text(attempt.health), json_text(list(attempt.warnings))),
            *(attempt.request.patch_id, attempt.request.attempt),
        )
        with self._db.write() as db:
            db.execute(sql, values)
        self._keep_record(attempt)

    def _keep_record(self, attempt: Attempt) -> None:
        """Note the attempt in its folder as well, as the ledger now has it."""
        request = attempt.request
        sql = "SELECT * FROM attempts WHERE patch = ? AND n = ?"
        with self._db.decoding():
            for row in self._db.read(sql, request.patch_id, request.attempt):
                write_record(AttemptRecord(replace(attempt_of(row), request=request), row["remedy"], row["why"] or ""))

    def restore_attempt(self, record: AttemptRecord, counts: bool = True) -> None:
        """Put back an attempt of a lost ledger; `counts` False: it was superseded."""
        attempt, request = record.attempt, record.attempt.request
        sql = """INSERT OR REPLACE INTO attempts (patch, n, request, init_scaling, remedy, why, state, superseded,
            class, line, exit_status, started, ended, step, gaussians, peak_rss, peak_vram, splat, health, warnings,
            spent, stalled) VALUES (?, ?, ?, ?, ?, ?, 'ended', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
        values = (
            *(request.patch_id, request.attempt, json_text(request.to_json()), request.init_scaling),
            *(record.remedy, record.why, not counts, attempt.failure, attempt.line, attempt.exit_status),
            *(attempt.started, attempt.ended, attempt.last_step, attempt.gaussians),
            *(attempt.peak_rss_bytes, attempt.peak_vram_bytes, str(attempt.splat) if attempt.splat else None),
            *(json_text(attempt.health), json_text(list(attempt.warnings)), attempt.spent, attempt.stalled),
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
        what = (probe.patch_id, probe.init_scaling, probe.key, json_text(probe.request))
        how = (probe.failure, probe.line, probe.step, finite(probe.psnr), probe.seconds)
        with self._db.write() as db:
            db.execute(sql, (*what, *how))

    def probes(self) -> dict[str, list[ProbeRecord]]:
        """By patch, its short trainings, oldest first."""
        found: dict[str, list[ProbeRecord]] = {}
        with self._db.decoding():
            for row in self._db.read("SELECT * FROM probes ORDER BY patch, rowid"):
                found.setdefault(row["patch"], []).append(probe_of(row))
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
        values = (str(path), gaussians, finite(psnr), finite(ssim), json_text(details or {}), time.time())
        with self._db.write() as db:
            db.execute(sql, values)

    def clear_merged(self) -> None:
        """Forget the merged splat, because a patch in it is being trained anew."""
        with self._db.write() as db:
            db.execute("DELETE FROM merged")

    def patches(self) -> list[PatchRecord]:
        """All patches, by id."""
        with self._db.decoding():
            return [patch_of(row) for row in self._db.read("SELECT * FROM patches ORDER BY id")]

    def patch(self, patch_id: str) -> PatchRecord | None:
        """One patch, if it is on record."""
        with self._db.decoding():
            rows = self._db.read("SELECT * FROM patches WHERE id = ?", patch_id)
            return patch_of(rows[0]) if rows else None

    def history(self, patch_id: str) -> list[Attempt]:
        """The patch's attempts that count and have ended, oldest first: what `policy.ladder` decides on."""
        sql = "SELECT * FROM attempts WHERE patch = ? AND state = 'ended' AND NOT superseded ORDER BY n"
        with self._db.decoding():
            return [attempt_of(row) for row in self._db.read(sql, patch_id)]

    def trials(self, patch_id: str | None = None) -> list[TrialRecord]:
        """Every attempt that came to an end by itself, superseded ones too, oldest first; of one patch or of all."""
        sql = f"""SELECT patch, request, init_scaling, class, ended FROM attempts
            WHERE state = 'ended' AND class IS NOT ? {"AND patch = ?" if patch_id else ""} ORDER BY patch, n"""
        values = (FailureClass.INTERRUPTED.value, *([patch_id] if patch_id else []))
        with self._db.decoding():
            return [trial_of(row) for row in self._db.read(sql, *values)]

    def next_number(self, patch_id: str) -> int:
        """The number of a patch's next attempt, superseded ones counted."""
        sql = "SELECT coalesce(max(n), 0) + 1 AS n FROM attempts WHERE patch = ?"
        with self._db.decoding():
            return int(self._db.read(sql, patch_id)[0]["n"])

    def home(self) -> Path | None:
        """The run folder that its attempts are in; None before the first."""
        with self._db.decoding():
            rows = self._db.read("SELECT request FROM attempts LIMIT 1")
            return TrainRequest.from_json(json.loads(rows[0]["request"])).out.parents[2] if rows else None

    def unfinished(self) -> list[TrainRequest]:
        """Attempts that were running when splatpipe was killed, or that are running now."""
        with self._db.decoding():
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
        with self._db.decoding(), self._db.moment() as read:
            runs = read("SELECT * FROM runs ORDER BY id")
            patches = read("SELECT * FROM patches ORDER BY id")
            attempts = read("SELECT * FROM attempts WHERE NOT superseded ORDER BY patch, n")
            merged = read("SELECT * FROM merged")
            probes = read("SELECT * FROM probes ORDER BY patch, rowid")
            return run_status(self.path.parent.name, runs, patches, attempts, probes, merged)

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


def _last_sign(request: TrainRequest) -> float:
    """When an attempt wrote last: the time until somebody noticed that it was cut off is no training time."""
    stamps = [0.0]
    for path in (request.files.request, request.files.events, request.files.log, request.files.checkpoints):
        with contextlib.suppress(OSError):
            stamps.append(path.stat().st_mtime)
    return max(stamps)
