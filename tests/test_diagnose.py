"""`splatpipe diagnose` on patches with a planted cause: it is ranked first, with its evidence, by real trainings."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles.lichtfeld_double import install
from doubles.trainer_double import TrainerDouble
from scenes import synthetic_scene, write_scene

from splatpipe import pipeline
from splatpipe.diagnosing import diagnose_patch
from splatpipe.diagnosis.datasets import read_patch_scene
from splatpipe.errors import ConfigError, RunFolderError
from splatpipe.layout import PatchLayout, RunLayout
from splatpipe.scene.arrays import Scene, Similarity
from splatpipe.scene.colmap import write_model
from splatpipe.trainers.base import Trainer
from splatpipe.trainers.lichtfeld import LichtfeldTrainer

SHORT = ["training.iterations=120", "training.device=cpu", "retry.history=false", "patching.max_cameras=12"]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene that is cut into several patches; no test changes it."""
    folder = tmp_path_factory.mktemp("scene")
    write_scene(folder, synthetic_scene(n_cameras=25, n_points=900))
    return folder


def split(scene: Path, out: Path, *overrides: str) -> pipeline.RunOptions:
    options = pipeline.RunOptions.resolve(scene, out, None, [*SHORT, *overrides], None, None)
    pipeline.split(options, dry_run=False)
    return options


def rewrite(patch: PatchLayout, change: Callable[[Scene], Scene]) -> None:
    """Put another model in the place of the patch's own."""
    scene = change(read_patch_scene(patch))
    write_model(scene, np.arange(scene.n_cameras), np.arange(scene.n_points), patch.sparse)


def diagnose(options: pipeline.RunOptions, trainer: Trainer | None = None, **changes: Any) -> dict[str, Any]:
    asked = {"against": None, "budget": "20m"} | changes
    return diagnose_patch(options, "p001", stop=threading.Event(), trainer=trainer, **asked)


def first(report: dict[str, Any]) -> tuple[str, str]:
    return report["causes"][0]["kind"], report["causes"][0]["verdict"]


def turned_away(scene: Scene) -> Scene:
    viewmats = scene.viewmats.copy()
    for i in (0, 3):
        viewmats[i] = np.diag([-1.0, 1.0, -1.0, 1.0]) @ viewmats[i]
        viewmats[i, 2, 3] -= 5.0
    return replace(scene, viewmats=viewmats)


def in_other_units(scene: Scene) -> Scene:
    similarity = Similarity(1000.0, (0.0, 0.0, 0.0))
    return replace(scene, points=similarity.apply(scene.points), viewmats=similarity.apply_viewmats(scene.viewmats))


def with_far_points(scene: Scene) -> Scene:
    points = scene.points.copy()
    points[::25] *= np.linspace(200, 900, len(points[::25]))[:, None]
    return replace(scene, points=points)


@pytest.mark.parametrize(
    ("plant", "kind"),
    [(turned_away, "blind_cameras"), (in_other_units, "scale"), (with_far_points, "outlier_points")],
)
def test_a_planted_cause_is_ranked_first(
    original: Path, tmp_path: Path, plant: Callable[[Scene], Scene], kind: str
) -> None:
    options = split(original, tmp_path / "run")
    rewrite(options.layout.patch("p001"), plant)
    report = diagnose(options)
    assert first(report) in ((kind, "confirmed"), (kind, "likely"))
    others = [cause for cause in report["causes"][1:] if cause["verdict"] in ("confirmed", "likely")]
    assert not others
    page = Path(report["page"]).read_text()
    assert report["causes"][0]["name"] in page and "http" not in page.split("<main")[1].split("</main>")[0]


def test_a_corrupt_image_is_ranked_first_and_the_training_without_it_proves_it(original: Path, tmp_path: Path) -> None:
    options = split(original, tmp_path / "run")
    patch = options.layout.patch("p001")
    name = read_patch_scene(patch).names[1]
    whole = (patch.images / name).read_bytes()
    (patch.images / name).unlink()
    (patch.images / name).write_bytes(whole[: len(whole) // 2])
    report = diagnose(options)
    assert first(report) == ("corrupt_image", "confirmed")
    assert name in report["causes"][0]["for"][0] and name in report["causes"][0]["remedy"]
    outcomes = {one["name"]: one["failure"] for one in report["experiments"]}
    assert outcomes["as_it_is"] == "data_error"
    assert outcomes["without_bad_images"] is None
    assert report["profile"] is None  # no setting cures an image


def test_a_healthy_patch_gets_no_cause(original: Path, tmp_path: Path) -> None:
    report = diagnose(split(original, tmp_path / "run"))
    assert {cause["verdict"] for cause in report["causes"]} <= {"ruled out", "no sign of it"}
    assert "trains as it is" in report["conclusion"]


P7 = {"p001": {"fails": "lfs_adam", "at": 20, "at_from": (0.2, 100), "below": 0.3}}


def test_the_p7_story_ends_with_its_profile_and_takes_no_user_s_file(original: Path, tmp_path: Path) -> None:
    """Fails below init_scaling 0.3 whatever means_lr is, as p7 did; the rest is healthy."""
    options = split(original, tmp_path / "run")
    theirs = tmp_path / "mine" / "lfs_configs" / "run_p001.json"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("{}")
    options = replace(options, profile_folders=(tmp_path / "mine",))
    report = diagnose(options, TrainerDouble(P7), against="p000")
    assert first(report) == ("init_scaling", "confirmed")
    assert theirs.read_text() == "{}"
    profile = json.loads((theirs.parent / "run_p001_2.json").read_text())
    assert profile["init_scaling"] == 0.3
    assert profile["iterations"] == 120
    kinds = {one["kind"] for one in report["experiments"]}
    assert kinds == {"baseline", "swap", "half", "grid"}


def test_lichtfeld_is_diagnosed_with_lichtfeld_which_takes_the_swapped_data_sets(
    original: Path, tmp_path: Path
) -> None:
    """The double reads every file of a data set as strictly as the build does: one it refused would be data_error."""
    doom = [{"do": "launch_config", "at": 20, "below_init_scaling": 0.25}]
    binary = install(tmp_path / "bin", "0.5.2", rules=doom)
    options = split(original, tmp_path / "run", "training.trainer=lichtfeld", "patching.holdout_every=0")
    report = diagnose(options, LichtfeldTrainer(binary, cache=tmp_path / "cache"), against="p000")
    outcomes = {one["kind"]: one["failure"] for one in report["experiments"] if one["init_scaling"] < 0.25}
    assert outcomes["swap"] == outcomes["half"] == outcomes["baseline"] == "launch_config"
    assert first(report)[0] == "init_scaling"
    assert report["profile"]["changes"] == {"init_scaling": 0.3}
    page = Path(report["page"])
    logs = re.findall(r'<a href="(experiments/[^"]+)">log</a>', page.read_text())
    assert len(logs) == len(report["experiments"]) and all((page.parent / log).is_file() for log in logs)


def test_a_diagnosis_goes_on_where_it_was_cut_off(original: Path, tmp_path: Path) -> None:
    options = split(original, tmp_path / "run")
    cut = diagnose(options, TrainerDouble(P7), budget="0.01s")
    assert cut["unfinished"] and not cut["experiments"]
    whole = diagnose(options, TrainerDouble(P7))
    assert not whole["unfinished"]
    logs = {path: path.stat().st_mtime_ns for path in options.layout.diagnosis("p001").root.rglob("log.txt")}
    assert logs
    again = diagnose(options, TrainerDouble(P7))
    assert again == whole
    assert {path: path.stat().st_mtime_ns for path in logs} == logs


def test_what_cannot_be_diagnosed_is_one_sentence(original: Path, tmp_path: Path) -> None:
    options = split(original, tmp_path / "run")
    with pytest.raises(RunFolderError, match="has no patch p009; it has p000 to"):
        diagnose(options, against="p009")
    with pytest.raises(ConfigError, match="--budget soon"):
        diagnose(options, budget="soon")


def test_a_model_that_cannot_be_read_is_the_cause(original: Path, tmp_path: Path) -> None:
    options = split(original, tmp_path / "run")
    images = options.layout.patch("p001").sparse / "images.bin"
    images.write_bytes(images.read_bytes()[:-40])
    report = diagnose(options)
    assert first(report) == ("unreadable_data", "confirmed")
    assert RunLayout(options.layout.root).diagnosis("p001").page.is_file()
