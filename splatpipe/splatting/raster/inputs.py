"""Checks at the rasteriser's door: every complaint names the argument."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch

Colors = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


def _check(name: str, value: Any, shape: tuple[int | None, ...], device: torch.device) -> None:
    """`shape` may hold None where any size will do."""
    wanted = "(" + ", ".join("?" if size is None else str(size) for size in shape) + ")"
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name} must be a tensor of shape {wanted}, not {type(value).__name__}")
    fits = len(value.shape) == len(shape) and all(
        want is None or have == want for have, want in zip(value.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} must have shape {wanted}, not {tuple(value.shape)}")
    if value.dtype != torch.float32:
        raise ValueError(f"{name} must be float32, not {value.dtype}")
    if value.device != device:
        raise ValueError(f"{name} is on {value.device}, but means is on {device}")
    if not value.is_contiguous():
        raise ValueError(f"{name} must be contiguous; call .contiguous() first")


def check_gaussians(
    means: Any, quats: Any, scales: Any, opacities: Any, colors: Any, sh_degree: int | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Raise ValueError unless the Gaussians fit together; return colours as (base, rest or None).

    base is (N, 3) without `sh_degree`, (N, K, 3) or the first of a pair with it.
    """
    if not isinstance(means, torch.Tensor):
        raise ValueError(f"means must be a tensor of shape (?, 3), not {type(means).__name__}")
    device = means.device
    _check("means", means, (None, 3), device)
    n = len(means)
    _check("quats", quats, (n, 4), device)
    _check("scales", scales, (n, 3), device)
    _check("opacities", opacities, (n,), device)
    if sh_degree is None:
        _check("colors", colors, (n, 3), device)
        return colors, None
    if sh_degree not in (0, 1, 2, 3):
        raise ValueError(f"sh_degree must be None, 0, 1, 2 or 3, not {sh_degree!r}")
    if isinstance(colors, (tuple, list)):
        if len(colors) != 2:
            raise ValueError(f"colors must be one tensor or a pair (sh0, shN), not {len(colors)} tensors")
        base, rest = colors
        _check("colors[0]", base, (n, 1, 3), device)
        _check("colors[1]", rest, (n, None, 3), device)
        have = 1 + rest.shape[1]
    else:
        base, rest = colors, None
        _check("colors", base, (n, None, 3), device)
        have = base.shape[1]
    if have < (sh_degree + 1) ** 2:
        raise ValueError(f"colors holds {have} coefficients, but sh_degree {sh_degree} needs {(sh_degree + 1) ** 2}")
    return base, rest


def check_views(viewmats: Any, Ks: Any, backgrounds: Any, width: Any, height: Any, device: torch.device) -> None:
    """Raise ValueError unless the cameras, the backgrounds and the image size fit together."""
    _check("viewmats", viewmats, (None, 4, 4), device)
    cameras = len(viewmats)
    _check("Ks", Ks, (cameras, 3, 3), device)
    if backgrounds is not None:
        _check("backgrounds", backgrounds, (cameras, 3), device)
    for name, size in (("width", width), ("height", height)):
        if not isinstance(size, Integral) or int(size) < 1:
            raise ValueError(f"{name} must be a positive number of pixels, not {size!r}")
