"""The story of one patch in plain sentences: measured, foreseen, tried, what each attempt died of, what worked."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from splatpipe.entries import PatchRecord
from splatpipe.errors import ConfigError
from splatpipe.failures.classify import Evidence, default_catalogue
from splatpipe.layout import RunLayout, patch_span
from splatpipe.ledger import Ledger
from splatpipe.runfolder import read_run
from splatpipe.tables import duration

LONGEST_LINE = 400  # of a trainer's words; the log has the rest
FEW_SHARES = 6  # relocated shares shown: the last refinements


def explain(run_folder: Path, patch_id: str) -> dict[str, Any]:
    """`{patch, story, attempts, statistics, preflight}`; story is a list of sentences.

    Raises `RunFolderError` for no run folder, `ConfigError` for a patch that is not in it.
    """
    layout = RunLayout(run_folder.expanduser().resolve())
    read_run(layout)
    with Ledger(layout.ledger, read_only=True) as ledger:
        records = ledger.patches()
        rows = {row["id"]: row for row in ledger.status()["patches"]}
    record = next((one for one in records if one.id == patch_id), None)
    if record is None:
        known = patch_span([one.id for one in records]) if records else "no patches yet"
        raise ConfigError(f"{layout.root} has no patch {patch_id}; it has {known}")
    extents = [one.extent for one in records if one.extent]
    row = rows[patch_id]
    return {
        "patch": patch_id,
        "outcome": record.outcome,
        "story": tell(record, row, statistics.median(extents) if extents else None, layout),
        "attempts": row["attempts"],
        "statistics": record.statistics,
        "preflight": record.preflight,
    }


def tell(record: PatchRecord, row: Mapping[str, Any], median_extent: float | None, layout: RunLayout) -> list[str]:
    """The sentences, in the order in which things happened. `row`: the patch in `splatpipe status --json`."""
    story = [_measured(record, median_extent), *_foreseen(record), _chosen(record)]
    story += _probed(row["probes"])
    attempts = row["attempts"]
    if attempts and attempts[0]["n"] > 1:
        story.append(f"Attempts before number {attempts[0]['n']} no longer count: the patch was made to train anew.")
    for attempt in attempts:
        story += _attempt(attempt, layout, record.id)
    return [*story, _ending(record, attempts)]


def _measured(record: PatchRecord, median_extent: float | None) -> str:
    facts = [f"{record.cameras} cameras", f"{record.points} points"]
    if record.extent:
        ratio = f", {record.extent / median_extent:.2f} times the median of this run's patches" if median_extent else ""
        facts.append(f"extent {record.extent:.4g}{ratio}")
    measured = record.statistics
    spacing, seen = measured.get("spacing") or {}, measured.get("seen_share") or {}
    if "q50" in spacing:
        facts.append(f"points {spacing['q50']:.3g} apart")
    if "q50" in seen:
        facts.append(f"an initial Gaussian is seen by {seen['q50']:.0%} of the cameras")
    return f"Measured: {record.id} has {'; '.join(facts)}."


def _foreseen(record: PatchRecord) -> list[str]:
    findings = (record.preflight or {}).get("findings") or []
    if not findings:
        return ["Foreseen: nothing that should fail."]
    return [f"Foreseen: {finding['message']}." for finding in findings]


def _chosen(record: PatchRecord) -> str:
    reason = record.choice.get("reason") or f"init_scaling {record.init_scaling}"
    return f"Planned: {reason}."


def _probed(probes: Sequence[Mapping[str, Any]]) -> list[str]:
    """How the short trainings went that helped to choose the first rung."""
    if not probes:
        return []
    size = f" at {probes[0]['max_width']} pixels" if probes[0]["max_width"] else ""
    lines = [f"Probed: {len(probes)} short trainings of {probes[0]['steps']} steps{size}."]
    for probe in probes:
        name, took = f"  init_scaling {probe['init_scaling']:g}", duration(probe["seconds"])
        quality = (
            f"hold-out PSNR {probe['psnr']:.2f} dB" if probe["psnr"] is not None else "no hold-out view to judge by"
        )
        died = f"{probe['class']} at step {probe['step']}: {_shortened(probe['line'])}"
        lines.append(f"{name}: {died if probe['class'] else f'survived, {quality}'} ({took}).")
    return lines


def _attempt(attempt: Mapping[str, Any], layout: RunLayout, patch_id: str) -> list[str]:
    """What was changed, how it ended, and the line that decided."""
    name = f"Attempt {attempt['n']} ({attempt['trainer']}, init_scaling {attempt['init_scaling']:g})"
    lines = [f"{name}: {change_of(attempt)}."]
    if attempt["interruptions"]:
        lines.append(f"  It was interrupted and taken up again {attempt['interruptions']} times.")
    if attempt["health"].get("resumed_attempt"):
        lines.append("  It went on from step {resumed_from} of attempt {resumed_attempt}.".format(**attempt["health"]))
    if attempt["state"] == "running":
        return [*lines, "  It is running now, or splatpipe was killed; the next run goes on with it."]
    took = duration(attempt["seconds"] or 0)
    if attempt["class"] is None:
        lines.append(f"  It trained in {took}: {attempt['step']} steps, {attempt['gaussians']} Gaussians.")
    else:
        log = layout.attempt(patch_id, attempt["n"]).log
        lines.append(f"  {_death(attempt, took)}")
        lines.append(f"  The deciding line: {_shortened(attempt['line'])}")
        cause = cause_of(attempt)
        lines += [f"  That means: {cause}."] if cause else []
        lines += [f"  The whole log: {log}"] if log.is_file() else []
    lines += [f"  Signs: {sign}." for sign in _signs(attempt["health"])]
    return lines + [f"  Warning: {note}" for note in attempt["warnings"]]


def change_of(attempt: Mapping[str, Any]) -> str:
    """What was done about the failure before; `why` also names that failure, which has been told."""
    why = attempt["why"] or ""
    if not attempt["remedy"]:
        return why or "begun as planned"
    change = why.rpartition(f"): {attempt['remedy']}, ")[2]
    return f"remedy {attempt['remedy']}, {change}" if change and change != why else f"remedy {attempt['remedy']}"


def _death(attempt: Mapping[str, Any], took: str) -> str:
    status = attempt["exit_status"]
    how = "" if status is None else f", killed by signal {-status}" if status < 0 else f", exit status {status}"
    verb = "was stopped" if attempt["class"] == "interrupted" else "died"
    return f"It {verb} at step {attempt['step']} after {took}{how}: {attempt['class']}."


def _shortened(line: str | None) -> str:
    line = line or "none"
    return line if len(line) <= LONGEST_LINE else line[:LONGEST_LINE] + " ..."


def cause_of(attempt: Mapping[str, Any]) -> str | None:
    """What the catalogue says about the line that decided an attempt's class, if it says anything."""
    evidence = Evidence(exit_status=attempt["exit_status"], last_step=attempt["step"], stepped=attempt["step"] > 0)
    row = default_catalogue().match([attempt["line"] or ""], 0, evidence)
    return row.cause or None if row is not None and row.failure == attempt["class"] else None


def _signs(health: Mapping[str, Any]) -> list[str]:
    """What the run's health says, as far as it is remarkable."""
    signs = []
    blind = health.get("blind_cameras") or []
    if blind:
        signs.append(f"{len(blind)} cameras saw no Gaussian, first {next(iter(blind))}")
    shares = (health.get("relocated_shares") or [])[-FEW_SHARES:]
    if shares and max(shares) >= 0.1:
        signs.append("share of Gaussians relocated at the last refinements " + ", ".join(f"{s:.0%}" for s in shares))
    if health.get("ended_by"):
        signs.append(f"splatpipe ended it ({health['ended_by']})")
    return signs


def _ending(record: PatchRecord, attempts: list[Mapping[str, Any]]) -> str:
    """How the patch stands, and what made the difference."""
    if not record.outcome.trained:
        return f"{record.id} is {record.outcome}" + (f": {record.reason}." if record.reason else ".")
    failed = [attempt for attempt in attempts if attempt["class"]]
    quality = f", hold-out PSNR {record.metrics['psnr']:.2f} dB" if record.metrics.get("psnr") is not None else ""
    if not failed or not attempts:
        return f"{record.id} is {record.outcome} at the first attempt{quality}."
    last, lost = attempts[-1], duration(sum(attempt["seconds"] or 0 for attempt in failed))
    plural = "attempts" if len(failed) > 1 else "attempt"
    return (
        f"{record.id} is {record.outcome}{quality}: {change_of(last)} worked, after {len(failed)} failed {plural} that "
        f"cost {lost}."
    )
