"""Health signals of one training, from its parameters, gradients, optimiser and rendered view.

Nothing here changes the training. What scales with the number of Gaussians is read once, on the training's device;
quantiles, gradients and updates come from at most `ROWS` Gaussians, evenly spread.
"""

from __future__ import annotations

import math
import time
from statistics import median

import psutil
import torch

from splatpipe.health.sample import Sample
from splatpipe.splatting.adam import Adam
from splatpipe.splatting.loop import Seen, Training
from splatpipe.splatting.metrics import psnr

ROWS = 1 << 14
UPDATE_ROWS = 1 << 12  # of these; the ratio of two norms needs fewer
GROUPS = ("means", "scales", "quats", "opacities", "sh0")
SIGMA_QUANTILES = (0.05, 0.5, 0.95, 0.99)
NO_GRADIENT = 1e-12  # norm of one Gaussian's gradient
_FLOAT32_STEPS = 1e-30  # keeps a ratio finite


class Signals:
    """Keeps what lies between two samples: losses, the Gaussians seen, the fixed view's PSNR, the clock."""

    def __init__(self) -> None:
        self._losses: list[float] = []
        self._blind = 0
        self._seen: torch.Tensor | None = None
        self._refinements = -1
        self._psnr: float | None = None
        self._measured = False  # the fixed view's PSNR, in this interval
        self._mark: tuple[int, float] | None = None

    def step(self, training: Training, seen: Seen | None) -> None:
        """Take in one step, blind ones too; costs one pass over a mask."""
        if self._mark is None:
            self._mark = training.step - 1, time.monotonic()
        if seen is None:
            self._blind += 1
            return
        self._losses.append(training.health.loss or math.nan)
        refinements = len(training.health.relocated_shares)
        if self._seen is None or refinements != self._refinements:
            self._seen, self._refinements = seen.visible.clone(), refinements
        else:
            self._seen |= seen.visible
        if not self._measured and seen.view.name == training.data.views.names[0]:
            self._measured = True
            with torch.no_grad():
                image, mask = seen.image.clamp(0, 1).cpu().numpy(), seen.view.mask
                self._psnr = _finite(
                    psnr(image, seen.view.image.cpu().numpy(), None if mask is None else mask.cpu().numpy())
                )

    @torch.no_grad()
    def sample(self, training: Training, seen: Seen) -> Sample:
        """Everything measured at this step; begins the next interval."""
        params, floor = training.params, training.settings.min_opacity
        opacities = torch.sigmoid(params["opacities"])
        rows = _rows(len(opacities), opacities.device)
        gradients, quiet = _gradients(training, seen.visible[rows], rows)
        assert self._seen is not None and self._mark is not None  # `step` was called for this step
        now, (step, began) = time.monotonic(), self._mark
        shares = training.health.relocated_shares
        result = Sample(
            step=training.step,
            loss=_finite(median(self._losses)),
            psnr=self._psnr,
            gaussians=len(opacities),
            alive_share=_share(opacities > floor),
            seen_share=_share(self._seen),
            relocated_share=shares[-1] if shares else None,
            opacity_mean=round(float(opacities.mean()), 5),
            floor_share=_share(opacities < 2 * floor),
            sigmas=_sigmas(params["scales"], rows, training.radius),
            farthest=_finite(float(training.distances().max()) / training.radius),
            flung_share=round(training.flung_share(), 4),
            gradients=gradients,
            quiet=quiet,
            updates=_updates(training, rows[:: max(len(rows) // UPDATE_ROWS, 1)]),
            intersections=seen.intersections,
            blind_share=round(self._blind / (self._blind + len(self._losses)), 4),
            steps_per_s=round((training.step - step) / max(now - began, 1e-9), 2),
            memory_bytes=_memory(training.device),
        )
        self._losses, self._blind, self._mark, self._measured = [], 0, (training.step, now), False
        return result


def _rows(count: int, device: torch.device) -> torch.Tensor:
    return torch.arange(0, count, -(-count // ROWS), device=device)


def _share(mask: torch.Tensor) -> float:
    return round(float(mask.float().mean()), 4)


def _sigmas(scales: torch.Tensor, rows: torch.Tensor, radius: float) -> tuple[float | None, ...]:
    """Quantiles and maximum of each Gaussian's largest sigma, in scene radii."""
    at = torch.tensor(SIGMA_QUANTILES, device=scales.device)
    widest = torch.exp(scales[rows].amax(1))
    values = [*torch.quantile(widest, at).tolist(), float(torch.exp(scales.max()))]
    return tuple(_finite(value / radius) for value in values)


def _gradients(
    training: Training, visible: torch.Tensor, rows: torch.Tensor
) -> tuple[dict[str, float | None], dict[str, float]]:
    """Norms over `rows`, and the share of the visible among them whose gradient is nothing."""
    norms: dict[str, float | None] = {}
    quiet: dict[str, float] = {}
    for name, gradient in _groups(training, rows).items():
        flat = gradient.reshape(len(rows), -1)
        norms[name] = _finite(float(flat.norm()))
        if bool(visible.any()):
            quiet[name] = _share(flat[visible].norm(dim=1) < NO_GRADIENT)
    return norms, quiet


def _groups(training: Training, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients of `rows`; the SH coefficients one band at a time, as far as they are trained already."""
    found = {name: training.params[name].grad for name in (*GROUPS, "shN")}
    return _by_band({name: grad[rows] for name, grad in found.items() if grad is not None}, training)


def _by_band(groups: dict[str, torch.Tensor], training: Training) -> dict[str, torch.Tensor]:
    """The same groups with `shN` cut into `sh1`, `sh2` ...: those bands that the last step trained."""
    cut = {name: groups[name] for name in GROUPS if name in groups}
    for band in range(1, training.sh_degree(training.step - 1) + 1):
        if "shN" in groups:
            cut[f"sh{band}"] = groups["shN"][:, band**2 - 1 : (band + 1) ** 2 - 1]
    return cut


def _updates(training: Training, rows: torch.Tensor) -> dict[str, float | None]:
    """Norm of Adam's present step over that of the parameters, over `rows` (Kingma & Ba 2015, algorithm 1)."""
    params = {name: value.detach()[rows] for name, value in training.params.items() if value.numel()}
    moves = {name: _move(name, training.optimizer, rows) for name in params}
    values, steps = _by_band(params, training), _by_band(moves, training)
    return {
        name: _finite(float(steps[name].norm()) / max(float(value.norm()), _FLOAT32_STEPS))
        for name, value in values.items()
    }


def _move(name: str, optimizer: Adam, rows: torch.Tensor) -> torch.Tensor:
    """Adam's present step of `rows`, up to its sign."""
    state, (beta1, beta2) = optimizer.state[name], optimizer.betas
    mean = state["exp_avg"][rows] / (1 - beta1**optimizer.steps)
    square = state["exp_avg_sq"][rows] / (1 - beta2**optimizer.steps)
    return optimizer.lrs[name] * mean / (square.sqrt() + optimizer.eps)


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


def _finite(value: float) -> float | None:
    """Six digits; None for what JSON cannot say."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
