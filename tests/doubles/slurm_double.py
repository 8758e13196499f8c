#!/usr/bin/env python3
"""A double of Slurm for one machine: sbatch, srun, squeue, scancel and scontrol, by the name it is called by.

Jobs are processes of this machine. It is strict about what it is asked: directives and options that it does not know,
or with values that sbatch would refuse, are errors. Its queue is the folder $SLURM_DOUBLE, a file for each task.
`install(folder)` puts the commands there; they are then to be put on PATH.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol")
DIRECTIVES = {  # what submitit writes for us, and what sbatch takes there
    "array": r"0-\d+%\d+",
    "cpus-per-task": r"[1-9]\d*",
    "error": r"/.+",
    "gres": r"\w+(:\w+)?:[1-9]\d*",
    "job-name": r"[\w-]+",
    "mem": r"[1-9]\d*(K|M|G|T)B?",
    "nodes": r"[1-9]\d*",
    "open-mode": r"append",
    "output": r"/.+",
    "partition": r"[\w,-]+",
    "account": r"[\w-]+",
    "requeue": None,
    "signal": r"(B:)?(USR2|TERM)@[1-9]\d*",
    "time": r"[1-9]\d*",
    "wckey": r"\w+",
}


def install(folder: Path) -> Path:
    """The commands, in a folder for PATH; the queue lies beside it in `folder`."""
    commands = folder / "bin"
    commands.mkdir(parents=True)
    for name in COMMANDS:
        script = commands / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).resolve()} {name} "$@"\n')
        script.chmod(0o755)
    return commands


def queue() -> Path:
    return Path(os.environ["SLURM_DOUBLE"])


def refuse(sentence: str) -> NoReturn:
    print(f"slurm double: error: {sentence}", file=sys.stderr)
    sys.exit(1)


def directives(script: Path) -> dict[str, str]:
    """The script's #SBATCH options, all of them known and with values that sbatch takes."""
    lines = script.read_text().splitlines()
    if not lines or not lines[0].startswith("#!"):
        refuse("this does not look like a batch script: the first line must start with #!")
    found = {}
    for line in lines:
        if line.startswith("#SBATCH"):
            match = re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(.*))?", line)
            if match is None or match[1] not in DIRECTIVES:
                refuse(f"unrecognized option {line!r}")
            wanted, value = DIRECTIVES[match[1]], (match[2] or "").strip("'\"")
            if (wanted is None) != (match[2] is None) or (wanted and not re.fullmatch(wanted, value)):
                refuse(f"invalid value in {line!r}")
            found[match[1]] = value
    for name in ("time", "output"):
        if name not in found:
            refuse(f"--{name} is missing")
    return found


def sbatch(arguments: list[str]) -> None:
    if len(arguments) != 1:
        refuse(f"one batch script, not {arguments}")
    script = Path(arguments[0])
    options = directives(script)
    job = next_number()
    tasks = int(re.findall(r"\d+", options["array"])[1]) + 1 if "array" in options else 0
    for name in [f"{job}_{task}" for task in range(tasks)] or [str(job)]:
        write(queue() / name, {"script": str(script), "state": "PENDING", "again": False, "pid": 0})
        subprocess.Popen(
            [sys.executable, __file__, "job", name],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    print(f"Submitted batch job {job}")


def next_number() -> int:
    """Of a job; no number is given twice."""
    last = queue() / ".last"
    number = int(last.read_text()) + 1 if last.exists() else 101
    last.write_text(str(number))
    return number


def job(name: str) -> None:
    """Run a job or one array task to its end; again under the same number when it was put back into the queue."""
    place, (number, _, task) = queue() / name, name.partition("_")
    array = {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": task} if task else {}
    own = {"SLURM_JOB_ID": number, "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_JOB_NUM_NODES": "1"}
    environment = {**os.environ, **own, **array}
    while True:
        facts = json.loads(place.read_text())
        child = subprocess.Popen(["bash", facts["script"]], env=environment, start_new_session=True)
        write(place, facts | {"state": "RUNNING", "again": False, "pid": child.pid})
        child.wait()
        if not json.loads(place.read_text())["again"]:
            place.unlink()
            return


def srun(arguments: list[str]) -> None:
    """The command after srun's own options, its words in the files that these name."""
    if arguments[:2] != ["--unbuffered", "--output"] or arguments[3] != "--error":
        refuse(f"srun does not know {arguments}")
    output, error, command = arguments[2], arguments[4], arguments[5:]
    for which, name in ((1, output), (2, error)):
        job, task = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_ARRAY_TASK_ID", "")
        path = name.replace("%A", job).replace("%a", task).replace("%j", job).replace("%t", "0")
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), which)
    os.execvp(command[0], command)


def squeue(arguments: list[str]) -> None:
    if arguments != ["--noheader", "--array", "--me", "--format=%i %T"]:
        refuse(f"squeue does not know {arguments}")
    for path in sorted(queue().glob("[0-9]*")):
        with contextlib.suppress(OSError, ValueError):
            print(path.name, json.loads(path.read_text())["state"])


def scancel(arguments: list[str]) -> None:
    """End jobs, or send them a signal as the operator of a cluster does: `--signal=USR2` is a preemption."""
    number = signal.SIGTERM
    if arguments and arguments[0].startswith("--signal="):
        number = signal.Signals[f"SIG{arguments.pop(0).partition('=')[2]}"]
    for name in arguments:
        if not (queue() / name).exists():
            continue
        while not (pid := json.loads((queue() / name).read_text())["pid"]):
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, number)
            if number == signal.SIGTERM:
                time.sleep(0.5)
                os.killpg(pid, signal.SIGKILL)


def scontrol(arguments: list[str]) -> None:
    if arguments[:1] != ["requeue"] or len(arguments) != 2:
        refuse(f"scontrol does not know {arguments}")
    place = queue() / arguments[1]
    if "requeue" not in directives(Path(json.loads(place.read_text())["script"])):
        refuse(f"job {place.name} may not be requeued")
    write(place, json.loads(place.read_text()) | {"again": True, "state": "PENDING"})


def write(path: Path, facts: dict[str, object]) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(facts))
    draft.replace(path)


if __name__ == "__main__":
    name, *rest = sys.argv[1:]
    if name == "job":
        job(rest[0])
    else:
        {one.__name__: one for one in (sbatch, srun, squeue, scancel, scontrol)}[name](rest)
