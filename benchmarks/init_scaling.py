"""First-rung policies side by side: what each begins with, whether that survives, and how good it becomes.

    python benchmarks/init_scaling.py [SCENE ...] [--long] [--scales 1 0.001 1000] [--json FILE]

For each scene, scale of its units and patch, the real loop on the CPU trains from every value of `--values` on the
schedule of a 30,000-step run, and hold-out PSNR is taken on the way. A policy's row is then read off the value that it
begins with: extent rule, image coverage about once, fixed 0.1, the probe (the first rung from the extent rule's on
that survives 300 steps), and the rung of best hold-out PSNR after 300 steps. A value that dies is an attempt wasted,
and the next larger one is taken.

SCENE: a COLMAP scene, or synthetic:aerial, synthetic:object, synthetic:facade. With `--json` it may be stopped at any
moment and started again, also with more scenes or with `--long`: it goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from scenes import scaled, synthetic_scene, write_scene  # noqa: E402

from splatpipe.config import load_config  # noqa: E402
from splatpipe.failures.classes import FailureClass  # noqa: E402
from splatpipe.files import read_json, write_json  # noqa: E402
from splatpipe.layout import PatchLayout, RunLayout  # noqa: E402
from splatpipe.patches.dataset import read_dataset  # noqa: E402
from splatpipe.planning import PlannedPatch, make_plan, write_datasets  # noqa: E402
from splatpipe.policy.probe import Probed, decide, next_probe  # noqa: E402
from splatpipe.scene.arrays import Scene  # noqa: E402
from splatpipe.scene.colmap import read_scene  # noqa: E402
from splatpipe.scene.undistort import undistort  # noqa: E402
from splatpipe.splatting import raster  # noqa: E402
from splatpipe.splatting.loop import Stopped, Training, TrainingData, TrainingFailure, TrainingJob, render  # noqa: E402
from splatpipe.splatting.metrics import psnr  # noqa: E402
from splatpipe.splatting.model import Params  # noqa: E402
from splatpipe.splatting.views import ViewLoader, Views  # noqa: E402

PROBE_STEPS = 300
STEPS, LONG = (PROBE_STEPS, 500, 2000), 7000
RUNGS = (0.1, 0.2, 0.3, 0.4)
CACHE_BYTES = 2 << 30
POLICIES = ("extent", "coverage", "fixed 0.1", "probe", "best at 300 steps")
SYNTHETIC = "synthetic:"
SYNTHETIC_PATCHING = ("patching.max_cameras=20",)


@dataclass(frozen=True)
class Cell:
    """One training."""

    scene: str
    scale: float
    patch: str
    init_scaling: float

    @property
    def folder(self) -> str:
        return f"{self.scene.replace(':', '_')}/{self.scale:g}/{self.patch}/{self.init_scaling:g}"


def load(name: str, folder: Path) -> Scene:
    """A scene with undistorted photographs."""
    if name.startswith(SYNTHETIC):
        scene = synthetic_scene(n_cameras=36, n_points=1500, layout=name.removeprefix(SYNTHETIC))  # type: ignore[arg-type]
        return write_scene(folder / "source", scene)
    return undistort(read_scene(Path(name)).scene, folder / "undistorted", print)


def plans(names: Sequence[str], scales: Sequence[float], given: argparse.Namespace, work: Path) -> Iterator[Planned]:
    """Every patch of every scene at every scale, as a data set on disk."""
    for name in names:
        label = name if name.startswith(SYNTHETIC) else Path(name).resolve().name
        scene = load(name, work / label.replace(":", "_"))
        own = SYNTHETIC_PATCHING if name.startswith(SYNTHETIC) else (f"patching.max_cameras={given.max_cameras}",)
        sizes = (f"training.max_width={given.width}", f"training.max_cap={given.cap}", "training.scale_schedule=false")
        for scale in scales:
            plan = make_plan(scaled(scene, scale), load_config(None, [*own, *sizes]))
            layout = RunLayout(work / label.replace(":", "_") / f"{scale:g}")
            write_datasets(plan, layout)
            for patch in plan.patches:
                if len(patch.patch.holdout_cameras):
                    yield Planned(label, scale, patch, layout.patch(patch.id))


@dataclass(frozen=True, eq=False)
class Planned:
    """A patch on disk."""

    scene: str
    scale: float
    patch: PlannedPatch
    layout: PatchLayout

    def data(self) -> tuple[TrainingData, Views]:
        """Training data and hold-out views, at the size that is trained."""
        inner, outer = read_dataset(self.layout.root), read_dataset(self.layout.holdout)
        width = self.patch.settings.max_width
        views, held = (
            Views(one.names, one.image_paths, one.viewmats, one.Ks, one.sizes).resized(1.0, width)
            for one in (inner, outer)
        )
        return TrainingData(views, inner.points, inner.colors), held


def train(planned: Planned, cell: Cell, steps: Sequence[int], row: dict[str, Any], checkpoints: Path) -> Iterator[None]:
    """Fill `row`: PSNR by step, or the step and class of death; yields whenever it has changed."""
    data, held = planned.data()
    settings = replace(planned.patch.settings, checkpoint_every=500)
    training = Training(data, TrainingJob(settings, cell.init_scaling, "cpu", checkpoints, CACHE_BYTES), _quiet)
    for step in steps:
        if str(step) in row["psnr"] or row["failure"]:
            continue
        began = time.monotonic()
        try:
            training.run(lambda step=step: training.step >= step)  # type: ignore[misc]
        except Stopped:
            row["psnr"][str(step)] = holdout_psnr(training.params, held, settings.sh_degree)
        except TrainingFailure as failure:
            row |= {"failure": failure.failure, "died_at": failure.step}
        row["seconds"] = round(row["seconds"] + time.monotonic() - began, 1)
        row["gaussians"] = len(training.params["means"])
        yield


def _quiet(event: str, **values: Any) -> None:
    """Nobody listens to the events."""


def holdout_psnr(params: Params, held: Views, sh_degree: int) -> float:
    """Mean over the hold-out views, dB."""
    loader = ViewLoader(held, torch.device("cpu"), CACHE_BYTES)
    values = []
    with torch.no_grad():
        for i in range(len(held)):
            view = loader.get(i)
            image = render(params, view, sh_degree=sh_degree)[0].clamp(0, 1).numpy()
            values.append(psnr(image, view.image.numpy()))
    loader.close()
    return round(float(np.mean(values)), 3)


# ------------------------------------------------------------------ policies


def begins_with(policy: str, opinions: dict[str, float | None], rows: dict[float, dict[str, Any]]) -> float:
    """The value that a policy begins with; `rows` are the trainings of the patch by init_scaling."""
    extent, coverage = opinions["by_extent"], opinions["by_coverage"]
    assert extent is not None
    if policy == "coverage":
        return coverage or extent
    if policy == "probe":
        tried: list[Probed] = []
        while len(tried) < 3 and (value := next_probe(extent, tried, RUNGS)) is not None:
            tried.append(_probed(value, rows[value]))
        return decide(extent, tried).init_scaling
    if policy == "best at 300 steps":
        alive = {value: row["psnr"].get(str(PROBE_STEPS), -1.0) for value, row in rows.items()}
        return max(alive, key=lambda value: alive[value])
    return extent if policy == "extent" else RUNGS[0]


def _probed(value: float, row: dict[str, Any]) -> Probed:
    died = row["failure"] is not None and row["died_at"] <= PROBE_STEPS
    failure = FailureClass(row["failure"]) if died else None
    return Probed(value, failure, row["died_at"] if died else PROBE_STEPS, row["psnr"].get(str(PROBE_STEPS)))


def outcome(first: float, rows: dict[float, dict[str, Any]]) -> tuple[int, dict[str, Any] | None]:
    """Attempts wasted from `first` upwards, and the training that survived."""
    wasted = 0
    for value in sorted(value for value in rows if value >= first):
        if rows[value]["failure"] is None:
            return wasted, rows[value]
        wasted += 1
    return wasted, None


def policy_table(record: dict[str, Any], steps: Sequence[int]) -> str:
    """Markdown: one row a policy, over all patches that have got as far as `steps` whatever the policy."""
    groups = {key: rows for key, rows in _groups(record).items() if _as_far(record["opinions"][key], rows, steps[-1])}
    head = ["policy", "patches", "begins with", "survive", "wasted", *(f"PSNR at {step}" for step in steps)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for policy in POLICIES:
        firsts = [begins_with(policy, record["opinions"][key], rows) for key, rows in groups.items()]
        ends = [outcome(first, rows) for first, rows in zip(firsts, groups.values(), strict=True)]
        alive = [row for _, row in ends if row is not None]
        values = [f"{mean(row['psnr'][str(step)] for row in alive):.2f}" if alive else "-" for step in steps]
        begun = ", ".join(f"{firsts.count(value)} x {value:g}" for value in sorted(set(firsts)))
        shown = [policy, str(len(groups)), begun, str(len(alive)), str(sum(wasted for wasted, _ in ends)), *values]
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


def _as_far(opinions: dict[str, float | None], rows: dict[float, dict[str, Any]], step: int) -> bool:
    """Whether the training that each policy ends with has reached `step`, or is known to be dead."""
    ends = (outcome(begins_with(policy, opinions, rows), rows)[1] for policy in POLICIES)
    return all(row is None or str(step) in row["psnr"] for row in ends)


def value_table(record: dict[str, Any], step: int) -> str:
    """Markdown: one row a patch, its PSNR after `step` steps by init_scaling, or where it died."""
    values = sorted({row["init_scaling"] for row in record["cells"]})
    lines = [f"| after {step} steps | " + " | ".join(f"{value:g}" for value in values) + " |"]
    lines.append("|---" * (len(values) + 1) + "|")
    for key in dict.fromkeys(map(_key, record["cells"])):
        rows = {row["init_scaling"]: row for row in record["cells"] if _key(row) == key}
        shown = [_shown(rows[value], step) if value in rows else "-" for value in values]
        if set(shown) != {"-"}:
            lines.append(f"| {key} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _shown(row: dict[str, Any], step: int) -> str:
    if str(step) in row["psnr"]:
        return f"{row['psnr'][str(step)]:.2f}"
    return f"{row['failure']} at {row['died_at']}" if row["failure"] else "-"


def _groups(record: dict[str, Any]) -> dict[str, dict[float, dict[str, Any]]]:
    """Patch key to its trainings by rung, of patches for which every rung has been begun."""
    found: dict[str, dict[float, dict[str, Any]]] = {}
    for row in record["cells"]:
        if row["init_scaling"] in RUNGS and (row["failure"] or row["psnr"]):
            found.setdefault(_key(row), {})[row["init_scaling"]] = row
    return {key: rows for key, rows in found.items() if set(rows) == set(RUNGS)}


def _key(row: dict[str, Any]) -> str:
    return f"{row['scene']} x{row['scale']:g} {row['patch']}"


# ------------------------------------------------------------------ command line


def row_of(record: dict[str, Any], cell: Cell) -> dict[str, Any]:
    """The row of a cell, made if it is not there."""
    wanted = asdict(cell)
    for row in record["cells"]:
        if {name: row[name] for name in wanted} == wanted:
            return row  # type: ignore[no-any-return]
    record["cells"].append({**wanted, "psnr": {}, "failure": None, "died_at": None, "seconds": 0.0})
    return record["cells"][-1]  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    default = [str(ROOT / "examples" / "brighton_beach"), *(f"{SYNTHETIC}{name}" for name in ("aerial", "facade"))]
    parser.add_argument("scenes", nargs="*", default=default, metavar="SCENE")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0])
    parser.add_argument("--values", type=float, nargs="+", default=[*RUNGS, 1.0])
    parser.add_argument("--long", action="store_true", help=f"go on to {LONG} steps")
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--max-cameras", type=int, default=12)
    parser.add_argument("--width", type=int, default=240)
    parser.add_argument("--cap", type=int, default=30_000)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.threads:
        raster.set_threads(given.threads)
    raster.warm_up(print)
    steps = sorted({*given.steps, *([LONG] if given.long else [])})
    what = {"max_cameras": given.max_cameras, "width": given.width, "cap": given.cap}
    record: dict[str, Any] = {"what": what, "opinions": {}, "cells": []}
    if given.json and given.json.is_file():
        record = read_json(given.json)
        if record["what"] != what:
            raise SystemExit(f"{given.json} was made with {record['what']}, not {what}; give another file")
    with tempfile.TemporaryDirectory() as name:
        work = given.json.with_suffix(".work") if given.json else Path(name)
        run(given, record, steps, work)
    reached = [step for step in steps if step != PROBE_STEPS]
    for last in range(len(reached)):
        print(value_table(record, reached[last]), "", sep="\n")
    print(*(policy_table(record, reached[: last + 1]) for last in range(len(reached))), sep="\n\n")


def run(given: argparse.Namespace, record: dict[str, Any], steps: Sequence[int], work: Path) -> None:
    """Train whatever `record` lacks, and keep it up to date."""
    for planned in plans(given.scenes, given.scales, given, work / "data"):
        rung = planned.patch.rung
        key = _key({"scene": planned.scene, "scale": planned.scale, "patch": planned.patch.id})
        record["opinions"][key] = {"by_extent": rung.by_extent, "by_coverage": rung.by_coverage} | {
            "coverage_scaling": planned.patch.stats.coverage_scaling
        }
        for value in given.values:
            cell = Cell(planned.scene, planned.scale, planned.patch.id, value)
            row = row_of(record, cell)
            if row["failure"] or all(str(step) in row["psnr"] for step in steps):
                continue
            for _ in train(planned, cell, steps, row, work / "checkpoints" / cell.folder):
                if given.json:
                    write_json(given.json, record)
            told = row["failure"] or ", ".join(f"{step}: {value}" for step, value in row["psnr"].items())
            print(f"{key}, init_scaling {value:g}: {told} ({row['seconds']} s)", flush=True)


if __name__ == "__main__":
    main()
