"""How long a place waits between two patches: from one attempt's last step to the next one's first.

    python benchmarks/gaps.py RUN_FOLDER [--json FILE]         what a run has left in its folder, wherever it ran
    python benchmarks/gaps.py [--rounds 2] [--json FILE]       examples/brighton_beach on this machine's CPU, with
                              [KEY=VALUE ...]                  and without executor.standby, in turns; extra settings

From the events and records of the attempts. "waits" is the whole gap without the evaluation of the first patch's
hold-out views, which uses the device; the other columns are its parts, medians over all changes from one patch to the
next on the same place. "writing": splat and checks until the child says that it is done; "ending": until the child is
gone and what it left has been judged; "recording": check sum, ledger, scheduler, the next request; "process" to
"model": the next child, by its own account; "photograph": decoding of the first one; then begins the first step, whose
own length is no part of the gap. "2nd to last": the steps after it, which wait for photographs that are not decoded
yet. Attempts that shared a place with another at the same time are left out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from splatpipe.files import read_json, write_json  # noqa: E402
from splatpipe.trainers.tail import read_events  # noqa: E402

SETTINGS = (
    *("training.device=cpu", "executor.jobs=1", "training.threads=1", "probe.mode=never", "retry.history=false"),
    *("patching.max_cameras=4", "training.iterations=200", "training.max_cap=2000", "training.max_width=800"),
    *("training.sh_degree=0", "health.every=0"),
)
LAPS = ("imports", "kernels", "data", "model")


def attempt_of(folder: Path) -> dict[str, Any] | None:
    """When what happened in one attempt that succeeded in one go; None for any other."""
    events = read_events(folder / "events.jsonl")
    by_kind = {event["event"]: event for event in events}  # the last of each kind
    if not {"start", "first_step", "step", "done"} <= by_kind.keys() or sum(e["event"] == "start" for e in events) > 1:
        return None
    try:
        record = read_json(folder / "attempt.json")
    except (OSError, ValueError):
        return None
    return {
        "patch": folder.parent.name,
        "device": record["request"]["device"],
        "started": record["started"],
        "ended": record["ended"],
        "events": by_kind,
    }


def parts_of(before: dict[str, Any], after: dict[str, Any]) -> dict[str, float]:
    """The gap between two attempts on one place, in seconds, and what it is made of."""
    old, new = before["events"], after["events"]
    start, first = new["start"], new["first_step"]
    last_step, judged = old["step"]["t"], old.get("eval", old["step"])["t"]
    begins = first["t"] - first["seconds"]
    laps = {name: start["startup"].get(name, 0.0) for name in LAPS}
    parts = {
        "writing": old["done"]["t"] - judged,
        "ending": before["ended"] - old["done"]["t"],
        "recording": after["started"] - before["ended"],
        "process": start["t"] - after["started"] - sum(laps.values()),
        **laps,
        "photograph": first["decoding"],
    }
    gap = begins - last_step
    evaluation = judged - last_step
    waits = gap - evaluation
    return {
        "gap": gap,
        "evaluation": evaluation,
        "waits": waits,
        **parts,
        "other": waits - sum(parts.values()),
        "first step": first["seconds"],
        "2nd to last": new["step"]["t"] - first["t"],
    }


def gaps_of(run: Path) -> list[dict[str, float]]:
    """Every change from one patch to the next on one place."""
    found = [one for folder in sorted(run.glob("attempts/*/*")) if (one := attempt_of(folder))]
    gaps = []
    for device in sorted({one["device"] for one in found}):
        mine = sorted((one for one in found if one["device"] == device), key=lambda one: one["started"])
        pairs = itertools.pairwise(mine)
        gaps += [parts_of(a, b) for a, b in pairs if a["ended"] <= b["started"]]
    return gaps


def medians(gaps: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(gap[name] for gap in gaps), 3) for name in gaps[0]}


def show(rows: dict[str, dict[str, float]]) -> None:
    names = list(rows)
    print(f"{'seconds, medians':<20}" + "".join(f"{name:>12}" for name in names))
    for part in rows[names[0]]:
        print(f"{part:<20}" + "".join(f"{rows[name][part]:12.3f}" for name in names))


def train(out: Path, scene: Path, settings: list[str]) -> list[dict[str, float]]:
    """Train all patches of the scene into a new run folder, and measure."""
    command = [sys.executable, "-m", "splatpipe.cli", "train", str(out)]
    split = [sys.executable, "-m", "splatpipe.cli", "split", str(scene), "--out", str(out), *settings]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for one in (split, command):
        done = subprocess.run(one, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(one)}: status {done.returncode}\n{done.stderr[-2000:]}")
    return gaps_of(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.run is not None and "=" not in str(given.run):
        measured = {"run": gaps_of(given.run)}
    else:
        extra = [*([str(given.run)] if given.run else []), *given.settings]
        measured = compare(extra, given.rounds)
    rows = {name: medians(gaps) for name, gaps in measured.items() if gaps}
    show(rows)
    if len(rows) == 2:
        print(json.dumps({"waits_ratio": round(rows["standby"]["waits"] / rows["plain"]["waits"], 3)}))
    if given.json:
        write_json(given.json, {"load": os.getloadavg(), "medians": rows, "gaps": measured})


def compare(extra: list[str], rounds: int) -> dict[str, list[dict[str, float]]]:
    """Plain and standby in turns, after one run that nobody counts: it compiles kernels and fills the file cache."""
    measured: dict[str, list[dict[str, float]]] = {"plain": [], "standby": []}
    with tempfile.TemporaryDirectory() as folder:
        scene = Path(folder) / "scene"
        shutil.copytree(ROOT / "examples" / "brighton_beach", scene)
        train(Path(folder) / "warm", scene, [*SETTINGS, *extra, "training.iterations=2"])
        for turn in range(rounds):
            for name, on in (("plain", "false"), ("standby", "true")):
                out = Path(folder) / f"{name}{turn}"
                measured[name] += train(out, scene, [*SETTINGS, *extra, f"executor.standby={on}"])
                shutil.rmtree(out)
                print(f"round {turn + 1}, {name}: {len(measured[name])} changes of patches so far", file=sys.stderr)
    return measured


if __name__ == "__main__":
    main()
