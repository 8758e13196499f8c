"""The options of a training that learn or know something of their own: poses, colours, depths, clipping.

The loop asks for each view: how do the Gaussians stand before its camera (`look`), how would its photograph show the
render (`shown`), and what does that cost beside the photometric loss (`cost`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from splatpipe.splatting.clipping import GradientClip
from splatpipe.splatting.color_grids import ColorGrids, roughness
from splatpipe.splatting.depth import PointDepths
from splatpipe.splatting.model import Params
from splatpipe.splatting.poses import Poses
from splatpipe.splatting.raster import BLUR
from splatpipe.splatting.settings import TrainSettings
from splatpipe.splatting.views import View, Views

POSE_PENALTY = 1e-3  # times the squared correction, which keeps cameras that see little where they are
ROUGHNESS_WEIGHT = 10.0  # of the colour grids, gsplat's


@dataclass(frozen=True, eq=False)
class Look:
    """One view's own parameters during one step; `moved` are means, quats and colours before its camera."""

    moved: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None
    pose: torch.Tensor | None
    grid: torch.Tensor | None


class Extras:
    """What the settings ask for; every part is None where they do not."""

    def __init__(
        self,
        settings: TrainSettings,
        views: Views,
        points: NDArray[np.float64],
        observed: Sequence[NDArray[np.int64]] | None,
        scene_scale: float,
        device: torch.device,
    ) -> None:
        """`observed`: for each view the indices of the points that it observes; needed for depths."""
        if settings.depth_weight and observed is None:
            raise ValueError("depth_weight needs to know which points each view observes")
        self.clip = GradientClip(settings.clip_gradients) if settings.clip_gradients else None
        self.poses = Poses(views.viewmats, device) if settings.pose_lr else None
        self.grids = ColorGrids(len(views), _largest(views), device) if settings.bilateral_lr else None
        self.depths = PointDepths(points, observed, device) if settings.depth_weight and observed is not None else None
        self.blur = BLUR if settings.antialiased else None
        self._settings, self._depth_weight = settings, settings.depth_weight * scene_scale

    def look(self, params: Params, view: View, degree: int) -> Look:
        """Parameters of `view`, for this step."""
        grid = self.grids.leaf(view.index) if self.grids else None
        if self.poses is None:
            return Look(None, None, grid)
        pose = self.poses.leaf(view.index)
        return Look(self.poses.moved(params, view.index, pose, degree), pose, grid)

    def shown(self, image: torch.Tensor, view: View, look: Look) -> torch.Tensor:
        """The render as the photograph would show it."""
        return image if self.grids is None or look.grid is None else self.grids.apply(image, view.index, look.grid)

    def cost(
        self, look: Look, view: View, params: Params, scales: torch.Tensor, opacities: torch.Tensor
    ) -> torch.Tensor | None:
        """What is added to the loss; None for nothing."""
        costs = []
        if look.pose is not None:
            costs.append(POSE_PENALTY * look.pose.square().sum())
        if look.grid is not None:
            costs.append(ROUGHNESS_WEIGHT * roughness(look.grid))
        if self.depths is not None:
            means, quats = look.moved[:2] if look.moved else (params["means"], params["quats"])
            depth = self.depths.loss(view, means, quats, scales, opacities, self.blur)
            if depth is not None:
                costs.append(self._depth_weight * depth)
        return sum(costs[1:], costs[0]) if costs else None

    def step(self, decay: float) -> None:
        """Move what was seen; rates are the settings' times `decay`."""
        if self.poses is not None:
            self.poses.step(self._settings.pose_lr * decay)
        if self.grids is not None:
            self.grids.step(self._settings.bilateral_lr * decay)

    def state_dict(self) -> dict[str, Any]:
        """By name, of the parts that have a state."""
        parts = {"clip": self.clip, "poses": self.poses, "grids": self.grids}
        return {name: part.state_dict() for name, part in parts.items() if part is not None}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        for name, state in saved.items():
            getattr(self, name).load_state_dict(state)


def _largest(views: Views) -> tuple[int, int]:
    width, height = (int(pixels) for pixels in views.sizes.max(axis=0))
    return width, height
