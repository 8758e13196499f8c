"""`report/index.html` of a run, at any moment of it."""

from __future__ import annotations

import base64
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from splatpipe.entries import Outcome, PatchRecord
from splatpipe.errors import RunFolderError, SplatpipeError
from splatpipe.files import read_json, write_text
from splatpipe.layout import RunLayout
from splatpipe.ledger import Ledger
from splatpipe.report import words
from splatpipe.report.charts import MOST_POINTS
from splatpipe.report.curves import health_charts, read_attempt
from splatpipe.report.facts import patch_facts
from splatpipe.report.figures import extent_against_rung, schedule
from splatpipe.report.ground import MOST_POINTS as MOST_GROUND
from splatpipe.report.ground import draw_ground
from splatpipe.report.page import render_page
from splatpipe.report.pictures import pairs
from splatpipe.report.scenery import read_scenery
from splatpipe.report.splat_page import is_current
from splatpipe.runfolder import read_run

RENEW_S = 20  # the page asks for itself anew while the run goes on
MANY = 40  # patches from which on the page is made for many: lists scroll by themselves, print shows what failed
CHART_VALUES = 32_000  # points of the curves of one kind, of all patches: about 12 MB of page
FEWEST_POINTS = 60  # of one curve
BY_URGENCY = ("failed", "running", "interrupted", "trained_with_warnings", "trained", "pending", "skipped")
SHOWN_VIEWS = 12  # of the merged splat: the worst, the typical, the best


class RunReport:
    """Writes the page of one run, again and again: what does not change is read once.

    `defaults` are the settings that a run has when nobody sets any.
    """

    def __init__(self, layout: RunLayout, defaults: Mapping[str, Any]) -> None:
        self.layout, self._defaults = layout, defaults
        self._ground: dict[str, Any] | None = None
        self._holdout: dict[str, set[str]] = {}
        self._drawn: dict[str, tuple[dict[int, int], list[dict[str, Any]]]] = {}

    def write(self, running: bool) -> Path:
        """Replace the page, whole or not at all. Raises `RunFolderError` when this is no run, or not split yet."""
        write_text(self.layout.report, render_page("report.html", **self._values(running)))
        return self.layout.report

    def _values(self, running: bool) -> dict[str, Any]:
        run = read_run(self.layout)
        if not self.layout.ledger.is_file():
            raise RunFolderError(f"{self.layout.root} has no ledger yet; it was not split (splatpipe run continues it)")
        with Ledger(self.layout.ledger, read_only=True) as ledger:
            status, records = ledger.status(), ledger.patches()
        if not records:
            raise RunFolderError(f"{self.layout.root} has no patches yet; splatpipe run continues it")
        patches = _patches(records, status)
        kinds = [(kind, n) for kind in BY_URGENCY if (n := sum(patch["outcome"] == kind for patch in patches))]
        most = min(max(CHART_VALUES // len(patches), FEWEST_POINTS), MOST_POINTS)
        merged = self._merged(status["merged"]) if status["merged"]["path"] else None
        views = pairs(self.layout, merged["views"]) if merged else []
        ground = self._map()
        return {
            "run": self._run(run, status, patches, running),
            "patches": patches,
            "outcomes": {patch["id"]: patch["outcome"] for patch in patches},
            "kinds": kinds,
            "many": len(patches) >= MANY,
            "order": {kind: place for place, (kind, _) in enumerate(kinds)},
            "ground": ground,
            "details": _details(ground) if ground else {},
            "charts": {row["id"]: self._charts(row, most) for row in status["patches"]},
            "merged": merged,
            "views": telling(views),
            "all_views": len(views),
            "own_views": {
                patch["id"]: [view for view in views if view["name"] in self._holdout.get(patch["id"], ())]
                for patch in patches
            },
            "schedule": schedule(patches, len(patches) >= MANY),
            "extents": extent_against_rung(patches),
            "settings": _settings(run.get("settings") or {}, self._defaults),
        }

    def _run(
        self, run: Mapping[str, Any], status: Mapping[str, Any], patches: list[dict[str, Any]], running: bool
    ) -> dict[str, Any]:
        counts = {kind: sum(patch["outcome"] == kind for patch in patches) for kind in words.OUTCOMES}
        trained = sum(Outcome(patch["outcome"]).trained for patch in patches)
        others = [f"{n} {words.outcome(kind)}" for kind, n in counts.items() if n and not Outcome(kind).trained]
        return {
            "name": self.layout.root.name,
            "title": f"{run['scene'].name}: {len(patches)} patch{'es' if len(patches) != 1 else ''}",
            "sentence": _sentence(status, trained, len(patches), counts, running),
            "scene": str(run["scene"]),
            "started": status["started"],
            "written": time.time(),
            "running": running,
            "renew_s": RENEW_S,
            "trained": trained,
            "others": ", ".join(others),
            "tries": sum(patch["tries"] for patch in patches),
            "busy": sum(patch["seconds"] for patch in patches),
            "memory": max(patch["memory"] for patch in patches),
            "gpu_memory": max(patch["gpu_memory"] for patch in patches),
            "command": " ".join(map(str, run.get("command") or [])),
            "versions": [(name, str(value)) for name, value in (run.get("versions") or {}).items()],
            "splat_page": self.layout.splat_page.name if is_current(self.layout) else None,
            "folder": str(self.layout.root),
        }

    def _map(self) -> dict[str, Any] | None:
        """None where the patches cannot be read: the rest of the page stands without them."""
        if self._ground is None:
            try:
                scenery = read_scenery(self.layout, MOST_GROUND)
            except SplatpipeError:
                return None
            self._ground = draw_ground(scenery)
            self._holdout = {one.id: set(one.holdout.names) for one in scenery}
        return self._ground

    def _charts(self, row: Mapping[str, Any], most: int) -> list[dict[str, Any]]:
        """Of one patch, with `most` points in a curve; drawn anew only when its events have grown."""
        files = {one["n"]: self.layout.attempt(row["id"], one["n"]).events for one in row["attempts"]}
        sizes = {n: path.stat().st_size if path.is_file() else 0 for n, path in files.items()}
        if row["id"] not in self._drawn or self._drawn[row["id"]][0] != sizes:
            charts = health_charts({n: read_attempt(path) for n, path in files.items()}, most)
            self._drawn[row["id"]] = sizes, charts
        return self._drawn[row["id"]][1]

    def _merged(self, merged: Mapping[str, Any]) -> dict[str, Any]:
        details = merged["details"]
        picture, covered = self.layout.coverage_map, details.get("coverage") or {}
        return {
            **{name: merged[name] for name in ("psnr", "ssim", "gaussians")},
            "views": details.get("views") or [],
            "parts": [one | {"cleaned": sum(one["dropped"].values())} for one in details.get("parts") or []],
            "colors": _compared(details.get("colors") or []),
            "sentences": [_missing(name, details.get("parts") or []) for name in details.get("holes") or []],
            "coverage_picture": _as_data(picture) if picture.is_file() else None,
            "coverage_text": f"{covered.get('holes', 0)} of {covered.get('cells', 0)} covered cells",
            "finish": (details.get("finish") or {}).get("sentence"),
            "seam_cost": self._seam_cost(),
        }

    def _seam_cost(self) -> float | None:
        """As `splatpipe eval` measured it, if it did."""
        try:
            return read_json(self.layout.evaluation).get("seam_cost_db")
        except (OSError, ValueError):
            return None


def _patches(records: list[PatchRecord], status: Mapping[str, Any]) -> list[dict[str, Any]]:
    extents = [one.extent for one in records if one.extent]
    median = statistics.median(extents) if extents else None
    rows = {row["id"]: row for row in status["patches"]}
    return [patch_facts(record, rows[record.id], median) for record in records if record.id in rows]


def _sentence(status: Mapping[str, Any], trained: int, count: int, counts: Mapping[str, int], running: bool) -> str:
    if running:
        at = f", {counts['running']} in training" if counts["running"] else ""
        return f"The run goes on: {trained} of {count} patches are trained{at}."
    if trained == count:
        merged = " and merged" if status["merged"]["path"] else ""
        return f"Every patch is trained{merged}." if count > 1 else f"The patch is trained{merged}."
    failed = counts["failed"]
    tail = "; the rest are merged" if trained and status["merged"]["path"] else ""
    if failed == count:
        return "No patch could be trained." if count > 1 else "The patch could not be trained."
    if failed:
        return f"{failed} of {count} patches failed{tail}."
    return f"{trained} of {count} patches are trained; splatpipe run continues where it stopped."


def _settings(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """All settings by dotted key, and those that differ from the defaults."""
    mine, usual = dict(_flat(settings)), dict(_flat(defaults))
    shown = {name: _shown(value) for name, value in mine.items()}
    changed = [
        (name, text, _shown(usual[name])) for name, text in shown.items() if name in usual and mine[name] != usual[name]
    ]
    return {"all": sorted(shown.items()), "changed": sorted(changed)}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in settings.items():
        inner = isinstance(value, Mapping) and value
        pairs += _flat(value, f"{prefix}{name}.") if inner else [(prefix + str(name), value)]
    return pairs


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _missing(hole: str, parts: list[dict[str, Any]]) -> str:
    """That a patch is not in the merged splat, and who stands in for it."""
    fills = [f"{words.number(one['filled'][hole])} of {one['patch_id']}" for one in parts if one["filled"].get(hole)]
    end = f"its ground shows Gaussians of its neighbours only: {', '.join(fills)}" if fills else "its ground is a hole"
    return f"{hole} is missing from the merged splat; {end}."


def _compared(colors: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The largest difference first. Runs merged before renders were compared have cells of base colours: no row."""
    return sorted((one for one in colors if "places" in one), key=lambda one: -one["difference"])


def _details(ground: Mapping[str, Any]) -> dict[str, Any]:
    """What the map shows of the chosen patch only: its buffer, and x, y and name of its cameras."""
    return {
        one["id"]: {
            "buffered": one["buffered"],
            **{kind: [[dot["x"], dot["y"], dot["name"]] for dot in one[kind]] for kind in ("training", "holdout")},
        }
        for one in ground["patches"]
    }


def telling(views: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All of a few views; of many the worst, the most typical and the best, in this order."""
    if len(views) <= SHOWN_VIEWS:
        return views
    ordered, each = sorted(views, key=lambda view: view["psnr"]), SHOWN_VIEWS // 3
    middle = (len(ordered) - each) // 2
    return [*ordered[:each], *ordered[middle : middle + each], *ordered[-each:]]


def _as_data(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
