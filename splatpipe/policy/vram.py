"""GPU memory and tile intersections of a training, predicted from counts; and what fits into a budget."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

FIXED_BYTES = 500_000_000  # CUDA context and workspaces (trainers.md, E3, as the two below)
GAUSSIAN_BYTES = 1_500  # parameters, gradients, two moments, and what the rasteriser keeps of each
INTERSECTION_BYTES = 24  # 8 of key and 4 of value, twice for the sort
PIXEL_BYTES = 34 * 4  # images, loss and their gradients, fp32
MARGIN = 0.8  # share of a budget that is planned with
LAYERS = 10.0  # sum of pi sigma_px^2 over the image's area in a trained scene; gives about 5 tiles a Gaussian
BLUR = 0.3  # px^2, as in the rasterisers
TILE = 16  # pixels
MOST_INTERSECTIONS = 2**31 - 1  # rasterisers number them with 32 bits


@dataclass(frozen=True)
class Prediction:
    """The most demanding image of a patch, when the patch holds as many Gaussians as it may."""

    intersections: int
    vram_bytes: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def predict(gaussians: int, share: float, pixels: int, at_start: int = 0) -> Prediction:
    """For an image of so many pixels that sees `share` of the Gaussians; `at_start` intersections were counted.

    A model, not a measurement: V visible Gaussians that cover the image `LAYERS` times have
    sigma_px^2 = LAYERS pixels / (pi V), and the box of 3 sigma round each touches (6 sigma / 16 + 1)^2 tiles.
    """
    visible = max(gaussians * share, 1.0)
    sigma = math.sqrt(LAYERS * pixels / (math.pi * visible) + BLUR)
    most = pixels / TILE**2  # tiles of the image
    intersections = max(round(visible * min((6 * sigma / TILE + 1) ** 2, most)), at_start)
    memory = FIXED_BYTES + GAUSSIAN_BYTES * gaussians + INTERSECTION_BYTES * intersections + PIXEL_BYTES * pixels
    return Prediction(intersections, memory)


def gaussians_within(budget_bytes: float, pixels: int) -> int:
    """The most Gaussians, to a thousand, whose training fits with a margin even if an image sees all; 0 for none."""
    low, high = 0, 1 + int(MARGIN * budget_bytes) // GAUSSIAN_BYTES // 1000
    while low + 1 < high:
        middle = (low + high) // 2
        if predict(1000 * middle, 1.0, pixels).vram_bytes <= MARGIN * budget_bytes:
            low = middle
        else:
            high = middle
    return 1000 * low
