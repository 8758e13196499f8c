"""Real training for the double of LichtFeld Studio: splatpipe's own loop, started and reported as LFS does it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from splatpipe.patches.dataset import read_dataset
from splatpipe.splatting.loop import Training as Loop
from splatpipe.splatting.loop import TrainingData, TrainingJob
from splatpipe.splatting.model import to_splats
from splatpipe.splatting.ply import write_splats
from splatpipe.splatting.settings import TrainSettings
from splatpipe.splatting.spacing import initial_scales_lfs
from splatpipe.splatting.views import Views
from splatpipe.trainers.lichtfeld_config import settings_of

if TYPE_CHECKING:
    from doubles.lichtfeld_double import Training


def train(run: Training) -> None:
    """Train `run` and write its PLY, in training coordinates, with LFS's initial sizes."""
    patch = read_dataset(Path(run.arguments["data-path"]))
    views = Views(patch.names, patch.image_paths, patch.viewmats, patch.Ks, patch.sizes)
    settings = TrainSettings(**settings_of(run.config), scale_schedule=False, checkpoint_every=10**9)
    job = TrainingJob(
        settings=settings,
        init_scaling=1.0,  # replaced below
        device="cpu",
        checkpoints=run.output / "checkpoints",
        cache_bytes=1 << 30,
    )
    width = int(run.arguments.get("max-width", "3840"))
    loop = Loop(TrainingData(views.resized(1.0, width), patch.points, patch.colors), job, _reporter(run))
    sigma = initial_scales_lfs(patch.points, run.config["init_scaling"])
    loop.params["scales"].copy_(torch.from_numpy(np.log(sigma)).float()[:, None].expand(-1, 3))
    params = loop.run(lambda: False)
    run.step, run.count = settings.iterations, len(params["means"])
    run.finish()
    write_splats(run.result_path, to_splats(params))


def _reporter(run: Training) -> Any:
    """Draws LFS's bar once in a hundred steps, and its debug lines at refinements."""
    drawn = 0

    def report(event: str, **values: Any) -> None:
        nonlocal drawn
        if event == "step" and values["step"] // 100 > drawn:
            drawn = values["step"] // 100
            run.step, run.loss, run.count = drawn * 100, values["loss"], values["gaussians"]
            run.draw()
        elif event == "refine":
            run.report_refinement(values["step"], values["relocated"], values["added"], values["gaussians"])

    return report
