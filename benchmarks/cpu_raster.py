"""Time one CPU training step, stage by stage, for several numbers of Gaussians and image sizes.

    python benchmarks/cpu_raster.py [--scene DIR] [--threads N] [--json FILE] [--seconds S]

Gaussians come from the scene's points. The smallest count is the points themselves as a training starts
from them (sigma = 0.3 of the neighbour distance, opacity 0.5). Larger counts stand for trained models: points
are drawn with replacement and jittered within their neighbourhood; sizes, axis ratios and opacities follow
the distributions of a model of brighton_beach trained with MCMC for 1,500 steps to 33,000 Gaussians (longest
sigma 2.4 times the spacing, log-normal with 0.8; middle axis 0.6 and shortest 0.25 of it in the median;
opacity 0.085 in the median, a twentieth above 0.7), and shrink with the square root of the count, so that the
image is covered as often as before. That model had 49,000 tile intersections and 0.80 alpha per image on
average; the column "alpha" shows this one's. "tiles" are intersections per Gaussian seen.

"total" is wall time, "cpu" the processor time of all threads: on a machine that others use too, cpu divided by
the threads is what a quiet one would take.

torch runs on one thread: its thread pool spins between its few small operations, and takes from the kernels
far more than it gives.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree

from splatpipe.splatting.adam import Adam
from splatpipe.splatting.loss import photometric_loss
from splatpipe.splatting.noise import add_noise_
from splatpipe.splatting.raster import rasterization, set_threads, threads, warm_up
from splatpipe.splatting.raster.view import View

COUNTS = (6_000, 33_000, 200_000)
SIZES = ((400, 225), (800, 450))
RATES = {"means": 1.6e-4, "quats": 1e-3, "scales": 5e-3, "opacities": 5e-2, "sh0": 2.5e-3, "shN": 1.25e-4}


@dataclass(frozen=True)
class Scene:
    """Points (P, 3) and colours in a frame of unit camera distance, and the cameras."""

    points: np.ndarray
    colors: np.ndarray
    viewmats: torch.Tensor  # (C, 4, 4)
    Ks: torch.Tensor  # (C, 3, 3), for an image one pixel wide


@dataclass
class Row:
    """One line of the table; times in ms."""

    gaussians: int
    width: int
    height: int
    alpha: float
    tiles: float
    projection: float
    forward: float
    loss: float
    backward: float
    optimiser: float
    noise: float
    other: float
    total: float
    cpu: float
    steps_per_s: float


def load_scene(folder: Path) -> Scene:
    """The COLMAP model at folder/sparse/0, its cameras taken as pinholes."""
    import pycolmap

    model = pycolmap.Reconstruction(str(folder / "sparse" / "0"))
    points = np.array([p.xyz for p in model.points3D.values()])
    colors = np.array([p.color for p in model.points3D.values()]) / 255
    viewmats, Ks = [], []
    for image in sorted(model.images.values(), key=lambda image: image.name):
        camera = model.cameras[image.camera_id]
        viewmats.append(np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]]))
        Ks.append(np.diag([1, 1, camera.width]) @ camera.calibration_matrix() / camera.width)
    centers = np.array([-v[:3, :3].T @ v[:3, 3] for v in viewmats])
    middle, scale = np.median(points, 0), np.median(np.linalg.norm(centers - np.median(points, 0), axis=1))
    for v in viewmats:
        v[:3, 3] = (v[:3, 3] + v[:3, :3] @ middle) / scale
    as_tensor = lambda rows: torch.tensor(np.array(rows), dtype=torch.float32)  # noqa: E731
    return Scene((points - middle) / scale, colors, as_tensor(viewmats), as_tensor(Ks))


def gaussians(scene: Scene, count: int) -> dict[str, torch.Tensor]:
    """Raw parameters of `count` Gaussians, as the module's docstring says."""
    random = np.random.default_rng(0)
    distances, _ = cKDTree(scene.points).query(scene.points, 4)
    spacing = np.clip(distances[:, 1:].mean(1), 1e-4, np.quantile(distances, 0.98))
    trained = count > 2 * len(scene.points)
    chosen = random.integers(0, len(scene.points), count) if trained else np.arange(min(count, len(scene.points)))
    n = len(chosen)
    size = spacing[chosen, None]
    means = scene.points[chosen] + trained * size * random.normal(0, 0.7, (n, 3))
    sigma = np.repeat(0.3 * size, 3, 1)
    opacity = np.full(n, 0.5)
    if trained:
        sigma = sigma / 0.3 * 2.4 * (len(scene.points) / n) ** 0.5 * random.lognormal(0, 0.8, (n, 1))
        sigma[:, 1] *= random.uniform(0.2, 1, n)
        sigma[:, 2] = sigma[:, 1] * random.uniform(0.15, 0.75, n)
        opacity = np.clip(random.beta(0.5, 2.5, n), 0.006, 0.99)
    values = {
        "means": means,
        "quats": random.normal(size=(n, 4)),
        "scales": np.log(sigma),
        "opacities": np.log(opacity / (1 - opacity)),
        "sh0": ((scene.colors[chosen] - 0.5) / 0.2821)[:, None],
        "shN": random.normal(0, 0.03, (n, 15, 3)),
    }
    return {name: torch.tensor(v, dtype=torch.float32).contiguous().requires_grad_() for name, v in values.items()}


class Clock:
    """Adds up the wall time of stages by name."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.spent[name] = self.spent.get(name, 0.0) + time.perf_counter() - start

        return timed


def measure(scene: Scene, count: int, width: int, height: int, degree: int, seconds: float) -> Row:
    """Whole training steps over all cameras for about `seconds`, after a few to warm up."""
    params = gaussians(scene, count)
    n = len(params["means"])
    optimizer = Adam(params, dict.fromkeys(RATES, 1e-12))  # does all the work and moves nothing
    target = torch.rand(height, width, 3)
    clock = Clock()
    loss_of = clock.wrap("loss", photometric_loss)
    noise = clock.wrap("noise", add_noise_)
    step_of = clock.wrap("optimiser", optimizer.step)
    facts = {"alpha": 0.0, "tiles": 0.0}

    def step(k: int) -> None:
        camera = k % len(scene.viewmats)
        K = scene.Ks[camera] * torch.tensor([[width], [width], [1.0]])
        optimizer.zero_grad()
        scales, opacities = torch.exp(params["scales"]), torch.sigmoid(params["opacities"])
        image, alpha, meta = rasterization(
            params["means"], params["quats"], scales, opacities, (params["sh0"], params["shN"]),
            scene.viewmats[camera][None], K[None].contiguous(), width, height, sh_degree=degree,
        )  # fmt: skip
        loss = loss_of(image[0], target, 0.2) + 0.01 * opacities.mean() + 0.01 * scales.mean()
        loss.backward()
        with torch.no_grad():
            step_of(active={"shN": (degree + 1) ** 2 - 1})
            noise(params["means"], params["quats"], params["scales"], params["opacities"], 1e-9, 0, k)
        facts["alpha"] = float(alpha.detach().mean())
        facts["tiles"] = meta["n_isects"] / max(1, int((meta["radii"] > 0).all(-1).sum()))

    originals = {name: getattr(View, name) for name in ("_project", "render", "backward")}
    try:
        View._project = clock.wrap("projection", originals["_project"])  # type: ignore[method-assign]
        View.render = clock.wrap("render", originals["render"])  # type: ignore[method-assign]
        View.backward = clock.wrap("backward", originals["backward"])  # type: ignore[method-assign]
        for k in range(5):
            step(k)
        clock.spent.clear()
        start, begun, steps = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < seconds or steps < len(scene.viewmats):
            step(steps)
            steps += 1
        total = (time.perf_counter() - start) / steps
        cpu = 1e3 * (time.process_time() - begun) / steps
    finally:
        for name, function in originals.items():
            setattr(View, name, function)
    ms = {name: 1e3 * value / steps for name, value in clock.spent.items()}
    ms["forward"] = ms.pop("render") - ms["projection"]
    other = 1e3 * total - sum(ms.values())
    return Row(n, width, height, **facts, **ms, other=other, total=1e3 * total, cpu=cpu, steps_per_s=1 / total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--scene", type=Path, default=root / "examples" / "brighton_beach")
    parser.add_argument("--threads", type=int, default=0, help="0: all usable cores")
    parser.add_argument("--sh-degree", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="time per line")
    parser.add_argument("--json", type=Path, help="also write the table here")
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    torch.set_num_threads(1)
    warm_up(print)
    scene = load_scene(arguments.scene)
    names = list(Row.__annotations__)
    print(f"{threads()} threads, SH degree {arguments.sh_degree}, times in ms")
    print("".join(f"{name:>12}" for name in names))
    rows = []
    for width, height in SIZES:
        for count in COUNTS:
            row = measure(scene, count, width, height, arguments.sh_degree, arguments.seconds)
            rows.append(asdict(row))
            cells = [f"{v:12d}" if isinstance(v, int) else f"{v:12.1f}" for v in rows[-1].values()]
            print("".join(cells), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"threads": threads(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
