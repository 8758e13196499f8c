"""Memory and time of the last training of a merged splat that is larger than what may be held at once.

python benchmarks/finishing.py --patches 10,40 --gaussians 250000 --at-once 500000 --folder SCRATCH

Patches lie in a row, as in merge.py; what is generated is their merged splat, one Gaussian in a hundred wider than the
buffers. A camera above each border sees the last tenth of both patches; photographs are noise, because only memory and
time are measured. Each size is trained in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from merge import areas
from PIL import Image

from splatpipe.merge.finish import finish
from splatpipe.patches.frame import Frame
from splatpipe.splatting.ply import CHUNK_ROWS, columns, splat_writer
from splatpipe.splatting.settings import TrainSettings
from splatpipe.splatting.views import Views

WIDE = 0.01  # of all Gaussians
WIDTH, HEIGHT = 64, 48


def generate(path: Path, patches: int, count: int) -> None:
    """`count` Gaussians for each patch of the row, on the ground, looking trained; one pool of rows is reused."""
    rng = np.random.default_rng(0)
    pool = rng.normal(0, 0.1, (CHUNK_ROWS, len(columns(3)))).astype(np.float32)
    pool[:, -7:-4] = np.log(1 / np.sqrt(count)) + rng.normal(0, 0.5, (CHUNK_ROWS, 3))
    pool[rng.random(CHUNK_ROWS) < WIDE, -7:-4] = np.log(0.1)
    with splat_writer(path, 3) as writer:
        for start in range(0, patches * count, CHUNK_ROWS):
            rows = pool[: min(CHUNK_ROWS, patches * count - start)]
            rows[:, 0] = rng.uniform(start / count, (start + len(rows)) / count, len(rows))
            rows[:, 1], rows[:, 2] = rng.uniform(0, 1, len(rows)), rng.normal(0, 0.002, len(rows))
            writer.append(rows)


def cameras(folder: Path, patches: int) -> Views:
    """One above each border, looking down on 0.2 of the row."""
    names = tuple(f"{border:03d}.png" for border in range(1, patches))
    viewmats = np.tile(np.diag([1.0, -1.0, -1.0, 1.0]), (len(names), 1, 1))
    viewmats[:, :3, 3] = [[-border, 0.5, 1.0] for border in range(1, patches)]
    rng = np.random.default_rng(1)
    for name in names:
        Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)).save(folder / name)
    K = np.array([[5 * WIDTH, 0, WIDTH / 2], [0, 5 * WIDTH, HEIGHT / 2], [0, 0, 1.0]])
    sizes = np.tile(np.array([[WIDTH, HEIGHT]], np.int32), (len(names), 1))
    return Views(names, tuple(folder / name for name in names), viewmats, np.tile(K, (len(names), 1, 1)), sizes)


class Disk(threading.Thread):
    """The most bytes that were ever in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.most, self.over = folder, 0, threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.5):
            sizes = [path.stat().st_size for path in self.folder.rglob("*.bin") if path.exists()]
            self.most = max(self.most, sum(sizes))


def measure(folder: Path, patches: int, at_once: int, visits: int) -> dict[str, object]:
    """Train in this process; what came of it, and the peak of resident memory that is its own (not the disk's)."""
    territories, views = areas(patches), cameras(folder, patches)
    points = np.random.default_rng(2).uniform([0, 0, -0.01], [patches, 1, 0.01], (1000, 3))
    disk = Disk(folder / "work")
    disk.start()
    begin = time.perf_counter()
    done = finish(
        folder / "merged.ply",
        views,
        points,
        territories,
        Frame(np.eye(3), "axes", ""),
        TrainSettings(),
        visits=visits,
        work=folder / "work",
        threads=2,
        most=at_once,
    )
    disk.over.set()
    seconds = time.perf_counter() - begin
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024**2
    return asdict(done) | {"wall_seconds": seconds, "peak_gib": peak, "work_gb": disk.most / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", default="10,40", help="one or more numbers of patches, with commas")
    parser.add_argument("--gaussians", type=int, default=250_000, help="of each patch")
    parser.add_argument("--at-once", type=int, default=500_000, help="Gaussians that may be held")
    parser.add_argument("--visits", type=int, default=2, help="looks at each view")
    parser.add_argument("--folder", type=Path, required=True, help="scratch; needs six times the splat")
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--train-only", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train_only:
        print(json.dumps(measure(args.folder, int(args.patches), args.at_once, args.visits)))
        return
    rows = []
    print(f"{'Gaussians':>12} {'at once':>10} {'parts':>6} {'steps':>6} {'seconds':>8} {'peak GiB':>9} {'work GB':>8}")
    for patches in (int(number) for number in args.patches.split(",")):
        folder = args.folder / f"{patches}"
        folder.mkdir(parents=True)
        generate(folder / "merged.ply", patches, args.gaussians)
        command = [sys.executable, __file__, "--train-only", "--patches", str(patches), "--folder", str(folder)]
        command += ["--at-once", str(args.at_once), "--visits", str(args.visits)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        shutil.rmtree(folder)
        rows.append(found | {"gaussians": patches * args.gaussians, "at_once": args.at_once})
        print(
            f"{patches * args.gaussians:>12,} {args.at_once:>10,} {found['neighbourhoods']:>6} {found['steps']:>6} "
            f"{found['wall_seconds']:>8.1f} {found['peak_gib']:>9.2f} {found['work_gb']:>8.2f}  {found['sentence']}",
            flush=True,
        )
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
