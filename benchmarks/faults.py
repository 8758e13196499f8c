"""Let every system call that writes fail once, and see that nothing trained is lost and the next run finishes.

    python benchmarks/faults.py [--errors ENOSPC,EIO,EINTR,FULL] [--calls write,rename,...] [--real] [--every]
                                [--limit N] [--seed S] [--json FILE]

A small run in two patches is started for every (call, file, error): of each kind of file the first and the last such
call fails, with --every all of them; --limit takes some, evenly, or with --seed at random. FULL is a disk that is full
from that call on. The calls are made to fail below the run folder by a preloaded library (tests/doubles/failing_disk.c,
built with cc), in splatpipe and in its children. Trains on the trainer double; with --real on the CPU trainer. After
each failure are checked: one sentence and no traceback, an exit code of DESIGN, whole files, a readable ledger; and
after another run without a failure: finished, with every patch that had been trained before untouched. Ends with status
1 when something was wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import io
import json
import mmap
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "doubles")]

CALLS = ("write", "pwrite", "writev", "fsync", "fdatasync", "rename", "open", "mkdir", "link", "symlink", "ftruncate")
CALLS += ("unlink", "rmdir", "utime")
FULL = "FULL"
NEVER = "never reached"
SETTINGS = ("training.max_cap=200", "training.device=cpu", "patching.max_cameras=5", "limits.grace_s=5")
SETTINGS += ("retry.history=false",)  # only reads, and that of the folders of other cases
DOUBLE = ("training.iterations=60", "training.refine_start=10", "patching.holdout_every=0")
REAL = ("training.iterations=40", "training.refine_start=10", "training.refine_every=20", "training.sh_degree=0")
REAL += ("training.checkpoint_every=15", "patching.holdout_every=4", "training.threads=1")
SANE = {0, 2, 3, 4}  # exit codes that a failing disk may lead to
SECONDS = 240.0
BEAT_S = 0.1  # between two signs of life of the lock's owner, which in a short run would not come
AGAIN = 3  # runs, at most, of a case whose call did not come: how often SQLite writes pages differs from run to run


class Control(ctypes.Structure):
    """As in failing_disk.c."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("active", "call", "error", "lasting")),
        ("at", ctypes.c_long),
        ("counts", ctypes.c_long * len(CALLS)),
        ("fired", ctypes.c_long),
        *((name, ctypes.c_char * 512) for name in ("where", "root", "trace")),
    ]


@dataclass(frozen=True)
class Fault:
    """The `at`-th `call` below the run folder returns `error`; `file` is where it did in an undisturbed run."""

    call: str
    at: int
    error: str
    file: str


@dataclass(frozen=True)
class Ending:
    """How one case ended; `wrong` says what must not be."""

    fault: Fault
    where: str
    status: int
    said: str
    rerun: int
    wrong: str | None


class Disk:
    """Tells the preloaded library what to do."""

    def __init__(self, file: Path) -> None:
        with file.open("rb+") as handle:
            self._map = mmap.mmap(handle.fileno(), ctypes.sizeof(Control))
        self.control = Control.from_buffer(self._map)

    def arm(self, root: Path, fault: Fault | None, trace: Path | None = None) -> None:
        control = self.control
        ctypes.memset(ctypes.byref(control), 0, ctypes.sizeof(control))
        control.root = f"{root}/".encode()
        if trace is not None:
            control.trace = str(trace).encode()
        if fault is not None:
            control.call, control.at = CALLS.index(fault.call), fault.at
            control.error = errno.ENOSPC if fault.error == FULL else getattr(errno, fault.error)
            control.lasting = fault.error == FULL
        control.active = 1 if fault else 2 if trace else 0

    def disarm(self) -> None:
        self.control.active = 0


def warm_up(scene: Path, out: Path) -> None:
    """A run in this process, so that its forks need not load libraries, machine code, fonts and templates again."""
    from trainer_double import TrainerDouble

    from splatpipe import pipeline

    options = pipeline.RunOptions.resolve(scene, out, None, [*SETTINGS, *DOUBLE], None, None)
    silence = io.StringIO()
    with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        pipeline.run(options, stop=threading.Event(), trainer=TrainerDouble({"default": {"steps": 3}}))


def call_splatpipe(scene: Path, out: Path, real: bool, log: Path) -> int:
    """`splatpipe run` in a fork of this process, which has loaded everything; its exit status."""
    pid = os.fork()
    if pid == 0:
        try:
            _become_splatpipe(scene, out, real, log)
        finally:
            os._exit(99)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return -9


def _become_splatpipe(scene: Path, out: Path, real: bool, log: Path) -> None:
    from trainer_double import TrainerDouble

    from splatpipe import cli, pipeline, runlock
    from splatpipe.crew import Crew

    runlock.BEAT_S = BEAT_S
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    if not real:
        double = TrainerDouble({"default": {"steps": 3}})
        pipeline.choose_crew = lambda config, folders: Crew(double, double.probe())
    sys.argv = ["splatpipe", "run", str(scene), "--out", str(out), *SETTINGS, *(REAL if real else DOUBLE)]
    status = 0
    try:
        cli.main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def kind_of(path: str) -> str:
    """A file's name with what differs from run to run left out."""
    name = re.sub(r"\.\d+\.tmp", ".PID.tmp", path)
    name = re.sub(r"p\d{3}", "pNNN", name)
    return re.sub(r"(view_|step_)\d+", r"\1N", name)


def record(disk: Disk, scene: Path, folder: Path, real: bool) -> list[tuple[str, int, str]]:
    """(call, number, path below the run folder) of every call of an undisturbed run."""
    out, trace = folder / "record", folder / "trace.txt"
    disk.arm(out, None, trace)
    status = call_splatpipe(scene, out, real, folder / "record.log")
    disk.disarm()
    if status != 0:
        raise SystemExit(f"an undisturbed run ended with {status}:\n{(folder / 'record.log').read_text()}")
    lines = (line.split(" ", 2) for line in trace.read_text().splitlines())
    return [(CALLS[int(call)], int(number), str(Path(path).relative_to(out))) for call, number, path in lines]


def choose(calls: list[tuple[str, int, str]], errors: list[str], every: bool) -> list[Fault]:
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for call, number, path in calls:
        groups[call, kind_of(path)].append(number)
    faults = []
    for (call, kind), numbers in groups.items():
        some = numbers if every else sorted({numbers[0], numbers[-1]})
        for error in errors:
            faults += [Fault(call, at, error, kind) for at in (some[:1] if error == FULL and not every else some)]
    return faults


def trained(out: Path) -> dict[str, tuple[int, str]]:
    """By patch that the ledger calls trained: its attempt and the check sum of its splat."""
    from splatpipe.errors import SplatpipeError
    from splatpipe.layout import RunLayout
    from splatpipe.ledger import Ledger
    from splatpipe.records import digest

    layout = RunLayout(out)
    if not layout.ledger.is_file():
        return {}
    try:
        with Ledger(layout.ledger, read_only=True) as ledger:
            found = {}
            for record in ledger.patches():
                good = [attempt for attempt in ledger.history(record.id) if attempt.failure is None and attempt.splat]
                if record.outcome.trained and good:
                    found[record.id] = (good[-1].request.attempt, digest(good[-1].splat))
            return found
    except SplatpipeError as error:
        if "empty" in str(error) or "no ledger" in str(error):
            return {}
        raise


def reached_case(disk: Disk, scene: Path, folder: Path, fault: Fault, real: bool) -> Ending:
    """A case whose call came: where a run makes fewer such calls than the recorded one, its last one is taken."""
    for _ in range(AGAIN):
        ending = one_case(disk, scene, folder, fault, real)
        calls = disk.control.counts[CALLS.index(fault.call)]  # of the run that was to fail: nothing counts disarmed
        if ending.where != NEVER or not calls:
            break
        fault = replace(fault, at=min(fault.at, calls))
    return ending


def one_case(disk: Disk, scene: Path, folder: Path, fault: Fault, real: bool) -> Ending:
    from interruptions import Wrong, check, check_finished

    out, log = folder / "run", folder / "run.log"
    subprocess.run(["rm", "-rf", str(out)], check=True)
    disk.arm(out, fault)
    status = call_splatpipe(scene, out, real, log)
    disk.disarm()
    fired, where = disk.control.fired, disk.control.where.decode("utf-8", "replace").removeprefix(f"{out}/")
    said = log.read_text(errors="replace")
    rerun, wrong = 0, None
    try:
        if not fired:
            return Ending(fault, NEVER, status, "", 0, None)
        if status not in SANE or "Traceback" in said or "bug of splatpipe" in said:
            raise Wrong(f"exit status {status}")
        if out.exists():
            check(out)
        before = trained(out) if out.exists() else {}
        rerun = call_splatpipe(scene, out, real, folder / "rerun.log")
        if rerun != 0:
            raise Wrong(f"the next run ended with {rerun}: {(folder / 'rerun.log').read_text()[-600:]}")
        check(out)
        check_finished(out)
        after = trained(out)
        if lost := {patch: (before[patch], after.get(patch)) for patch in before if after.get(patch) != before[patch]}:
            raise Wrong(f"trained patches were trained again: {lost}")
    except (Wrong, Exception) as problem:
        wrong = f"{type(problem).__name__}: {problem}"
    return Ending(fault, where, status, _sentence(said), rerun, wrong)


def _sentence(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    own = [line for line in lines if line.startswith("splatpipe:") or ": failed:" in line]
    return (own or lines or [""])[-1][:300]


def report(endings: list[Ending], file: Path | None) -> None:
    table: dict[str, Counter[str]] = defaultdict(Counter)
    for ending in endings:
        row = table[f"{ending.fault.call} | {ending.fault.error}"]
        if ending.where == NEVER:
            row["never reached"] += 1
            continue
        row["tried"] += 1
        row["went on" if ending.status == 0 else "stopped with a sentence"] += not ending.wrong
        row["wrong"] += bool(ending.wrong)
    columns = ("tried", "went on", "stopped with a sentence", "wrong", "never reached")
    print(f"| call | error | {' | '.join(columns)} |\n|---|---|{'--:|' * len(columns)}")
    for name in sorted(table):
        print(f"| {name} | {' | '.join(str(table[name][column]) for column in columns)} |")
    if file:
        rows = [{**vars(one), "fault": vars(one.fault)} for one in endings]
        file.write_text(json.dumps({"table": table, "cases": rows}, indent=1))


def build(folder: Path) -> Path:
    """The library and its control file, ready to be preloaded."""
    library = folder / "failing_disk.so"
    source = ROOT / "tests" / "doubles" / "failing_disk.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    (folder / "control").write_bytes(bytes(ctypes.sizeof(Control)))
    return library


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--errors", default="ENOSPC,EIO,EINTR,FULL")
    parser.add_argument("--calls", default=",".join(CALLS))
    parser.add_argument("--files", default="", help="only files whose name below the run folder matches this")
    parser.add_argument("--real", action="store_true", help="the CPU trainer instead of the double")
    parser.add_argument("--every", action="store_true", help="not only the first and last call on a kind of file")
    parser.add_argument("--limit", type=int, default=10**9, help="cases at most, evenly chosen")
    parser.add_argument("--seed", type=int, help="choose them at random")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if "FAILING_DISK" not in os.environ:
            library = build(Path(name))
            environment = {**os.environ, "LD_PRELOAD": str(library), "FAILING_DISK": str(library.with_name("control"))}
            return subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode
        return run(given, Path(name).resolve())


def run(given: argparse.Namespace, folder: Path) -> int:
    from scenes import synthetic_scene, write_scene

    disk, scene = Disk(Path(os.environ["FAILING_DISK"])), folder / "scene"
    write_scene(scene, synthetic_scene(n_cameras=9, n_points=80))
    warm_up(scene, folder / "warm")
    calls = record(disk, scene, folder, given.real)
    print(f"an undisturbed run makes {len(calls)} calls: {dict(Counter(call for call, _, _ in calls))}", flush=True)
    wanted = [one for one in calls if one[0] in given.calls.split(",") and re.search(given.files, one[2])]
    faults = choose(wanted, given.errors.split(","), given.every)
    if given.seed is None:
        faults = faults[:: max(1, -(-len(faults) // given.limit))]
    else:
        faults = random.Random(given.seed).sample(faults, min(len(faults), given.limit))
    endings: list[Ending] = []
    for fault in faults:
        endings.append(ending := reached_case(disk, scene, folder, fault, given.real))
        if file := given.json:  # as far as it is: such a run takes long
            file.write_text(json.dumps([{**vars(one), "fault": vars(one.fault)} for one in endings], indent=1))
        if ending.wrong:
            print(f"WRONG {fault}: at {ending.where}: {ending.wrong}\n    {ending.said}", flush=True)
    report(endings, given.json)
    return 1 if any(ending.wrong for ending in endings) else 0


if __name__ == "__main__":
    sys.exit(main())
