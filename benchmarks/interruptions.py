"""Interrupt small runs at random moments, and see that running again always finishes them.

    python benchmarks/interruptions.py [--count 200] [--seconds S] [--seed 0] [--json FILE]

Each run trains a small scene in two patches on the trainer double (tests/doubles), is hit one to four times by
SIGINT, SIGTERM or SIGKILL, sent to splatpipe, to a trainer or to both, at a random moment between its start and its
end, and is started again after each hit; then it is left to finish. After every hit and at the end are checked: the
ledger (readable, SQLite's integrity check), every splat and JSON file under its final name (whole), and that no
process of the run is left. The script ends with status 1 at the first thing that is wrong, and says what.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from scenes import synthetic_scene, write_scene  # noqa: E402

from splatpipe.layout import RunLayout  # noqa: E402
from splatpipe.trainers.output import check_splat  # noqa: E402

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
TARGETS = ("splatpipe", "trainer", "both")
LONGEST_S = 120.0  # for a run that is not interrupted, on a busy machine
SETTINGS = (
    *("training.iterations=60", "training.refine_start=10", "training.max_cap=500", "training.device=cpu"),
    *("patching.max_cameras=12", "limits.grace_s=2"),
)


@dataclass
class Tally:
    """What was done and how the interrupted processes ended."""

    hits: Counter[str] = field(default_factory=Counter)
    missed: int = 0  # the run was over before the moment came
    exits: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    finished: int = 0


class Wrong(Exception):
    """A run is not as it must be."""


def start(scene: Path, out: Path) -> subprocess.Popen[str]:
    """splatpipe on the double, slow enough to be hit while it trains."""
    command = [sys.executable, str(ROOT / "tests" / "doubles" / "cli_with_double.py"), "run", str(scene)]
    environment = {**os.environ, "TRAINER_DOUBLE": json.dumps({"default": {"step_s": 0.08}})}
    return subprocess.Popen(
        [*command, "--out", str(out), *SETTINGS],
        env=environment,
        cwd=out.parent,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def hit(process: subprocess.Popen[str], moment: float, number: signal.Signals, target: str) -> bool:
    """Send the signal after `moment` seconds; whether there was anybody to receive it."""
    deadline = time.monotonic() + moment
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    if process.poll() is not None:
        return False
    trainers = psutil.Process(process.pid).children(recursive=True)
    goals = {"splatpipe": [process.pid], "trainer": [child.pid for child in trainers]}
    received = False
    for pid in goals.get(target) or [*goals["splatpipe"], *goals["trainer"]]:
        try:
            os.kill(pid, number)
            received = True
        except ProcessLookupError:
            continue
    return received


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        return []


def wait(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and stderr; nothing that it started may live on."""
    seen: set[psutil.Process] = set()
    deadline = time.monotonic() + LONGEST_S
    while process.poll() is None:
        seen.update(family(process))
        if time.monotonic() > deadline:
            process.kill()
            raise Wrong(f"a run did not end within {LONGEST_S:g} s")
        time.sleep(0.05)
    errors = process.communicate()[1]
    _, alive = psutil.wait_procs(list(seen), timeout=15)
    left = [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
    if left:
        raise Wrong(f"left running: {left}")
    return process.returncode, errors


def check(out: Path) -> None:
    """Raises `Wrong` for a damaged ledger, or a file under a final name that is not whole."""
    layout = RunLayout(out)
    if layout.ledger.exists():
        with closing(sqlite3.connect(layout.ledger)) as db:
            verdict = db.execute("PRAGMA integrity_check").fetchone()[0]
        if verdict != "ok":
            raise Wrong(f"{layout.ledger}: {verdict}")
    splats = [*out.glob("attempts/*/*/splat.ply"), *out.glob("merged/*.ply")]
    readers = [(path, check_splat) for path in splats]
    readers += [(path, lambda p: json.loads(p.read_text())) for path in out.rglob("*.json")]  # type: ignore[misc]
    readers += [(path, lambda p: yaml.safe_load(p.read_text())["settings"]) for path in out.glob("run.yml")]
    for path, read in readers:
        try:
            read(path)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise Wrong(f"{path.relative_to(out)} is under its final name but not whole: {error}") from error


def check_finished(out: Path) -> None:
    with closing(sqlite3.connect(RunLayout(out).ledger)) as db:
        outcomes = [row[0] for row in db.execute("SELECT outcome FROM patches")]
    if not outcomes or not all(outcome.startswith("trained") for outcome in outcomes):
        raise Wrong(f"finished, but the patches are {outcomes}")
    if not RunLayout(out).merged_splat.is_file():
        raise Wrong("finished without a merged splat")
    if left := [str(path) for path in out.rglob("*.tmp")]:
        raise Wrong(f"temporary files are left: {left}")


def one_run(scene: Path, out: Path, rng: random.Random, hits: int, length: float, tally: Tally) -> float:
    """A run that is hit up to `hits` times, then finishes; gives `length` back, less where moments came too late."""
    tally.runs += 1
    for _ in range(hits):
        process = start(scene, out)
        number, target = rng.choice(SIGNALS), rng.choice(TARGETS)
        received = hit(process, rng.uniform(0, length), number, target)
        status, errors = wait(process)
        if not received:
            tally.missed += 1
            length *= 0.8  # what is trained is not trained again, and the machine may be less busy than before
        else:
            tally.hits[f"{number.name} to {target}"] += 1
            tally.exits[f"{number.name} to {target}: status {status}"] += 1
        if status == 1 and "KeyboardInterrupt" not in errors:
            raise Wrong(f"{number.name} to {target} looked like a bug:\n{errors}")
        check(out)
    status, errors = wait(start(scene, out))
    if status != 0:
        raise Wrong(f"did not finish, exit status {status}:\n{errors}")
    check(out)
    check_finished(out)
    tally.finished += 1
    return length


def length_of_a_run(scene: Path, folder: Path) -> float:
    """Seconds that a run takes here and now."""
    began = time.monotonic()
    status, errors = wait(start(scene, folder / "measure"))
    if status != 0:
        raise Wrong(f"an undisturbed run ended with {status}:\n{errors}")
    return time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--count", type=int, default=200, help="interruptions that reach somebody")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no further run after this time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rng, tally = random.Random(given.seed), Tally()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_scene(folder / "scene", synthetic_scene(n_cameras=25, n_points=400))
        try:
            length = length_of_a_run(folder / "scene", folder)
            end = time.monotonic() + given.seconds
            while tally.hits.total() < given.count and time.monotonic() < end:
                left = given.count - tally.hits.total()
                out = folder / f"run{tally.runs:03d}"
                length = one_run(folder / "scene", out, rng, min(rng.randint(1, 4), left), length, tally)
        except Wrong as wrong:
            print(f"run {tally.runs - 1} (seed {given.seed}): {wrong}", file=sys.stderr)
            return 1
    report(tally, given.json)
    return 0


def report(tally: Tally, path: Path | None) -> None:
    print(f"{tally.hits.total()} interruptions in {tally.runs} runs; {tally.finished} finished;")
    print(f"{tally.missed} more came too late. Signals, receivers and exit statuses of the interrupted process:")
    for name, count in sorted(tally.exits.items()):
        print(f"  {name}: {count}")
    if path:
        facts: dict[str, Any] = {"runs": tally.runs, "finished": tally.finished, "missed": tally.missed}
        path.write_text(json.dumps(facts | {"hits": tally.hits, "exits": tally.exits}, indent=1))


if __name__ == "__main__":
    sys.exit(main())
