"""Interrupt small runs at random moments, and see that running again always finishes them.

    python benchmarks/interruptions.py [--count 200] [--seconds S] [--seed 0] [--json FILE]

Each run trains a small scene in two patches on the trainer double (tests/doubles), is hit one to four times by
SIGINT, SIGTERM or SIGKILL, sent to splatpipe, to a trainer or to both, at a random moment between its start and its
end, and is started again after each hit; then it is left to finish. After every hit and at the end are checked: the
ledger (readable, SQLite's integrity check), every splat and JSON file under its final name (whole), and that no
process of the run is left. The script ends with status 1 at the first thing that is wrong, says what, and leaves that
run's folder. With `--json` the tally is kept after every run, and the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from scenes import synthetic_scene, write_scene  # noqa: E402

from splatpipe.files import read_json, write_json  # noqa: E402
from splatpipe.layout import RunLayout  # noqa: E402
from splatpipe.trainers.output import check_splat  # noqa: E402

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
TARGETS = ("splatpipe", "trainer", "both")
LONGEST_S = 300.0  # for a run that is not interrupted, on a busy machine
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
    seed: int = 0

    @classmethod
    def load(cls, path: Path | None, seed: int) -> Tally:
        """What an earlier call of the script had reached; a new one where there is none."""
        if path is None or not path.is_file():
            return cls(seed=seed)
        facts = read_json(path)
        if facts["seed"] != seed:
            raise SystemExit(f"{path} holds the tally of seed {facts['seed']}, not of {seed}; give another file")
        return cls(**{**facts, "hits": Counter(facts["hits"]), "exits": Counter(facts["exits"])})

    def save(self, path: Path | None) -> None:
        if path is not None:
            write_json(path, vars(self))


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
    tally.runs, tally.finished = tally.runs + 1, tally.finished + 1
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
    tally = Tally.load(given.json, given.seed)
    folder = Path(tempfile.mkdtemp(prefix="interruptions-"))
    try:
        write_scene(folder / "scene", synthetic_scene(n_cameras=25, n_points=400))
        interrupt(given, folder, tally)
    except Wrong as wrong:
        print(f"run {tally.runs} of seed {given.seed}, in {folder}: {wrong}", file=sys.stderr)
        return 1
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder)
    report(tally)
    return 0


def interrupt(given: argparse.Namespace, folder: Path, tally: Tally) -> None:
    """Runs until there were enough interruptions, or the time is over. Raises `Wrong`."""
    length = length_of_a_run(folder / "scene", folder)
    end = time.monotonic() + given.seconds
    while tally.hits.total() < given.count and time.monotonic() < end:
        left = given.count - tally.hits.total()
        rng = random.Random(f"{given.seed}/{tally.runs}")  # the same run, whenever the script was started
        out = folder / f"run{tally.runs:03d}"
        before = deepcopy(tally)
        try:
            length = one_run(folder / "scene", out, rng, min(rng.randint(1, 4), left), length, tally)
        except KeyboardInterrupt:
            vars(tally).update(vars(before))  # a run that was cut off does not count
            raise
        shutil.rmtree(out)
        tally.save(given.json)
        print(f"{tally.hits.total()} of {given.count} interruptions, {tally.runs} runs", file=sys.stderr, flush=True)


def report(tally: Tally) -> None:
    print(f"{tally.hits.total()} interruptions in {tally.runs} runs; {tally.finished} finished;")
    print(f"{tally.missed} more came too late. Signals, receivers and exit statuses of the interrupted process:")
    for name, count in sorted(tally.exits.items()):
        print(f"  {name}: {count}")


if __name__ == "__main__":
    sys.exit(main())
