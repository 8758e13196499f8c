"""LPIPS (Zhang et al. 2018, version 0.1, AlexNet) from weights that the user has; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from splatpipe.errors import ConfigError
from splatpipe.splatting.metrics import Picture

# AlexNet's five convolutions: place in torchvision's `features`, stride, padding, whether it is pooled before.
LAYERS = ((0, 4, 2, False), (3, 1, 2, True), (6, 1, 1, True), (8, 1, 1, False), (10, 1, 1, False))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as lpips 0.1 has them after its own scaling
BACKBONE, HEADS = "alexnet*.pth", "alex.pth"
ADVICE = f"it must hold torchvision's {BACKBONE} (alexnet-owt-7be5be79.pth) and {HEADS} of the lpips package, 0.1"


class Lpips:
    """A perceptual distance of pictures (H, W, 3) in [0, 1]: 0 for equal ones, about 0.7 for unrelated ones."""

    def __init__(self, folder: Path) -> None:
        """Raises `ConfigError` when `folder` lacks the weights, or holds others."""
        backbone = next(iter(sorted(folder.glob(BACKBONE))), None)
        if backbone is None or not (folder / HEADS).is_file():
            raise ConfigError(f"evaluation.lpips_weights: {folder} has no LPIPS weights; {ADVICE}")
        features, heads = _load(backbone), _load(folder / HEADS)
        try:
            self._layers = [
                (features[f"features.{i}.weight"].float(), features[f"features.{i}.bias"].float(), *rest)
                for i, *rest in LAYERS
            ]
            self._heads = [heads[f"lin{i}.model.1.weight"].float() for i in range(len(LAYERS))]
        except KeyError as error:
            raise ConfigError(f"evaluation.lpips_weights: {folder}: no tensor {error} in its files; {ADVICE}") from None
        black = np.zeros((64, 64, 3), np.float32)
        try:
            self(black, black)
        except RuntimeError:
            raise ConfigError(f"evaluation.lpips_weights: {folder}: tensors of other shapes; {ADVICE}") from None

    @torch.no_grad()
    def __call__(self, render: Picture, photograph: Picture) -> float:
        """The distance; pictures must be at least 64 pixels wide and high (ValueError)."""
        if min(render.shape[:2]) < 64:
            raise ValueError(f"LPIPS needs pictures of at least 64x64 pixels, not {render.shape[:2]}")
        total = 0.0
        for a, b, head in zip(self._features(render), self._features(photograph), self._heads, strict=True):
            total += float(functional.conv2d((a - b) ** 2, head).mean())
        return total

    def _features(self, picture: Picture) -> list[torch.Tensor]:
        """Activations after each convolution, of unit length over the channels."""
        scaled = (np.clip(picture, 0, 1) - np.array(MEAN)) / np.array(STD)
        x = torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1), np.float32))[None]
        features = []
        for weight, bias, stride, padding, pooled in self._layers:
            x = functional.max_pool2d(x, 3, 2) if pooled else x
            x = functional.relu(functional.conv2d(x, weight, bias, stride, padding))
            features.append(x / (x.norm(dim=1, keepdim=True) + 1e-10))
        return features


def _load(path: Path) -> dict[str, Any]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        return {str(name): tensor for name, tensor in loaded.items() if isinstance(tensor, torch.Tensor)}
    except Exception as error:  # torch raises whatever its unpickler met
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"evaluation.lpips_weights: {path} is not a file of weights ({reason}); {ADVICE}") from error
