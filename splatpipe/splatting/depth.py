"""Depth of the points that a camera observes, as a loss on the render's expected depth.

gsplat's example trainer (`depth_loss`): L1 of disparities at the points' pixels, times the scene scale.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from splatpipe.splatting.raster import BLUR, rasterization
from splatpipe.splatting.views import View

_ALPHA = 0.05  # where less than this is covered, the expected depth is that of next to nothing


class PointDepths:
    """The points (P, 3) that each view observes, given as one array of indices for each view."""

    def __init__(
        self, points: NDArray[np.float64], observed: Sequence[NDArray[np.int64]], device: torch.device
    ) -> None:
        self._points = torch.tensor(points, dtype=torch.float32, device=device)
        self._observed = [torch.tensor(index, dtype=torch.int64, device=device) for index in observed]

    def loss(
        self,
        view: View,
        means: torch.Tensor,
        quats: torch.Tensor,
        scales: torch.Tensor,
        opacities: torch.Tensor,
        antialiased: float | None,
    ) -> torch.Tensor | None:
        """Mean absolute difference of disparities, 1 / training units; None where the view observes nothing.

        The Gaussians are those that the view's own camera sees: moved ones where its pose is corrected.
        """
        viewmat, K = view.viewmat[0], view.K[0]
        local = self._points[self._observed[view.index]] @ viewmat[:3, :3].T + viewmat[:3, 3]
        local = local[local[:, 2] > 0.01]
        pixels = local[:, :2] / local[:, 2:] * torch.stack([K[0, 0], K[1, 1]]) + K[:2, 2]
        size = torch.tensor([view.width, view.height], device=pixels.device)
        inside = ((pixels > 0.5) & (pixels < size - 0.5)).all(1)
        if not bool(inside.any()):
            return None
        depths = means @ viewmat[2, :3] + viewmat[2, 3]
        images, alphas, _ = rasterization(
            means, quats, scales, opacities, depths[:, None].expand(-1, 3).contiguous(),
            view.viewmat, view.K, view.width, view.height,
            eps2d=BLUR if antialiased is None else antialiased,
            rasterize_mode="classic" if antialiased is None else "antialiased",
        )  # fmt: skip
        planes = torch.cat([images[0, ..., :1], alphas[0]], -1).permute(2, 0, 1)[None]
        places = (2 * pixels[inside] / size - 1)[None, None]
        depth, alpha = torch.nn.functional.grid_sample(planes, places, align_corners=False)[0, :, 0]
        covered = alpha.detach() > _ALPHA
        if not bool(covered.any()):
            return None
        expected = alpha[covered] / depth[covered].clamp_min(1e-6)
        return (expected - 1 / local[inside][covered, 2]).abs().mean()
