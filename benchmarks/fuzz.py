"""Damage small whole files in every way we can think of, and see that every reader says so in a sentence.

    python benchmarks/fuzz.py [--cases 10000] [--seed 0] [--jobs 1] [--seconds S] [--only READER]
                              [--keep FOLDER] [--json FILE]

Readers are those of tests/fuzzing/readers.py. A case is good when the reader returns or raises a SplatpipeError.
It is bad when it raises anything else, hangs for longer than --timeout, needs more than 2 GiB, or kills its process.
The files of bad cases are kept below --keep. Ends with status 1 when there was one.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from fuzzing.readers import READERS  # noqa: E402
from fuzzing.runner import Case, Tally, make_seeds, run_cases, shares  # noqa: E402
from fuzzing.worker import make_case  # noqa: E402

KINDS = ("clean", "sentence", "fault", "hang", "crash")


def keep(case: Case, seeds: Path, folder: Path, seed: int) -> None:
    """The damaged files of a bad case and what they did, for the corpus."""
    place = folder / f"{case.reader.replace(' ', '_')}_{case.index}"
    damaged = make_case(seeds, place, case.reader, seed, case.index)
    (place / "WHAT.txt").write_text(f"{case.kind}: {[str(path.relative_to(place)) for path in damaged]}\n{case.error}")


def report(tally: Tally, seconds: float, path: Path | None) -> None:
    print(f"| {'reader':13} | {' | '.join(f'{kind:>8}' for kind in KINDS)} |")
    print(f"|---|{'--:|' * len(KINDS)}")
    for name, counts in sorted(tally.counts.items()):
        print(f"| {name:13} | {' | '.join(f'{counts[kind]:8}' for kind in KINDS)} |")
    total = sum(sum(counts.values()) for counts in tally.counts.values())
    print(f"{total} cases in {seconds:.0f} s, {len(tally.bad)} bad; largest resident memory {tally.peak_mb} MB")
    if path:
        facts = {"cases": total, "bad": len(tally.bad), "peak_mb": tally.peak_mb, "seconds": round(seconds)}
        path.write_text(json.dumps(facts | {"counts": tally.counts}, indent=1))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=20.0, help="seconds that one case may take")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no further case after this time")
    parser.add_argument("--only", choices=list(READERS), action="append")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    readers, tally, began = given.only or list(READERS), Tally(), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        seeds = Path(name) / "seeds"
        make_seeds(seeds, readers)
        cases = shares(given.cases, readers)
        random.Random(given.seed).shuffle(cases)  # so that every reader has its share when time runs out
        how = {"seed": given.seed, "timeout_s": given.timeout, "jobs": given.jobs}
        for case in run_cases(cases, seeds, Path(name) / "work", **how):
            tally.add(case)
            if time.monotonic() - began > given.seconds:
                break
            if not case.good:
                last = (case.error or "").strip().splitlines()[-1][:300]
                print(f"{case.reader} {case.index}: {case.kind}: {last}", flush=True)
                if given.keep:
                    keep(case, seeds, given.keep, given.seed)
    report(tally, time.monotonic() - began, given.json)
    return 1 if tally.bad else 0


if __name__ == "__main__":
    sys.exit(main())
