"""Merging generated patches against copying the same bytes, and the memory it needs.

python benchmarks/merge.py --patches 10 --gaussians 1000000 --folder SCRATCH

Patches lie in a row and overlap by 15 % of their edge on each side, as the splitter's do; SH degree 3, 248 bytes for
each Gaussian. The copy reads every input file and writes a file as large as the merged one, fsync included. Before
each of the two the inputs are dropped from the page cache, so that both read from the disk.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splatpipe.merge.clean import Cleaning
from splatpipe.merge.join import Borders, MergePart, merge_splats
from splatpipe.merge.settings import MergeSettings
from splatpipe.patches.box import Box
from splatpipe.patches.frame import Frame
from splatpipe.splatting.ply import CHUNK_ROWS, columns, splat_writer

BUFFER = 0.15
BLOCK = 16 << 20


@dataclass(frozen=True)
class Area:
    """A patch of the row: owns index <= x < index + 1, the outermost ones to infinity."""

    id: str
    core: Box
    buffered: Box


def areas(count: int) -> list[Area]:
    edges = [-np.inf, *range(1, count), np.inf]
    far = np.full(2, np.inf)
    boxes = [Box(np.array([low, *-far]), np.array([high, *far])) for low, high in itertools.pairwise(edges)]
    return [Area(f"p{i:03d}", box, box.grown(BUFFER)) for i, box in enumerate(boxes)]


def generate(path: Path, index: int, count: int) -> None:
    """Gaussians over the buffered patch, with trained-looking sizes and opacities; one pool of rows is reused."""
    rng = np.random.default_rng(index)
    pool = rng.normal(0, 0.1, (CHUNK_ROWS, len(columns(3)))).astype(np.float32)
    spacing = 1 / np.sqrt(count)
    pool[:, -7:-4] = np.log(spacing) + rng.normal(0, 0.5, (CHUNK_ROWS, 3))
    pool[:, -8] = rng.normal(0, 2, CHUNK_ROWS)
    with splat_writer(path, 3) as writer:
        for start in range(0, count, CHUNK_ROWS):
            rows = pool[: min(CHUNK_ROWS, count - start)]
            rows[:, 0] = rng.uniform(index - BUFFER, index + 1 + BUFFER, len(rows))
            rows[:, 1] = rng.uniform(0, 1, len(rows))
            writer.append(rows)


def forget(paths: list[Path]) -> None:
    """Drop files from the page cache."""
    for path in paths:
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copy(paths: list[Path], out: Path, size: int) -> float:
    """Seconds to read all of `paths` and write their first `size` bytes to one file."""
    begin = time.perf_counter()
    with out.open("wb") as target:
        for path in paths:
            with path.open("rb", buffering=0) as source:
                while block := source.read(BLOCK):
                    target.write(block[: max(size - target.tell(), 0)])
        target.flush()
        os.fsync(target.fileno())
    return time.perf_counter() - begin


def merge(folder: Path, count: int) -> dict[str, float]:
    """Merge in this process; seconds and peak resident memory."""
    parts = [MergePart(area.id, folder / f"{area.id}.ply") for area in areas(count)]
    settings = MergeSettings()
    cleaning = Cleaning(settings, np.array([count / 2, 0.5, 0]), float(count))
    begin = time.perf_counter()
    frame = Frame(np.eye(3), "axes", "")
    report = merge_splats(parts, folder / "merged.ply", areas(count), frame, cleaning, borders=Borders.of(settings))
    seconds = time.perf_counter() - begin
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024**2
    holes = int(report.coverage.holes.sum())
    return {"seconds": seconds, "peak_gib": peak, "gaussians": report.gaussians, "holes": holes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=10)
    parser.add_argument("--gaussians", type=int, default=1_000_000, help="of each patch")
    parser.add_argument("--folder", type=Path, required=True, help="scratch; needs three times the inputs")
    parser.add_argument("--merge-only", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.merge_only:
        print(json.dumps(merge(args.folder, args.patches)))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    paths = [args.folder / f"{area.id}.ply" for area in areas(args.patches)]
    for index, path in enumerate(paths):
        generate(path, index, args.gaussians)
    forget(paths)
    # In a process of its own, so that the peak is that of the merge.
    command = [sys.executable, __file__, "--merge-only", "--patches", str(args.patches), "--folder", str(args.folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    merged = json.loads(done.stdout)
    size = (args.folder / "merged.ply").stat().st_size
    (args.folder / "merged.ply").unlink()
    forget(paths)
    copied = copy(paths, args.folder / "copy.bin", size)
    for path in [*paths, args.folder / "copy.bin"]:
        path.unlink()
    gigabytes = args.patches * args.gaussians * 4 * len(columns(3)) / 1e9
    print(f"{args.patches} x {args.gaussians:,} Gaussians, {gigabytes:.1f} GB in, {size / 1e9:.1f} GB out")
    print(f"merge {merged['seconds']:.1f} s, copy {copied:.1f} s, ratio {merged['seconds'] / copied:.2f}")
    print(f"peak memory {merged['peak_gib']:.2f} GiB, {merged['gaussians']:,} Gaussians, {merged['holes']} holes")


if __name__ == "__main__":
    main()
