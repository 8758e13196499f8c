"""Runs fuzz cases one after another, each under a memory limit and an alarm that kills: a child of `runner.py`.

    worker.py SEEDS WORK SEED TIMEOUT_S, with lines `INDEX READER` on its standard input

For every line it prints `begin INDEX`, then `end INDEX` and a JSON object {kind, error, peak_mb}. If it dies in
between, the case that was begun is what killed it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fuzzing.mutate import mutated
from fuzzing.readers import READERS
from splatpipe.errors import SplatpipeError

LIMIT = 2 << 30


def make_case(seeds: Path, folder: Path, name: str, seed: int, index: int) -> list[Path]:
    """Copy a reader's whole files to `folder` and damage one or two of them; the damaged ones."""
    reader = READERS[name]
    rng = random.Random(f"{seed} {name} {index}")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(seeds / name, folder, symlinks=True)
    found = sorted(folder.glob(reader.damage))
    chosen = rng.sample(found, min(len(found), rng.choice((1, 1, 1, 2))))
    for path in chosen:
        path.write_bytes(mutated(path.read_bytes(), rng, reader.text))
    return chosen


def run_case(folder: Path, name: str) -> dict[str, Any]:
    """What became of the damaged files in `folder`: `clean`, `sentence`, or `fault` with a traceback."""
    silence = io.StringIO()
    try:
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            READERS[name].read(folder)
    except SplatpipeError as error:
        return {"kind": "sentence", "error": f"{type(error).__name__}: {error}"}
    except BaseException as error:
        return {"kind": "fault", "error": traceback.format_exc(), "exception": type(error).__name__}
    return {"kind": "clean", "error": None}


def limit_memory() -> None:
    """At most 2 GiB of address space beyond what the libraries have taken."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT, used + LIMIT))


def main(seeds: Path, work: Path, seed: int, timeout_s: float) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # libraries print there
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    os.environ["XDG_CACHE_HOME"] = str(work)
    limit_memory()
    for line in sys.stdin:
        index, _, name = line.strip().partition(" ")
        print(f"begin {index}", file=answers)
        folder = work / "case"
        make_case(seeds, folder, name, seed, int(index))
        signal.setitimer(signal.ITIMER_REAL, timeout_s)
        result = run_case(folder, name)
        signal.setitimer(signal.ITIMER_REAL, 0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"end {index} {json.dumps(result | {'peak_mb': round(peak)})}", file=answers)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
