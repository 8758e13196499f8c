"""The diagnosis as a page that stands alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from splatpipe.diagnosis.schedule import SCALE
from splatpipe.files import write_text
from splatpipe.report.page import render_page
from splatpipe.report.words import number, percent

TEMPLATES = Path(__file__).resolve().parent / "templates"
KINDS = {
    "baseline": "As it is",
    "cure": "With the suspect taken away",
    "swap": "Points and cameras swapped with the working patch",
    "half": "Halves of the points",
    "grid": "Settings",
}
BADGES = {
    "confirmed": "stop",
    "likely": "warning",
    "possible": "note",
    "no sign of it": "skipped",
    "ruled out": "trained",
}


def write_page(path: Path, report: Mapping[str, Any]) -> None:
    """Write `report` (report.json) as HTML, atomically."""
    groups = [(title, [e for e in report["experiments"] if e["kind"] == kind]) for kind, title in KINDS.items()]
    html = render_page(
        "diagnosis.html",
        (TEMPLATES,),
        report=report,
        badges=BADGES,
        groups=[(title, rows) for title, rows in groups if rows],
        standing=[one for one in report["causes"] if one["stands"]],
        dismissed=[one for one in report["causes"] if not one["stands"]],
        measured=_measured(report["facts"]) if report["facts"] else [],
    )
    write_text(path, html)


def _measured(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values as a reader says them."""
    blind = ", ".join(f"{len(names)} at {rung}" for rung, names in facts["blind"].items())
    return [
        ("cameras", number(facts["cameras"])),
        ("points", number(facts["points"])),
        ("damaged images", number(len(facts["unreadable"]))),
        ("images of another shape than their camera", number(len(facts["wrong_size"]))),
        ("poses that are no rotation", number(len(facts["bad_poses"]))),
        ("points that are not finite", number(facts["broken_points"])),
        ("points that stand twice", number(facts["duplicate_points"])),
        ("points far from everything", number(facts["outliers"])),
        ("farthest point, over the median distance", number(facts["farthest"])),
        (
            "reach of the cameras, training units",
            f"{number(facts['scene_scale'])} (usual {SCALE[0]:g} to {SCALE[1]:g})",
        ),
        ("median distance of a camera", number(facts["camera_distance"])),
        ("extent of the points", number(facts["extent"])),
        ("distance of neighbouring points", number(facts["spacing"])),
        ("width of the first Gaussians, in such distances", number(facts["relative_size"])),
        ("share of the cameras that see a typical point", percent(facts["seen_share"])),
        ("cameras that see no Gaussian, by init_scaling", blind),
    ]
