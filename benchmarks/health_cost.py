"""What watching costs: seconds of the health observer over seconds of the training it watches.

    python benchmarks/health_cost.py [--gaussians N] [--width PX] [--steps N] [--every N]

A synthetic patch (random points over a plane, noise for photographs) trained on the CPU. The observer's own calls are
timed inside the run, so that the noise of a shared machine falls on both sides alike.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from splatpipe.health.settings import HealthSettings
from splatpipe.health.watch import HealthWatch
from splatpipe.splatting import raster
from splatpipe.splatting.loop import Seen, Training, TrainingData, TrainingJob
from splatpipe.splatting.settings import TrainSettings
from splatpipe.splatting.views import Views


class Timed(HealthWatch):
    """Adds up what its calls take."""

    seconds = 0.0

    def after_step(self, training: Training, seen: Seen) -> None:
        began = time.perf_counter()
        super().after_step(training, seen)
        self.seconds += time.perf_counter() - began


def patch(points: int, width: int, folder: Path) -> TrainingData:
    """Eight cameras above a plane of `points` points."""
    rng = np.random.default_rng(0)
    xyz = rng.uniform([-1, -1, 0], [1, 1, 0.1], (points, 3))
    height, viewmats = width * 2 // 3, np.tile(np.diag([1.0, -1.0, -1.0, 1.0]), (8, 1, 1))
    viewmats[:, :3, 3] = [[x, y, 2.0] for x in (-0.45, -0.15, 0.15, 0.45) for y in (-0.3, 0.3)]
    paths = tuple(folder / f"{i}.png" for i in range(8))
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
    Ks = np.tile(np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1.0]]), (8, 1, 1))
    sizes = np.tile(np.array([[width, height]], np.int32), (8, 1))
    views = Views(tuple(path.name for path in paths), paths, viewmats, Ks, sizes)
    return TrainingData(views, xyz, rng.integers(0, 256, (points, 3)).astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gaussians", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=600)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    raster.warm_up(lambda what: print(f"compiling {what}"))
    settings = TrainSettings(
        iterations=options.steps, scale_schedule=False, sh_degree_interval=1, max_cap=options.gaussians
    )
    with tempfile.TemporaryDirectory() as folder:
        data = patch(options.gaussians, options.width, Path(folder))
        job = TrainingJob(settings, 1.0, "cpu", Path(folder) / "checkpoints", 1 << 30)
        training = Training(data, job, lambda event, **values: None)
        watch = training.observer = Timed(HealthSettings(every=options.every), lambda event, **values: None)
        began = time.perf_counter()
        training.run(lambda: False)
        seconds = time.perf_counter() - began
    share = watch.seconds / (seconds - watch.seconds)
    print(f"{options.gaussians} Gaussians, {options.steps} steps in {seconds:.1f} s, {len(watch.samples)} samples")
    print(f"health: {watch.seconds * 1000:.0f} ms, {share:.2%} of the training")


if __name__ == "__main__":
    main()
