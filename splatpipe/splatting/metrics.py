"""How near a rendered view is to its photograph. numpy and scipy only, so that it needs no trainer.

LPIPS, which needs weights and torch, stands in `lpips.py` and is passed in as a `Perceptual`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import correlate1d

from splatpipe.files import atomic_path
from splatpipe.splatting.images import SSIM_WINDOW

Picture = NDArray[np.floating]  # (H, W, 3) in [0, 1]
Mask = NDArray[np.bool_] | None  # (H, W) True for the pixels that count
Perceptual = Callable[[Picture, Picture], float]  # (render, photograph) to a distance, 0 for equal pictures
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

SIGMA = 1.5
MAX_PSNR = 100.0  # identical pictures; finite, so that it can be averaged and stored as JSON


@dataclass(frozen=True)
class ViewMetrics:
    """One view. PSNR in dB (at most 100), SSIM in [-1, 1], LPIPS from 0 (None without weights).

    `cc_` values are of the render after `color_corrected`: what is left once exposure is forgiven.
    """

    name: str
    psnr: float
    ssim: float
    cc_psnr: float
    cc_ssim: float
    lpips: float | None = None
    cc_lpips: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """All views and the means over them; NaN when there are none."""

    views: tuple[ViewMetrics, ...]

    @property
    def psnr(self) -> float:
        return self.mean("psnr")

    @property
    def ssim(self) -> float:
        return self.mean("ssim")

    def mean(self, metric: str) -> float:
        """Mean of one field of `ViewMetrics`; NaN where there is nothing to average."""
        values = [getattr(view, metric) for view in self.views]
        return float(np.mean(values)) if values and None not in values else float("nan")

    def of(self, names: Sequence[str]) -> Evaluation:
        """The part of it that looks at these views."""
        return Evaluation(tuple(view for view in self.views if view.name in set(names)))


def psnr(render: Picture, photograph: Picture, mask: Mask = None) -> float:
    """Peak signal-to-noise ratio in dB, data range 1, the render clamped to [0, 1]. Never above 100.

    Of the pixels in `mask` only, where one is given.
    """
    difference = np.clip(render, 0, 1).astype(np.float64) - photograph
    difference = difference if mask is None else difference[mask]
    return float(-10 * np.log10(max(float(np.mean(difference**2)), 10 ** (-MAX_PSNR / 10))))


def ssim(render: Picture, photograph: Picture, mask: Mask = None) -> float:
    """Mean structural similarity over the pixels whose whole window lies inside the picture.

    Wang et al. 2004: Gaussian window of 11x11 with sigma 1.5, K1 = 0.01, K2 = 0.03, data range 1. This is
    what torchmetrics computes and gsplat's evaluation reports; INRIA's code pads and comes out
    a little higher. Pictures must be at least 11 pixels wide and high (ValueError).
    With a mask, pixels outside are black in both pictures, and windows count whose centre is inside.
    """
    if min(render.shape[:2]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs pictures of at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels, not {render.shape[:2]}")
    a, b = np.clip(render, 0, 1).astype(np.float64), np.asarray(photograph, np.float64)
    if mask is not None:
        a, b = a * mask[..., None], b * mask[..., None]
    mean_a, mean_b = _blur(a), _blur(b)
    variance_a = np.maximum(_blur(a * a) - mean_a**2, 0)
    variance_b = np.maximum(_blur(b * b) - mean_b**2, 0)
    covariance = _blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    values = luminance * structure
    if mask is not None:
        values = values[mask[SSIM_WINDOW // 2 : -(SSIM_WINDOW // 2), SSIM_WINDOW // 2 : -(SSIM_WINDOW // 2)]]
    return float(np.mean(values)) if values.size else 1.0


def color_corrected(render: Picture, photograph: Picture, mask: Mask = None) -> Picture:
    """The render with each channel's gain and offset removed, clamped to [0, 1].

    gsplat's `color_correct_affine`, after multinerf: fit render = a x photograph + b by least squares, then
    invert it. A channel that does not follow its photograph at all (a = 0) is only shifted. With a mask, the fit is
    that of the pixels inside.
    """
    picture, truth = np.clip(render, 0, 1).astype(np.float64), np.asarray(photograph, np.float64)
    inside = ... if mask is None else mask
    pixels, true_pixels = picture[inside].reshape(-1, 3), truth[inside].reshape(-1, 3)
    mean, mean_truth = pixels.mean(axis=0), true_pixels.mean(axis=0)
    covariance = (pixels * true_pixels).mean(axis=0) - mean * mean_truth
    variance = (true_pixels**2).mean(axis=0) - mean_truth**2
    gain = covariance / np.maximum(variance, 1e-8)
    gain = np.where(np.abs(gain) < 1e-8, 1.0, gain)
    return np.clip((picture - mean) / gain + mean_truth, 0, 1)


def _blur(picture: NDArray[np.float64]) -> NDArray[np.float64]:
    """(H - 10, W - 10, 3): the Gaussian window applied where it fits."""
    x = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    window = np.exp(-0.5 * (x / SIGMA) ** 2)
    window /= window.sum()
    margin = SSIM_WINDOW // 2
    rows = correlate1d(picture, window, axis=0)[margin:-margin]
    return correlate1d(rows, window, axis=1)[:, margin:-margin]


def evaluate_views(
    render: Callable[[int], Picture],
    photograph: Callable[[int], Picture],
    names: Sequence[str],
    on_view: Callable[[ViewMetrics, Picture, Picture], None] | None = None,
    perceptual: Perceptual | None = None,
    mask: Callable[[int], Mask] | None = None,
) -> Evaluation:
    """Every metric of `render(i)` against `photograph(i)` for each name; holds one pair in memory at a time.

    LPIPS only when `perceptual` is given. `mask(i)` says which pixels count; the others become black in both.

    `on_view(metrics, render, photograph)` is called for each view while both pictures are at hand.
    """
    views = []
    for i, name in enumerate(names):
        picture, truth = np.clip(np.asarray(render(i)), 0, 1), photograph(i)
        if picture.shape != truth.shape:
            raise ValueError(f"{name}: rendered at {picture.shape}, photographed at {truth.shape}")
        inside = mask(i) if mask else None
        if inside is not None:
            picture, truth = picture * inside[..., None], truth * inside[..., None]
        views.append(view_metrics(name, picture, truth, perceptual, inside))
        if on_view:
            on_view(views[-1], picture, truth)
    return Evaluation(tuple(views))


def view_metrics(
    name: str, render: Picture, photograph: Picture, perceptual: Perceptual | None = None, mask: Mask = None
) -> ViewMetrics:
    """Every metric of one view."""
    corrected = color_corrected(render, photograph, mask)
    pairs = ((render, photograph), (corrected, photograph))
    (lpips, cc_lpips) = (perceptual(*pair) for pair in pairs) if perceptual else (None, None)
    (plain, cc) = ((psnr(*pair, mask), ssim(*pair, mask)) for pair in pairs)
    return ViewMetrics(name, *plain, *cc, lpips, cc_lpips)


def side_by_side(
    render: Picture, photograph: Picture, path: Path, labels: tuple[str, str] = ("render", "photograph")
) -> None:
    """Write a PNG: the render left, its photograph right, a caption above each."""
    height, width = photograph.shape[:2]
    gap, size = max(4, width // 100), max(12, min(width // 20, 28))
    strip = size + size // 2 + 4
    canvas = Image.new("RGB", (2 * width + gap, height + strip), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size)
    for i, (picture, label) in enumerate(zip((render, photograph), labels, strict=True)):
        left = i * (width + gap)
        pixels = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
        canvas.paste(Image.fromarray(pixels), (left, strip))
        draw.text((left + 4, size // 4), _fitting(draw, label, font, width - 8), fill="black", font=font)
    with atomic_path(path) as temporary:
        canvas.save(temporary, format="PNG")


def _fitting(draw: ImageDraw.ImageDraw, text: str, font: Font, width: int) -> str:
    """`text`, shortened from its end until it is at most `width` pixels wide."""
    while len(text) > 1 and draw.textlength(text, font=font) > width:
        text = text[:-2].rstrip() + "…" if text.endswith("…") else text[:-1].rstrip() + "…"
    return text
