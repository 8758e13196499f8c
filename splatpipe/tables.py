"""Facts as tables for people; the same facts as data come from `--json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

_STYLES = {
    "trained": "green",
    "trained_with_warnings": "yellow",
    "failed": "red",
    "interrupted": "magenta",
    "ok": "green",
    "warn": "yellow",
    "warning": "yellow",
    "missing": "red",
    "error": "red",
}


def status_table(status: Mapping[str, Any]) -> RenderableType:
    """A run's patches, one row each, and its merged splat."""
    table = _table(
        "patch", ">cameras", ">points", ">extent", ">init_scaling", ">attempts", "class", "outcome", ">PSNR", ">time"
    )
    for patch in status["patches"]:
        attempts = patch["attempts"]
        classes = [a["class"] for a in attempts if a["class"]]
        table.add_row(
            escape(patch["id"]),
            str(patch["cameras"]),
            str(patch["points"]),
            _number(patch["extent"], ".4g"),
            _number(patch["init_scaling"], ".3g"),
            str(len(attempts)),
            escape(", ".join(dict.fromkeys(classes))),
            _styled(patch["outcome"]),
            _number(patch["psnr"], ".2f"),
            duration(sum(a["seconds"] or 0 for a in attempts)),
        )
    parts: list[RenderableType] = [f"run {escape(str(status['run']))}, settings {status['settings_hash']}", table]
    parts += [f"{escape(p['id'])}: {escape(p['reason'])}" for p in status["patches"] if p.get("reason")]
    if status.get("seconds_left") is not None:
        parts += [f"about {duration(status['seconds_left'])} left, if nothing fails"]
    parts += [_merged_line(status["merged"])]
    if begun := status.get("finishing"):
        parts += [f"borders are trained together: {begun['done']} of {begun['of']} parts done"]
    return Group(*parts)


def plan_table(plan: Mapping[str, Any]) -> RenderableType:
    """What `split` decided."""
    table = _table("patch", ">cameras", ">hold-out", ">points", ">extent", ">init_scaling", ">cap", "why")
    for patch in plan["patches"]:
        table.add_row(
            escape(patch["id"]),
            str(patch["cameras"]),
            str(patch["holdout"]),
            str(patch["points"]),
            _number(patch["extent"], ".4g"),
            _number(patch["init_scaling"], ".3g"),
            str(patch["max_cap"]),
            escape(patch["reason"]),
        )
    return Group(table, *_finding_lines(plan["findings"]))


def compare_table(facts: Mapping[str, Any]) -> RenderableType:
    """Things side by side; what is the same in all is only counted."""
    table = _table("measure", *(f">{escape(item['name'])}" for item in facts["items"]), ">ratio")
    rows = [row for row in facts["rows"] if len(set(row["values"])) > 1]
    for row in rows:
        shown = [escape(v) if isinstance(v, str) else _number(v, ".4g") for v in row["values"]]
        table.add_row(escape(row["name"]), *shown, _number(row["ratio"], ".4g"))
    same = len(facts["rows"]) - len(rows)
    return Group(table, f"{same} measures are the same in all", *(escape(text) for text in facts["verdict"]))


def inspect_table(facts: Mapping[str, Any]) -> RenderableType:
    """A scene in numbers, then what is remarkable about it."""
    table = _table("fact", "value")
    for name, value in facts["facts"].items():
        table.add_row(escape(name), escape(str(value)))
    return Group(table, *_finding_lines(facts["findings"]))


def doctor_table(report: Mapping[str, Any]) -> RenderableType:
    """What this machine has, and what to do about what it lacks."""
    table = _table("part", "state", "detail", "what to do")
    for row in report["rows"]:
        table.add_row(escape(row["name"]), _styled(row["status"]), escape(row["detail"]), escape(row["advice"] or ""))
    return table


def evaluation_table(judged: Mapping[str, Any]) -> RenderableType:
    """Hold-out quality, one row each for the merged splat, its views across borders, and every patch."""
    names = ("psnr", "ssim", "cc_psnr", "cc_ssim", "lpips")
    table = _table("splat", ">views", ">PSNR", ">SSIM", ">PSNR cc", ">SSIM cc", ">LPIPS")
    rows = {"merged": judged, "merged, across borders": judged["straddling"]}
    rows |= {patch["id"]: patch for patch in judged["patches"]}
    for label, row in rows.items():
        values = [_number(row[name], ".2f" if name.endswith("psnr") else ".4f") for name in names]
        table.add_row(escape(label), str(len(row["views"])), *values)
    parts: list[RenderableType] = [table, "cc: after removing gain and offset of each channel, as gsplat does"]
    parts.append(_view_table(judged))
    if judged["seam_cost_db"] is not None:
        parts.append(f"seam cost: {judged['seam_cost_db']:+.2f} dB (best single patch minus merged, across borders)")
    return Group(*parts, *([f"LPIPS {judged['lpips_note']}"] if judged["lpips_note"] else []))


def diagnosis_table(report: Mapping[str, Any]) -> RenderableType:
    """Experiments, causes with their evidence, and what to do."""
    table = _table("experiment", ">init_scaling", ">means_lr", "how it ended")
    for one in report["experiments"]:
        ended = _styled("failed" if one["failure"] else "trained") + escape(f": {one['told']}")
        table.add_row(escape(one["question"]), f"{one['init_scaling']:g}", f"{one['means_lr']:g}", ended)
    lines = []
    for cause in report["causes"]:
        if cause["stands"]:
            lines.append(f"{escape(cause['name'])}: {cause['verdict']}")
            lines += [f"  + {escape(text)}" for text in cause["for"]]
            lines += [f"  - {escape(text)}" for text in cause["against"]]
    dismissed = [escape(c["name"]) for c in report["causes"] if not c["stands"]]
    lines += [f"ruled out, or no sign of it: {'; '.join(dismissed)}"] if dismissed else []
    if report["profile"]:
        place = report["profile"]["shared"] or report["profile"]["path"]
        lines.append(f"recommended profile: {escape(place)}; {escape(report['profile']['note'])}")
    if report["unfinished"]:
        lines.append("the time given was up; the same command goes on with the experiments that are left")
    return Group(table, "", *lines, "", escape(report["conclusion"]), f"page: {escape(report['page'])}")


def _view_table(judged: Mapping[str, Any]) -> RenderableType:
    """The merged splat view by view; which of them look across a border, and what that costs."""
    across = {view["image"] for view in judged["straddling"]["views"]}
    table = _table("hold-out view", ">PSNR", ">SSIM", ">LPIPS", "across a border", ">seam cost, dB")
    for view in judged["views"]:
        name = view["image"]
        numbers = (_number(view["psnr"], ".2f"), _number(view["ssim"], ".4f"), _number(view["lpips"], ".4f"))
        cost = _number(judged["seam_cost_of_views_db"].get(name), "+.2f")
        table.add_row(escape(name), *numbers, "yes" if name in across else "no", cost)
    return table


def export_table(exported: Mapping[str, Any]) -> RenderableType:
    """What was written, how large it is and how long it took."""
    table = _table("format", ">MB", ">seconds", "path")
    notes = []
    for one in exported["exports"]:
        table.add_row(one["format"], f"{one['size'] / 1e6:.2f}", f"{one['seconds']:.1f}", escape(one["path"]))
        notes += [f"note: {escape(note)}" for note in one["notes"]]
    return Group(table, *notes)


def duration(seconds: float) -> str:
    """`7 s`, `3:05`, `1:02:03`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def _merged_line(merged: Mapping[str, Any]) -> str:
    if not merged["path"]:
        return "not merged yet"
    quality = (
        f", hold-out PSNR {merged['psnr']:.2f} dB, SSIM {merged['ssim']:.4f}" if merged["psnr"] is not None else ""
    )
    return f"merged: {escape(str(merged['path']))}, {merged['gaussians']} Gaussians{quality}"


def _finding_lines(findings: Sequence[Mapping[str, Any]]) -> list[str]:
    return [f"{_styled(f['severity'])} {escape(f['message'])}" for f in findings]


def _table(*columns: str) -> Table:
    """Columns whose name starts with `>` are right-aligned."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in columns:
        right = name.startswith(">")
        table.add_column(name.lstrip(">"), justify="right" if right else "left", overflow="fold")
    return table


def _styled(word: str) -> str:
    style = _STYLES.get(word)
    return f"[{style}]{word}[/{style}]" if style else escape(word)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
