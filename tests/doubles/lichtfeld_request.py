"""A small patch on disk and requests to train it with LichtFeld Studio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scenes import synthetic_scene

from splatpipe.layout import RunLayout
from splatpipe.scene.arrays import Similarity
from splatpipe.scene.colmap import write_model
from splatpipe.splatting.settings import TrainSettings
from splatpipe.trainers.base import Limits, TrainRequest

SIMILARITY = Similarity(0.2, (0.5, -0.25, 3.0))
LIMITS = Limits(startup_silence_s=20.0, silence_s=5.0, wall_s=60.0, grace_s=1.0)
SETTINGS = TrainSettings(iterations=1500, scale_schedule=False, refine_stop=1200, max_cap=2000)


def lichtfeld_request(root: Path, patch: str = "p007", points: int = 400, **changes: Any) -> TrainRequest:
    """A request in the run folder `root`; `changes` are its fields."""
    run = RunLayout(root)
    values: dict[str, Any] = {
        **{"patch_id": patch, "attempt": 1, "trainer": "lichtfeld", "device": "cpu", "init_scaling": 0.1},
        **{"similarity": SIMILARITY, "settings": SETTINGS, "limits": LIMITS, **changes},
    }
    request = TrainRequest(dataset=run.patch(patch).root, out=run.attempt(patch, values["attempt"]).root, **values)
    if not request.patch.sparse.exists():
        scene = synthetic_scene(n_cameras=12, n_points=points)
        cameras = np.arange(scene.n_cameras)
        write_model(scene, cameras, np.arange(scene.n_points), request.patch.sparse, SIMILARITY)
        for name in scene.names:
            (request.patch.images / name).parent.mkdir(parents=True, exist_ok=True)
            (request.patch.images / name).write_bytes(b"")
    return request
