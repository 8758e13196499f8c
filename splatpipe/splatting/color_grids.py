"""What each photograph's exposure and colour processing did, learned as a small grid of colour transforms.

After Wang et al., "Bilateral Guided Radiance Field Processing", SIGGRAPH 2024, of which gsplat's example trainer uses
an implementation: a grid over image position and brightness holds one affine colour transform (3 by 4) in each cell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from splatpipe.splatting.per_photograph import RowParameter

DEPTH, SIDE = 8, 16  # cells in brightness, and at most in y and x, as gsplat's
CELL = 32  # pixels of a photograph, at least: finer grids could paint the picture themselves
_LUMA = (0.299, 0.587, 0.114)


class ColorGrids:
    """One grid (12, 8, height, width) for each of C photographs: what is added to the identity, 3 rows of 4.

    The mean over all photographs of what their pixels meet is held at the identity: else the Gaussians could take any
    colour, and patches would not fit each other. `size` is the width and height in pixels of the largest photograph.
    """

    def __init__(self, count: int, size: tuple[int, int], device: torch.device) -> None:
        width, height = (max(2, min(SIDE, pixels // CELL)) for pixels in size)
        self.rows = RowParameter(torch.zeros(count, 12, DEPTH, height, width, device=device))
        self._met = torch.zeros(count, 12, device=device)  # mean over each photograph's pixels, when last seen

    def leaf(self, index: int) -> torch.Tensor:
        """The grid of a photograph, for `apply` and `roughness`."""
        return self.rows.leaf(index)

    def apply(self, image: torch.Tensor, index: int, grid: torch.Tensor) -> torch.Tensor:
        """The render (H, W, 3) as the photograph at `index`, whose grid this is, shows it."""
        height, width = image.shape[:2]
        y = torch.linspace(-1, 1, height, device=image.device, dtype=image.dtype)[:, None].expand(height, width)
        x = torch.linspace(-1, 1, width, device=image.device, dtype=image.dtype)[None, :].expand(height, width)
        brightness = image @ image.new_tensor(_LUMA)
        places = torch.stack([x, y, 2 * brightness.clamp(0, 1) - 1], -1)
        sampled = torch.nn.functional.grid_sample(grid[None], places[None, None], align_corners=True)
        self._met[index] = sampled.detach().mean(dim=(0, 2, 3, 4))
        common = self._met.mean(0)
        transform = (sampled[0, :, 0] - common[:, None, None]).view(3, 4, height, width)
        planes = image.permute(2, 0, 1)
        return image + ((transform[:, :3] * planes).sum(1) + transform[:, 3]).permute(1, 2, 0)

    def step(self, rate: float) -> None:
        """Move the grids of the photographs that were seen."""
        self.rows.step(rate)

    def state_dict(self) -> dict[str, Any]:
        return self.rows.state_dict() | {"met": self._met}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        self.rows.load_state_dict({name: value for name, value in saved.items() if name != "met"})
        self._met.copy_(saved["met"])


def roughness(grid: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of neighbouring cells, summed over the three axes (total variation, squared)."""
    total = grid.new_zeros(())
    for axis in (1, 2, 3):
        total = total + grid.diff(dim=axis).square().mean()
    return total
