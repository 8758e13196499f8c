"""`splatpipe compare`: patches, attempts, runs, checkpoints and splats, each with a verdict in words."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from doubles.trainer_double import TrainerDouble
from scenes import synthetic_scene, write_scene
from test_training import data_of, stop_at, training
from typer.testing import CliRunner

from splatpipe import pipeline
from splatpipe.cli import app
from splatpipe.comparands import Comparand
from splatpipe.comparing import compare, side_by_side
from splatpipe.errors import ConfigError, RunFolderError
from splatpipe.splatting.loop import Stopped
from splatpipe.splatting.ply import Splats, write_splats


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two patches; p001 needed a second attempt."""
    folder = tmp_path_factory.mktemp("compare")
    write_scene(folder / "scene", synthetic_scene(n_cameras=25, n_points=600))
    settings = ["patching.max_cameras=12", "training.iterations=60", "training.device=cpu", "retry.history=false"]
    options = pipeline.RunOptions.resolve(folder / "scene", folder / "run", None, settings, None, None)
    double = TrainerDouble({"p001": {"fails": "lfs_adam", "below": 0.15, "psnr": 21.0}})
    pipeline.run(options, stop=threading.Event(), trainer=double, merge=False)
    return options.layout.root


def values(found: dict, name: str) -> list:
    return next(row["values"] for row in found["rows"] if row["name"] == name)


def test_patches_show_how_they_ended_beside_what_was_measured(run: Path) -> None:
    found = compare([str(run), "p000", "p001"])
    assert values(found, "attempts") == [1, 2]
    assert values(found, "hold-out psnr") == [25.0, 21.0]
    assert values(found, "last failure") == ["none", "launch_config"]
    assert found["verdict"][-1] == "p000 is best, 4.00 dB above p001 (hold-out psnr)."
    assert compare([f"{run}/p000", f"{run}/p001"])["rows"] == found["rows"]


def test_attempts_of_one_patch_show_the_remedy_and_what_it_changed(run: Path) -> None:
    found = compare([str(run), "p001/1", "p001#2"])
    assert values(found, "ended with") == ["launch_config", "trained"]
    assert values(found, "init_scaling") == [0.1, 0.2]
    assert found["items"][1] == {"name": "p001#2", "kind": "attempt"}


def test_runs_show_their_settings_and_outcomes(run: Path) -> None:
    found = compare([str(run), str(run)])
    assert values(found, "failed attempts") == [1, 1]
    assert values(found, "setting training.iterations") == [60.0, 60.0]
    assert found["verdict"] == ["Nothing differs by more than a quarter."]


def splat(path: Path, count: int, opacity: float) -> str:
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(count, 3)), rng.normal(size=(count, 4)), np.full((count, 3), -3.0)]
    arrays += [np.full(count, opacity), rng.normal(size=(count, 1, 3)), np.zeros((count, 0, 3))]
    write_splats(path, Splats(*(array.astype(np.float32) for array in arrays)))
    return str(path)


def test_a_collapse_between_splats_is_the_first_thing_said(tmp_path: Path) -> None:
    specs = [splat(tmp_path / "7000.ply", 900, 1.0), splat(tmp_path / "7100.ply", 200, 1.0)]
    specs.append(splat(tmp_path / "7200.ply", 200, -9.0))
    found = compare(specs)
    assert found["verdict"][0].startswith(f"Collapse between {specs[0]} and {specs[1]}: Gaussians falls from 900")
    assert "alive share falls from 1 to 0" in found["verdict"][1]


def test_checkpoints_of_a_training_are_compared_step_by_step(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene", synthetic_scene(n_cameras=5, n_points=100))
    trained, _ = training(data_of(scene), tmp_path / "checkpoints", checkpoint_every=20)
    with pytest.raises(Stopped):
        trained.run(stop_at(trained, 40))
    first, second = sorted(map(str, (tmp_path / "checkpoints").glob("*.pt")))
    found = compare([first, second])
    assert values(found, "step") == [20, 40]
    assert values(found, "Gaussians")[0] <= values(found, "Gaussians")[1]
    assert values(found, "values not finite") == [0, 0]
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"no checkpoint")
    with pytest.raises(RunFolderError, match=r"broken\.pt: no checkpoint of splatpipe"):
        compare([first, str(broken)])


def test_three_things_are_ranked_by_their_largest_difference_and_blind_cameras_come_first() -> None:
    facts = [{"points": 100, "extent": e, "blind cameras at 0.1": b} for e, b in ((1.0, 0), (1.1, 3), (4.0, 0))]
    found = side_by_side([Comparand(f"p{i:03}", "patch", one) for i, one in enumerate(facts)])
    assert [row["name"] for row in found["rows"]] == ["blind cameras at 0.1", "extent", "points"]
    assert found["verdict"][0] == "Look here first: blind cameras at 0.1: p001 3, the others none."
    assert "extent (1, 1.1, 4)" in found["verdict"][1]


def test_what_cannot_be_compared_is_one_sentence(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name two things or more"):
        compare([str(run), "p000"])
    with pytest.raises(ConfigError, match="different kinds"):
        compare([str(run), "p000", "p001/1"])
    with pytest.raises(RunFolderError, match="p000: of which run"):
        compare(["p000", "p001"])
    with pytest.raises(RunFolderError, match="p001 has no ended attempt 7; it has 1, 2"):
        compare([str(run), "p001/1", "p001/7"])
    with pytest.raises(RunFolderError, match="nothing to compare there"):
        compare([str(run), str(tmp_path / "nothing")])


def test_the_command_prints_a_table_and_the_same_as_json(run: Path) -> None:
    told = CliRunner().invoke(app, ["compare", str(run), "p000", "p001"])
    assert told.exit_code == 0 and "measures are the same in all" in told.stdout and "p000 is best" in told.stdout
    data = json.loads(CliRunner().invoke(app, ["compare", "--json", str(run), "p000", "p001"]).stdout)
    assert data == json.loads(json.dumps(compare([str(run), "p000", "p001"])))
