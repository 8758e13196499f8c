"""Steps per second, peak memory and PSNR of a training, by number of Gaussians: ours, with gsplat's example settings.

    python benchmarks/gpu_train.py [--scene DIR] [--caps N ...] [--steps N] [--width PX] [--device cuda] [--json FILE]

Every row is a whole run of `splatpipe run` on one patch: the settings are those of gsplat's `simple_trainer.py mcmc`
(our defaults: MCMC, SH 3, L1 and SSIM, the same learning rates) with the schedule shortened to `--steps`, and
growth up to `--caps`. The published figures of gsplat's own trainer on Mip-NeRF360 (A100, 30,000 steps) are in
docs/gpu.md for comparison; on other scenes run gsplat's `examples/simple_trainer.py mcmc --strategy.cap-max N`.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from splatpipe import pipeline
from splatpipe.machine import nvidia_gpus


def measure(scene: Path, folder: Path, cap: int, given: argparse.Namespace) -> dict[str, Any]:
    """One run; speed is that of its last reports, when all Gaussians are there."""
    settings = [
        *(f"training.iterations={given.steps}", f"training.refine_stop={given.steps * 5 // 6}"),
        *(f"training.max_width={given.width}", f"training.max_cap={cap}", f"training.device={given.device}"),
        *("training.scale_schedule=false", "patching.max_cameras=100000", "retry.history=false"),
    ]
    options = pipeline.RunOptions.resolve(scene, folder, None, settings, None, None)
    began = time.monotonic()
    exit_code = pipeline.run(options, stop=threading.Event())
    seconds = time.monotonic() - began
    status = pipeline.status(folder)
    attempt = status["patches"][0]["attempts"][-1]
    health = attempt["health"]
    return {
        "cap": cap,
        "exit_code": exit_code,
        "gaussians": attempt["gaussians"],
        "steps_per_s": health.get("steps_per_s"),
        "minutes": round(seconds / 60, 2),
        "peak_device_gb": round(max(health.get("peak_vram_bytes") or 0, attempt["peak_vram"]) / 1e9, 2),
        "peak_host_gb": round(attempt["peak_rss"] / 1e9, 2),
        "psnr": status["merged"]["psnr"],
        "ssim": status["merged"]["ssim"],
    }


def machine() -> dict[str, str]:
    gpus, why = nvidia_gpus()
    versions = {name: metadata.version(name) for name in ("torch", "gsplat", "splatpipe")}
    cards = "; ".join(f"{gpu.name}, driver {gpu.driver}" for gpu in gpus) or why
    return {
        "date": time.strftime("%Y-%m-%d"),
        "gpu": cards,
        "python": platform.python_version(),
        "cuda": str(torch.version.cuda),
        **versions,
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| cap | Gaussians | steps/s | minutes | GPU GB | host GB | PSNR | SSIM |", "|---" * 8 + "|"]
    names = ("cap", "gaussians", "steps_per_s", "minutes", "peak_device_gb", "peak_host_gb", "psnr", "ssim")
    return "\n".join(lines + ["| " + " | ".join(str(row[name]) for name in names) + " |" for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--scene", type=Path, default=Path(__file__).parents[1] / "examples" / "brighton_beach")
    parser.add_argument("--caps", type=int, nargs="+", default=[100_000, 1_000_000, 3_000_000])
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--width", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for cap in given.caps:
            rows.append(measure(given.scene, Path(name) / str(cap), cap, given))
            print(json.dumps(rows[-1]), flush=True)
    print(json.dumps(machine(), indent=1))
    print(table(rows))
    if given.json:
        given.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
