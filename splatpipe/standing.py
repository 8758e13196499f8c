"""How a run stands, as JSON data: the shape of `splatpipe status --json`."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

Rows = list[sqlite3.Row]


def run_status(name: str, runs: Rows, patches: Rows, attempts: Rows, probes: Rows, merged: Rows) -> dict[str, Any]:
    """Of the ledger's rows, oldest first; `name` is the run's where no run is on record."""
    last = runs[-1] if runs else None
    tried, probed = _by_patch(attempts), _by_patch(probes)
    return {
        "run": last["name"] if last else name,
        "settings_hash": last["settings_hash"] if last else None,
        "started": runs[0]["started"] if runs else None,
        "ended": last["ended"] if last else None,
        "exit_code": last["exit_code"] if last else None,
        "patches": [_patch_status(row, tried.get(row["id"], []), probed.get(row["id"], [])) for row in patches],
        "merged": _merged_status(merged[0] if merged else None),
    }


def _patch_status(row: sqlite3.Row, attempts: Rows, probes: Rows) -> dict[str, Any]:
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


def _by_patch(rows: Rows) -> dict[str, Rows]:
    found: dict[str, Rows] = {}
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
