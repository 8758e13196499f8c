"""First-rung policies side by side: what each begins with, whether that survives, and how good it becomes.

    python benchmarks/init_scaling.py [SCENE ...] [--steps 500 2000] [--seeds 42] [--scales 1] [--json FILE]

For each scene, scale of its units, patch and seed, the real loop on the CPU trains from every value that a policy
begins with, on the schedule of a 30,000-step run, and hold-out PSNR is taken on the way. Policies: extent rule, image
coverage about once, fixed 0.1, and the probe (the first rung from the extent rule's on that survives 300 steps). A
value that dies is an attempt wasted, and the next larger one is trained.

SCENE: a COLMAP scene, cut as `--max-cameras` says; the same with `:a` or `:b`, cut unequally so that extents reach
every branch of the extent rule (`uneven.py`); synthetic:aerial, synthetic:object, synthetic:facade; or synthetic:city,
whose patches differ in extent because it was flown unevenly. With `--json` it may be stopped at any moment and started
again, also with more scenes, steps or seeds: it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests")]

from init_scaling_tables import branch_table, next_value, noise, policy_table, value_table  # noqa: E402
from patch_views import CACHE_BYTES, PatchViews  # noqa: E402
from scenes import scaled, synthetic_scene, write_scene  # noqa: E402
from uneven import CUTS, cells, uneven_city  # noqa: E402

from splatpipe.config import load_config  # noqa: E402
from splatpipe.files import read_json, write_json  # noqa: E402
from splatpipe.layout import PatchLayout, RunLayout  # noqa: E402
from splatpipe.planning import PlannedPatch, make_plan, write_datasets  # noqa: E402
from splatpipe.policy.probe import ProbeSettings  # noqa: E402
from splatpipe.scene.arrays import Scene  # noqa: E402
from splatpipe.scene.colmap import read_scene  # noqa: E402
from splatpipe.scene.undistort import undistort  # noqa: E402
from splatpipe.splatting import raster  # noqa: E402
from splatpipe.splatting.loop import Stopped, Training, TrainingFailure, TrainingJob  # noqa: E402

SYNTHETIC = "synthetic:"
# Settings by scene. Synthetic photographs are 64 pixels wide, the city's 96.
SIMPLE = ("patching.max_cameras=20", "training.max_cap=30000")
CITY = ("patching.max_cameras=24", "training.max_cap=5000")
# Cells are cut by hand, keep views for evaluation in most of them, and are far too few for the usual limits.
CELLS = ("patching.max_cameras=100", "patching.min_cameras=1", "patching.buffer=0.05", "patching.holdout_every=4")


@dataclass(frozen=True)
class Cell:
    """One training."""

    scene: str
    scale: float
    patch: str
    seed: int
    init_scaling: float

    @property
    def folder(self) -> str:
        return f"{self.scene.replace(':', '_')}/{self.scale:g}/{self.patch}/{self.seed}/{self.init_scaling:g}"


@dataclass(frozen=True, eq=False)
class Planned:
    """A patch on disk."""

    scene: str
    scale: float
    patch: PlannedPatch
    layout: PatchLayout

    @property
    def name(self) -> str:
        return f"{self.scene} x{self.scale:g} {self.patch.id}"

    def facts(self) -> dict[str, Any]:
        """What policies go by."""
        rung, stats = self.patch.rung, self.patch.stats
        return {
            "by_extent": rung.by_extent,
            "by_coverage": rung.by_coverage,
            "extent": stats.extent,
            "extent_ratio": rung.extent_ratio,
            "coverage_scaling": stats.coverage_scaling,
            "seen_share": stats.to_json()["seen_share"]["q50"],
        }


def load(name: str, folder: Path) -> Scene:
    """A scene with undistorted photographs."""
    if not name.startswith(SYNTHETIC):
        return undistort(read_scene(Path(name)).scene, folder / "undistorted", print)
    layout = name.removeprefix(SYNTHETIC)
    scene = uneven_city() if layout == "city" else synthetic_scene(n_cameras=36, n_points=1500, layout=layout)  # type: ignore[arg-type]
    return write_scene(folder / "source", scene)


def settings(name: str, cuts: str, scene: Scene, given: argparse.Namespace) -> list[str]:
    """The settings that a scene is planned with."""
    common = [f"training.max_width={given.width}", "training.scale_schedule=false"]
    if name.startswith(SYNTHETIC):
        return [*common, *(CITY if name.endswith("city") else SIMPLE)]
    cut = [*CELLS, f"patching.cells={json.dumps(cells(scene, cuts))}"] if cuts else []
    return [*common, f"training.max_cap={given.cap}", *(cut or [f"patching.max_cameras={given.max_cameras}"])]


def plans(given: argparse.Namespace, work: Path) -> Iterator[Planned]:
    """Every patch with hold-out views, of every scene at every scale, as a data set on disk."""
    for full in given.scenes:
        name, _, cuts = full.rpartition(":") if full.rpartition(":")[2] in CUTS else (full, "", "")
        label = full if name.startswith(SYNTHETIC) else ":".join(filter(None, (Path(name).resolve().name, cuts)))
        folder = work / label.replace(":", "_")
        scene = load(name, folder)
        for scale in given.scales:
            sized = scaled(scene, scale)
            plan = make_plan(sized, load_config(None, settings(name, cuts, sized, given)))
            layout = RunLayout(folder / f"{scale:g}")
            write_datasets(plan, layout)
            for patch in plan.patches:
                if len(patch.patch.holdout_cameras) and (not given.patches or patch.id in given.patches):
                    yield Planned(label, scale, patch, layout.patch(patch.id))


def train(planned: Planned, cell: Cell, steps: Sequence[int], row: dict[str, Any], checkpoints: Path) -> Iterator[None]:
    """Fill `row`: PSNR by step, or the step and class of death; yields whenever it has changed."""
    views = PatchViews.read(planned.layout, planned.patch.settings.max_width)
    chosen = replace(planned.patch.settings, checkpoint_every=500, seed=cell.seed)
    job = TrainingJob(chosen, cell.init_scaling, "cpu", checkpoints, CACHE_BYTES)
    training = Training(views.data, job, _quiet)
    for step in steps:
        if str(step) in row["psnr"] or row["failure"]:
            continue
        began = time.monotonic()
        try:
            training.run(lambda step=step: training.step >= step)  # type: ignore[misc]
        except Stopped:
            row["psnr"][str(step)] = round(views.psnr(training.params, chosen.sh_degree), 3)
        except TrainingFailure as failure:
            row |= {"failure": failure.failure, "died_at": failure.step}
        row["seconds"] = round(row["seconds"] + time.monotonic() - began, 1)
        row["gaussians"] = len(training.params["means"])
        shares = training.health.relocated_shares
        row["relocated"] = [round(share, 3) for share in shares]
        yield


def _quiet(event: str, **values: Any) -> None:
    """Nobody listens to the events."""


def row_of(record: dict[str, Any], cell: Cell) -> dict[str, Any]:
    """The row of a cell, made if it is not there."""
    wanted = asdict(cell)
    for row in record["cells"]:
        if {name: row[name] for name in wanted} == wanted:
            return row  # type: ignore[no-any-return]
    record["cells"].append({**wanted, "psnr": {}, "failure": None, "died_at": None, "seconds": 0.0})
    return record["cells"][-1]  # type: ignore[no-any-return]


def run(given: argparse.Namespace, record: dict[str, Any], steps: Sequence[int], work: Path) -> None:
    """Train whatever `record` lacks, and keep it up to date."""
    for planned in plans(given, work / "data"):
        facts = record["patches"][planned.name] = planned.facts()
        if given.json:
            write_json(given.json, record)
        for seed in given.seeds:
            rows: dict[float, dict[str, Any]] = {}
            while (value := next_value(facts, rows, given.values, steps[-1])) is not None:
                cell = Cell(planned.scene, planned.scale, planned.patch.id, seed, value)
                rows[value] = row = row_of(record, cell)
                for _ in train(planned, cell, steps, row, work / "checkpoints" / cell.folder):
                    if given.json:
                        write_json(given.json, record)
                told = row["failure"] or ", ".join(f"{step}: {value}" for step, value in row["psnr"].items())
                print(f"{planned.name}, seed {seed}, {value:g}: {told} ({row['seconds']} s)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    example = str(ROOT / "examples" / "brighton_beach")
    default = [example, *(f"{example}:{cuts}" for cuts in CUTS), f"{SYNTHETIC}city"]
    parser.add_argument("scenes", nargs="*", default=default, metavar="SCENE")
    parser.add_argument("--patches", nargs="+", metavar="ID", help="of each scene only these")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--values", type=float, nargs="+", default=[], help="to train from beside the policies' own")
    parser.add_argument("--steps", type=int, nargs="+", default=[500, 2000])
    parser.add_argument("--max-cameras", type=int, default=12)
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--cap", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.threads:
        raster.set_threads(given.threads)
    raster.warm_up(print)
    what = {"max_cameras": given.max_cameras, "width": given.width, "cap": given.cap}
    record: dict[str, Any] = {"what": what, "patches": {}, "cells": []}
    if given.json and given.json.is_file():
        record = read_json(given.json)
        if record["what"] != what:
            raise SystemExit(f"{given.json} was made with {record['what']}, not {what}; give another file")
    with tempfile.TemporaryDirectory() as name:
        work = given.json.with_suffix(".work") if given.json else Path(name)
        run(given, record, sorted({ProbeSettings().steps, *given.steps}), work)
    reached = sorted(given.steps)
    print(value_table(record, reached), end="\n\n")
    for last in range(len(reached)):
        sofar = reached[: last + 1]
        print(branch_table(record, sofar), policy_table(record, sofar), sep="\n\n", end="\n\n")
    print(noise(record, reached))


if __name__ == "__main__":
    main()
