"""Requests for the trainer double, with short limits and a data set of a few points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from doubles.trainer_double import write_points

from splatpipe.layout import RunLayout
from splatpipe.scene.arrays import Similarity
from splatpipe.splatting.settings import TrainSettings
from splatpipe.trainers.base import Limits, TrainRequest

LIMITS = Limits(startup_silence_s=20.0, silence_s=20.0, wall_s=0.0, grace_s=5.0)
SETTINGS = TrainSettings(iterations=240, scale_schedule=False, refine_start=100, max_cap=30_000)


def make_request(root: Path, patch: str = "p007", **changes: Any) -> TrainRequest:
    """A request in the run folder `root`; `changes` are its fields."""
    run = RunLayout(root)
    values: dict[str, Any] = {
        **{"patch_id": patch, "attempt": 1, "trainer": "gsplat", "device": "cpu", "init_scaling": 0.1},
        **{"similarity": Similarity(2.0, (1.0, 0.0, 0.0)), "settings": SETTINGS, "limits": LIMITS, **changes},
    }
    request = TrainRequest(dataset=run.patch(patch).root, out=run.attempt(patch, values["attempt"]).root, **values)
    write_points(request.patch.sparse / "points3D.bin", np.random.default_rng(0).normal(size=(50, 3)))
    return request
