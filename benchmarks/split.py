"""Time and memory of reading, planning and writing all patches of synthetic cities, each in a process of its own.

Seconds are of the wall clock; `CPU s` are of all threads, and do not suffer from what else the machine does.

python benchmarks/split.py --sizes 1k,5k,10k --json split.json
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIZES = {  # cameras, points, observations, tiles
    "1k": (1_000, 200_000, 1_200_000, 1),
    "5k": (5_000, 2_000_000, 12_000_000, 1),
    "10k": (10_000, 5_000_000, 25_000_000, 10),
}
COLUMNS = ("size", "cameras", "points", "observations", "patches", "bound")
COLUMNS += ("read", "plan", "write", "all", "CPU s", "GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1k,5k,10k")
    parser.add_argument("--models", type=Path, help="folder where models are kept between runs; default: a new one")
    parser.add_argument("--max-cameras", type=int, default=300)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.max_cameras)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        rows = [_row(size, args.models or Path(temporary), args.max_cameras) for size in args.sizes.split(",")]
    print(" ".join(f"{name:>12}" for name in COLUMNS))
    for row in rows:
        print(" ".join(f"{row[name]:>12,}" if isinstance(row[name], int) else f"{row[name]!s:>12}" for name in COLUMNS))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


def _row(size: str, models: Path, max_cameras: int) -> dict[str, Any]:
    folder = models / size
    if not (folder / "images").is_dir():
        options = ("--cameras", "--points", "--observations", "--tiles")
        numbers = [text for pair in zip(options, map(str, SIZES[size]), strict=True) for text in pair]
        city = Path(__file__).with_name("synthetic_city.py")
        subprocess.run([sys.executable, str(city), str(folder), *numbers], check=True)
    command = [sys.executable, __file__, "--one", str(folder), "--max-cameras", str(max_cameras)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {"size": size, **json.loads(done.stdout.splitlines()[-1])}


def measure(folder: Path, max_cameras: int) -> dict[str, Any]:
    """Seconds of each stage, and the peak memory of this process."""
    started = time.monotonic()
    from splatpipe.config import config_from_dict
    from splatpipe.layout import RunLayout
    from splatpipe.planning import make_plan, write_datasets
    from splatpipe.scene.colmap import read_scene

    config = config_from_dict({"patching": {"max_cameras": max_cameras}}, "benchmark")
    scene = read_scene(folder).scene
    read = time.monotonic()
    plan = make_plan(scene, config)
    planned = time.monotonic()
    out = folder / f"run-{os.getpid()}"
    try:
        write_datasets(plan, RunLayout(out))
        written = time.monotonic()
    finally:
        shutil.rmtree(out, ignore_errors=True)
    assigned = scene.n_cameras - len(plan.split.holdout)
    return {
        "cameras": scene.n_cameras,
        "points": scene.n_points,
        "observations": len(scene.track_cameras),
        "patches": len(plan.patches),
        "bound": -(-assigned // max_cameras),
        "read": round(read - started, 1),
        "plan": round(planned - read, 1),
        "write": round(written - planned, 1),
        "all": round(written - started, 1),
        "CPU s": round(time.process_time(), 1),
        "GiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


if __name__ == "__main__":
    main()
