"""Are bad settings noticed early, does the remedy train them, and are healthy trainings left alone?

    python benchmarks/health.py [--steps N] [--width PX] [--only faults|healthy] [--scenes DIR...] [--json FILE]

Every training is a real attempt: child process, supervisor, observer; every remedy is what `splatpipe run` would do
next (`policy/ladder.py`). Faults are seeded into one patch of the example scene after planning, so that preflight,
which finds most of them, has no say. Healthy trainings: the example whole with three seeds and cut into patches, and
five synthetic scenes; `--scenes` adds more. A verdict of severity `warning` or `stop` in one of them is a false alarm.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from splatpipe import pipeline
from splatpipe.diagnosis.datasets import read_patch_scene, write_variant
from splatpipe.layout import RunLayout
from splatpipe.planning import make_plan, write_datasets
from splatpipe.policy.ladder import RetrySettings, next_request
from splatpipe.scene.arrays import Scene, Similarity
from splatpipe.scene.colmap import read_scene
from splatpipe.splatting.spacing import neighbour_distances
from splatpipe.trainers.base import Attempt, TrainRequest
from splatpipe.trainers.gsplat_mcmc import GsplatTrainer
from splatpipe.trainers.supervise import run_attempt

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # its synthetic scenes
UNITS = 1000.0
MOST_ATTEMPTS = 5


@dataclass(frozen=True)
class Fault:
    """`seed` makes a request bad; `cure`, where the ladder has none, is what splatpipe does by itself."""

    name: str
    expected: str  # the rule that should notice
    seed: Callable[[TrainRequest], TrainRequest]
    cure: str = ""


def planned(scene: Path, out: Path, options: argparse.Namespace, *overrides: str) -> list[TrainRequest]:
    """The first request of each patch, with a short schedule, at a small image size."""
    n = options.steps
    short = {
        "iterations": n, "refine_start": n // 5, "refine_every": max(n // 30, 10), "refine_stop": round(0.9 * n),
        "sh_degree_interval": n // 4, "scale_schedule": "false", "max_width": options.width, "device": "cpu",
        "threads": options.threads,
    }  # fmt: skip
    given = [*(f"training.{key}={value}" for key, value in short.items()), f"health.every={max(n // 60, 5)}"]
    resolved = pipeline.RunOptions.resolve(scene, out, None, [*given, *overrides], None, None)
    layout, config = resolved.layout, resolved.config
    plan = make_plan(read_scene(scene, None, "error").scene, config, ())
    write_datasets(plan, layout)
    return [one.request(layout, 1, config, "gsplat") for one in plan.patches]


# ------------------------------------------------------------------ faults


def altered(request: TrainRequest, scene: Scene, similarity: Similarity | None = None) -> TrainRequest:
    """The request on another version of its data set."""
    layout = RunLayout(request.out.parents[2] / "altered").patch(request.patch_id)
    write_variant(scene, layout, similarity=similarity)
    return replace(request, dataset=layout.root)


def in_other_units(request: TrainRequest) -> TrainRequest:
    return altered(request, read_patch_scene(request.patch), Similarity(UNITS, (0.0, 0.0, 0.0)))


def with_blind_camera(request: TrainRequest) -> TrainRequest:
    """The first camera is turned about its own vertical axis, away from everything."""
    scene, healthy_holdout = read_patch_scene(request.patch), request.patch.holdout
    viewmats = scene.viewmats.copy()
    viewmats[0] = np.diag([-1.0, 1.0, -1.0, 1.0]) @ viewmats[0]
    request = altered(request, replace(scene, viewmats=viewmats))
    request.patch.holdout.symlink_to(healthy_holdout.resolve())
    return request


def with_opacity_rate(request: TrainRequest) -> TrainRequest:
    return replace(request, settings=replace(request.settings, opacities_lr=10 * request.settings.opacities_lr))


def with_init(request: TrainRequest, relative: float) -> TrainRequest:
    return replace(request, init_scaling=relative)


def with_lichtfeld_init(request: TrainRequest, value: float) -> TrainRequest:
    """LichtFeld Studio's init_scaling makes sigma = value x sqrt(distance), ours value x distance."""
    apart = float(np.median(neighbour_distances(read_patch_scene(request.patch).points).mean(axis=1)))
    return with_init(request, value / apart**0.5)


FAULTS = (
    Fault("scene x1000, not normalised", "explosion", in_other_units, "normalise (always part of a run)"),
    Fault("opacity learning rate x10", "death_spiral", with_opacity_rate),
    Fault("one blind camera", "blind_camera", with_blind_camera),
    Fault("init_scaling 2.0", "early_death", lambda request: with_init(request, 2.0)),
    Fault("init_scaling 2.0 in LichtFeld's meaning", "explosion", lambda request: with_lichtfeld_init(request, 2.0)),
)


def train(request: TrainRequest) -> tuple[Attempt, dict[str, Any]]:
    """One real attempt, and its facts."""
    began = time.monotonic()
    attempt = run_attempt(GsplatTrainer(), request, on_event=lambda event: None, stop=threading.Event())
    verdicts = attempt.health.get("verdicts") or []
    return attempt, {
        "init_scaling": request.init_scaling,
        "class": attempt.failure,
        "line": attempt.line,
        "step": attempt.last_step,
        "verdicts": [{key: v[key] for key in ("rule", "severity", "step", "message")} for v in verdicts],
        "psnr": attempt.health.get("psnr"),
        "view_psnr": attempt.health.get("view_psnr"),
        "loss": attempt.health.get("loss"),
        "seconds": round(time.monotonic() - began, 1),
    }


def fault_row(fault: Fault, healthy: TrainRequest, folder: Path) -> dict[str, Any]:
    """Train the bad request, then what the ladder makes of it, until one trains."""
    place = RunLayout(folder / fault.name.replace(" ", "_").replace("'", "").replace(",", ""))
    first = fault.seed(replace(healthy, out=place.attempt(healthy.patch_id, 1).root))
    request, history, attempts, remedies = first, [], [], []
    for _ in range(MOST_ATTEMPTS):
        attempt, facts = train(request)
        history.append(attempt)
        attempts.append(facts)
        say(f"{fault.name}: {told(facts)}")
        if attempt.failure is None:
            break
        decision = next_request(first, history, RetrySettings(max_attempts=MOST_ATTEMPTS))
        if fault.cure and not remedies:
            remedies.append(fault.cure)
            request = replace(healthy, attempt=2, out=place.attempt(healthy.patch_id, 2).root)
        elif decision.request is None:
            break
        else:
            request = decision.request
            remedies.append(str(decision.remedy))
    return {"fault": fault.name, "expected": fault.expected, "remedies": remedies, "attempts": attempts}


def told(facts: dict[str, Any]) -> str:
    rules = ", ".join(f"{v['rule']} ({v['severity']}) at {v['step']}" for v in facts["verdicts"]) or "no verdict"
    end = f"{facts['class']} at {facts['step']}" if facts["class"] else f"trained, PSNR {facts['psnr']}"
    return f"{end}; {rules}; {facts['seconds']} s"


def fault_table(rows: Sequence[dict[str, Any]], reference: float | None) -> str:
    lines = ["| seeded fault | verdict | noticed at | ended at | remedy | hold-out PSNR |", "|---|---|---|---|---|---|"]
    for row in rows:
        first, last = row["attempts"][0], row["attempts"][-1]
        loud = [v for v in first["verdicts"] if v["severity"] != "note"]
        verdict = ", ".join(f"{v['rule']} ({v['severity']})" for v in loud) or (first["class"] or "none")
        noticed = str(loud[0]["step"]) if loud else "-"
        ended = f"{first['step']}, {first['class']}" if first["class"] else "not ended"
        quality = last["psnr"] if last["psnr"] is not None else last["view_psnr"]
        result = f"{quality:.2f} dB" if last["class"] is None and quality else f"failed: {last['class']}"
        remedy = ", ".join(row["remedies"]) or "none needed"
        lines.append(f"| {row['fault']} | {verdict} | {noticed} | {ended} | {remedy} | {result} |")
    shown = "not measured" if reference is None else f"{reference:.2f} dB"
    return "\n".join([*lines, f"(without a fault: PSNR {shown})"])


# ------------------------------------------------------------------ healthy


def healthy_requests(folder: Path, options: argparse.Namespace) -> list[tuple[str, TrainRequest]]:
    """Ten by default."""
    from scenes import synthetic_scene, write_scene

    example = ROOT / "examples" / "brighton_beach"
    found: list[tuple[str, TrainRequest]] = []
    for seed in (42, 1, 2):
        (whole,) = planned(example, folder / f"whole_{seed}", options, f"training.seed={seed}")[:1]
        found.append((f"brighton_beach, seed {seed}", whole))
    cut = planned(example, folder / "cut", options, "patching.max_cameras=8")
    found += [(f"brighton_beach {one.patch_id}", one) for one in cut[:3]]
    for kind, seed in (("aerial", 0), ("aerial", 1), ("object", 0), ("facade", 0), ("line", 0)):
        name = f"{kind}_{seed}"
        write_scene(folder / name, synthetic_scene(n_cameras=24, n_points=1500, layout=kind, seed=seed))
        found.append((name, planned(folder / name, folder / f"{name}_run", options)[0]))
    for scene in options.scenes:
        requests = planned(scene, folder / f"given_{scene.name}", options)
        found += [(f"{scene.name} {one.patch_id}", one) for one in requests[: options.patches]]
    return found


def healthy_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| healthy training | PSNR | false alarms | notes |", "|---|---|---|---|"]
    for row in rows:
        said = {kind: [v["rule"] for v in row["verdicts"] if (v["severity"] == "note") is kind] for kind in (0, 1)}
        psnr = f"{row['psnr']:.2f}" if row["psnr"] is not None else "-"
        alarms = ", ".join(said[0]) or (row["class"] and str(row["class"])) or "none"
        lines.append(f"| {row['name']} | {psnr} | {alarms} | {', '.join(said[1])} |")
    return "\n".join(lines)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--width", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=("faults", "healthy"))
    parser.add_argument("--faults", nargs="*", default=[], help="only those whose name begins so")
    parser.add_argument("--scenes", type=Path, nargs="*", default=[])
    parser.add_argument("--patches", type=int, default=2, help="of each scene given")
    parser.add_argument("--keep", type=Path, help="keep the attempts, with their events, in this folder")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    record: dict[str, Any] = {"steps": options.steps, "width": options.width, "healthy": [], "faults": []}

    def keep_record() -> None:
        if options.json:
            options.json.write_text(json.dumps(record, indent=1, default=str))

    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        if options.only != "faults":
            for name, request in healthy_requests(folder, options):
                record["healthy"].append({"name": name, **train(request)[1]})
                say(f"{name}: {told(record['healthy'][-1])}")
                keep_record()
            print(healthy_table(record["healthy"]))
        if options.only != "healthy":
            healthy = planned(ROOT / "examples" / "brighton_beach", folder / "faults", options)[0]
            reference = train(healthy)[1]
            say(f"without a fault: {told(reference)}")
            for fault in FAULTS:
                if options.faults and not fault.name.startswith(tuple(options.faults)):
                    continue
                record["faults"].append(fault_row(fault, healthy, folder))
                keep_record()
            print(fault_table(record["faults"], reference["psnr"]))


if __name__ == "__main__":
    main()
