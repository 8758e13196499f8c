"""The patch that is trained before any other."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from doubles.trainer_double import TrainerDouble
from scenes import synthetic_scene, write_scene

from splatpipe import pipeline
from splatpipe.errors import ConfigError

SETTINGS = (
    *("training.iterations=60", "training.max_cap=500", "training.device=cpu", "patching.max_cameras=12"),
    *("retry.history=false", "probe.mode=never", "executor.jobs=2"),
)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "field"
    write_scene(folder, synthetic_scene(n_cameras=25, n_points=400))
    return folder


def run(scene: Path, out: Path, canary: str, behaviours: dict[str, Any]) -> int:
    settings = [*SETTINGS, f"executor.canary={canary}"]
    options = pipeline.RunOptions.resolve(scene, out, None, settings, None, None)
    return pipeline.run(options, stop=threading.Event(), merge=False, trainer=TrainerDouble(behaviours))


def patches(out: Path) -> dict[str, dict[str, Any]]:
    return {patch["id"]: patch for patch in pipeline.status(out)["patches"]}


def test_others_begin_when_the_canary_has_trained_after_its_retries(scene: Path, tmp_path: Path) -> None:
    assert run(scene, tmp_path, "p001", {"p001": {"fails": "lfs_adam", "below": 0.2}}) == 0
    rows = patches(tmp_path)
    assert [attempt["class"] for attempt in rows["p001"]["attempts"]] == ["launch_config", None]
    assert rows["p000"]["attempts"][0]["started"] >= rows["p001"]["attempts"][1]["ended"]


def test_nothing_else_begins_when_the_canary_cannot_be_trained(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(scene, tmp_path, "p001", {"p001": {"fails": "memory_error"}}) == pipeline.EXIT_ALL_FAILED
    rows = patches(tmp_path)
    assert rows["p001"]["outcome"] == "failed"
    assert "p001 is the canary" in capsys.readouterr().err
    assert (rows["p000"]["outcome"], rows["p000"]["attempts"]) == ("pending", [])


def test_a_canary_that_is_no_patch_is_refused_with_the_patches_there_are(scene: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"executor.canary: no patch p9; this run has p000 to p001"):
        run(scene, tmp_path, "p9", {})
