"""What benchmarks that train patches share: a patch at training size, and the hold-out PSNR of what was trained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from splatpipe.layout import PatchLayout
from splatpipe.patches.dataset import read_dataset
from splatpipe.splatting.loop import TrainingData, render
from splatpipe.splatting.metrics import psnr
from splatpipe.splatting.model import Params
from splatpipe.splatting.views import ViewLoader, Views

CACHE_BYTES = 2 << 30


@dataclass(frozen=True, eq=False)
class PatchViews:
    """What one patch trains on, and its hold-out views, at the size that is trained."""

    data: TrainingData
    holdout: Views

    @classmethod
    def read(cls, layout: PatchLayout, width: int) -> PatchViews:
        """The patch as it is on disk, images at most `width` pixels wide (0: as they are)."""
        inner, outer = read_dataset(layout.root), read_dataset(layout.holdout)
        views, held = (
            Views(one.names, one.image_paths, one.viewmats, one.Ks, one.sizes).resized(1.0, width)
            for one in (inner, outer)
        )
        return cls(TrainingData(views, inner.points, inner.colors), held)

    def psnr(self, params: Params, sh_degree: int) -> float:
        """Mean over the hold-out views, dB."""
        loader = ViewLoader(self.holdout, torch.device("cpu"), CACHE_BYTES)
        values = []
        with torch.no_grad():
            for i in range(len(self.holdout)):
                view = loader.get(i)
                image = render(params, view, sh_degree=sh_degree)[0].clamp(0, 1).numpy()
                values.append(psnr(image, view.image.numpy()))
        loader.close()
        return float(np.mean(values))
