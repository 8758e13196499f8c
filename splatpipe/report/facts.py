"""What a report says of each patch, in words and numbers that need no decoding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from splatpipe.entries import PatchRecord
from splatpipe.explain import cause_of, change_of
from splatpipe.report import words

Row = Mapping[str, Any]  # a patch, or an attempt, of `splatpipe status --json`
Pairs = list[tuple[str, str]]
CLOSE = 0.01  # relative; opinions on the first rung that differ by less agree


def patch_facts(record: PatchRecord, row: Row, median_extent: float | None) -> dict[str, Any]:
    """The section of one patch; `row` is its row of `Ledger.status`."""
    return {
        "id": record.id,
        "outcome": record.outcome.value,
        "reason": record.reason,
        "headline": _headline(record, row),
        "psnr": row["psnr"],
        "ssim": row["ssim"],
        "gaussians": row["gaussians"],
        "seconds": row["seconds"],
        "cameras": record.cameras,
        "holdout": record.statistics.get("holdout"),
        "points": record.points,
        "extent": record.extent,
        "init_scaling": row["init_scaling"],
        "tries": len(row["attempts"]),
        "memory": max((one["peak_rss"] for one in row["attempts"]), default=0),
        "gpu_memory": max((one["peak_vram"] for one in row["attempts"]), default=0),
        "statistics": _statistics(record, median_extent),
        "findings": (record.preflight or {}).get("findings") or [],
        "blind": _blind(record),
        "choice": _choice(record),
        "probes": [
            {**one, "title": words.failure(one["class"]) if one["class"] else "Survived"} for one in row["probes"]
        ],
        "attempts": [_attempt(one) for one in row["attempts"]],
        "notes": _notes(row),
    }


def _statistics(record: PatchRecord, median_extent: float | None) -> Pairs:
    measured = record.statistics
    spacing, axes = measured.get("spacing") or {}, measured.get("extent_axes") or []
    seen, points = measured.get("seen_share") or {}, measured.get("points") or {}
    ratio = f" ({record.extent / median_extent:.2f} × this run's median)" if record.extent and median_extent else ""
    pairs = [
        ("Cameras that train it", words.number(record.cameras)),
        ("Hold-out views", words.number(measured.get("holdout"))),
        ("Points of its own", words.number(record.points)),
        ("Points round it, and far off", " and ".join(words.number(points.get(k)) for k in ("buffer", "background"))),
        ("Extent, largest side", f"{words.number(record.extent)} scene units{ratio}"),
        ("Extent by axis", " × ".join(words.number(axis) for axis in axes) + " scene units" if axes else words.NOTHING),
        ("Distance between points", f"{words.number(spacing.get('q50'))} scene units (median)"),
        ("Distance from camera to points", f"{words.number(measured.get('median_depth'))} scene units (median)"),
    ]
    if "q50" in seen:
        pairs.append(("A Gaussian is seen at first by", f"{words.percent(seen['q50'])} of the cameras (median)"))
    return pairs


def _blind(record: PatchRecord) -> Pairs:
    """By rung, how many cameras would see nothing at the start; nothing to say where none would."""
    blind = (record.preflight or {}).get("blind") or {}
    if not any(blind.values()):
        return []
    return [(f"init_scaling {rung}", f"{len(names)} of {record.cameras} cameras") for rung, names in blind.items()]


def _choice(record: PatchRecord) -> dict[str, Any]:
    """The first rung, the sentence behind it, and the other opinions where they differ."""
    choice = record.choice
    chosen: Any = choice.get("init_scaling", record.init_scaling)
    opinions = [
        ("by the patch's extent", choice.get("by_extent")),
        ("by how much of the image the first Gaussians cover", choice.get("by_coverage")),
        ("by the smallest rung without a blind camera", choice.get("by_preflight")),
    ]
    return {
        "init_scaling": chosen,
        "reason": choice.get("reason"),
        "others": [(name, value) for name, value in opinions if value and abs(value - chosen) > CLOSE * chosen],
    }


def _attempt(row: Row) -> dict[str, Any]:
    kind = row["class"] if row["state"] == "ended" else "running"
    health = row["health"]
    cause = cause_of(row) if row["class"] else None
    return {
        "n": row["n"],
        "kind": "trained" if kind is None else kind if kind in ("running", "interrupted") else "failed",
        "class": row["class"],
        "title": "Training now" if kind == "running" else words.failure(kind),
        "cause": cause,
        "line": row["line"],
        "change": change_of(row).replace(" -> ", " → ") if row["remedy"] else None,
        "trainer": row["trainer"],
        "init_scaling": row["init_scaling"],
        "step": row["step"],
        "total": health.get("total"),
        "seconds": row["seconds"],
        "gaussians": row["gaussians"],
        "memory": row["peak_rss"],
        "gpu_memory": row["peak_vram"],
        "resumed": _resumed(row),
        "warnings": row["warnings"],
        "verdicts": health.get("verdicts") or [],
        "started": row["started"],
        "ended": row["ended"],
    }


def _headline(record: PatchRecord, row: Row) -> str | None:
    """What a patch that failed died of, last."""
    ended = [one["class"] for one in row["attempts"] if one["class"]]
    return f"{words.failure(ended[-1])}." if record.outcome == "failed" and ended else None


def _resumed(row: Row) -> str | None:
    health = row["health"]
    if health.get("resumed_attempt"):
        return f"Went on from step {health.get('resumed_from')} of attempt {health['resumed_attempt']}."
    times = row["interruptions"]
    if times:
        return f"Interrupted and taken up again {'once' if times == 1 else f'{times} times'}."
    return None


def _notes(row: Row) -> list[str]:
    """What else a reader should know."""
    attempts = row["attempts"]
    if attempts and attempts[0]["n"] > 1:
        return [f"Attempts before number {attempts[0]['n']} no longer count: the patch was made to train anew."]
    return []
