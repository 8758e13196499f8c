"""The training loop on small real images: it learns, it resumes exactly, it ends by its guards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scenes import synthetic_scene, write_scene

from splatpipe.scene.arrays import Scene
from splatpipe.splatting.loop import Stopped, Training, TrainingData, TrainingFailure, TrainingJob
from splatpipe.splatting.settings import TrainSettings
from splatpipe.splatting.views import Views

SETTINGS = TrainSettings(
    iterations=120, scale_schedule=False, max_cap=300, refine_start=20, refine_every=20, refine_stop=100,
    sh_degree=1, sh_degree_interval=40, checkpoint_every=1000,
)  # fmt: skip


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return write_scene(tmp_path_factory.mktemp("scene"), synthetic_scene(n_cameras=9, n_points=150))


def data_of(scene: Scene) -> TrainingData:
    paths = tuple(scene.image_dir / name for name in scene.names)
    views = Views(scene.names, paths, scene.viewmats, scene.Ks, scene.sizes)
    return TrainingData(views, scene.points, scene.colors)


class Events(list[dict[str, Any]]):
    def __call__(self, event: str, **values: Any) -> None:
        self.append({"event": event, **values})

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in self if e["event"] == kind]


def training(
    scene_data: TrainingData, folder: Path, init_scaling: float = 0.5, **changes: Any
) -> tuple[Training, Events]:
    events = Events()
    job = TrainingJob(replace(SETTINGS, **changes), init_scaling, "cpu", folder, 1 << 28)
    return Training(scene_data, job, events), events


def never() -> bool:
    return False


def stop_at(run: Training, step: int) -> Callable[[], bool]:
    return lambda: run.step >= step


def test_the_loss_falls_and_the_count_grows_to_the_cap(scene: Scene, tmp_path: Path) -> None:
    run, events = training(data_of(scene), tmp_path, iterations=400, refine_stop=390, max_cap=200)
    first: list[float] = []
    run.run(lambda: bool(first.append(run.health.loss or 9.0)))
    assert np.mean(first[-50:]) < 0.6 * np.mean(first[1:20])
    assert events.of("refine")[-1]["gaussians"] == 200
    assert events.of("step")[-1]["step"] == 400


def test_an_interrupted_training_continues_to_the_same_result(scene: Scene, tmp_path: Path) -> None:
    whole, _ = training(data_of(scene), tmp_path / "whole")
    expected = whole.run(never)
    for step in (1, 47, 80):
        part, _ = training(data_of(scene), tmp_path / "parts")
        with pytest.raises(Stopped):
            part.run(stop_at(part, step))
        assert part.step == step
    last, _ = training(data_of(scene), tmp_path / "parts")
    assert last.resumed_from == 80
    result = last.run(never)
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, rtol=1e-5, atol=1e-6)


def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before(scene: Scene, tmp_path: Path) -> None:
    run, _ = training(data_of(scene), tmp_path, checkpoint_every=30)
    run.run(never)
    newest, older = sorted(tmp_path.glob("step_*.pt"), reverse=True)
    newest.write_bytes(newest.read_bytes()[:1000])
    again, _ = training(data_of(scene), tmp_path)
    assert again.resumed_from == int(older.stem.removeprefix("step_")) == 60


def test_a_checkpoint_of_other_settings_is_not_continued(scene: Scene, tmp_path: Path) -> None:
    run, _ = training(data_of(scene), tmp_path)
    with pytest.raises(Stopped):
        run.run(stop_at(run, 30))
    other, _ = training(data_of(scene), tmp_path, init_scaling=0.6)
    assert other.resumed_from is None


def test_a_camera_that_sees_nothing_is_skipped_counted_and_reported(scene: Scene, tmp_path: Path) -> None:
    data = data_of(scene)
    viewmats = data.views.viewmats.copy()
    viewmats[4, :3, :3] = np.diag([1.0, -1.0, -1.0]) @ viewmats[4, :3, :3]  # turned round its x axis: looks up
    viewmats[4, :3, 3] = np.diag([1.0, -1.0, -1.0]) @ viewmats[4, :3, 3]
    blind = replace(data, views=replace(data.views, viewmats=viewmats))
    run, events = training(blind, tmp_path)
    run.run(never)
    name = scene.names[4]
    assert [e["image"] for e in events.of("blind_camera")] == [name]
    assert run.health.blind_cameras == {name: pytest.approx(SETTINGS.iterations / 9, abs=1)}


def test_when_no_camera_sees_anything_it_says_so(scene: Scene, tmp_path: Path) -> None:
    data = data_of(scene)
    run, _ = training(replace(data, points=data.points + [0, 0, 1000.0]), tmp_path)
    with pytest.raises(TrainingFailure, match="no camera") as caught:
        run.run(never)
    assert caught.value.failure == "data_error"


def test_a_loss_that_is_not_finite_ends_the_training_as_divergence(scene: Scene, tmp_path: Path) -> None:
    run, _ = training(data_of(scene), tmp_path, means_lr=1e30)
    with pytest.raises(TrainingFailure) as caught:
        run.run(never)
    assert caught.value.failure in ("nan_divergence", "data_error")
    assert caught.value.step < 100


def test_gaussians_that_all_fade_end_the_training_as_collapse_before_relocation(scene: Scene, tmp_path: Path) -> None:
    run, _ = training(data_of(scene), tmp_path, opacity_reg=1e4, opacities_lr=1.0)
    with pytest.raises(TrainingFailure, match="faded") as caught:
        run.run(never)
    assert caught.value.failure == "mcmc_collapse"
    assert caught.value.step <= 40


def test_a_photograph_that_cannot_be_read_is_named(scene: Scene, tmp_path: Path) -> None:
    from splatpipe.errors import SceneError

    data = data_of(scene)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(data.views.paths[2].read_bytes()[:300])
    paths = (*data.views.paths[:2], broken, *data.views.paths[3:])
    run, _ = training(replace(data, views=replace(data.views, paths=paths)), tmp_path)
    with pytest.raises(SceneError, match="broken.jpg"):
        run.run(never)


def test_the_schedule_stretches_with_the_number_of_images() -> None:
    base = TrainSettings()
    assert base.scaled(300).iterations == base.scaled(20).iterations == 30_000
    long = base.scaled(600)
    assert (long.iterations, long.refine_every, long.refine_stop, long.sh_degree_interval) == (
        60_000,
        200,
        50_000,
        2000,
    )
    assert long.checkpoint_every == 2000
    assert long.scaled(600) == long


def test_gaussians_that_cover_the_image_impossibly_often_are_out_of_memory_not_a_crash(
    scene: Scene, tmp_path: Path
) -> None:
    data = data_of(scene)
    rng = np.random.default_rng(0)
    points = rng.normal(size=(40_000, 3)) + data.points.mean(0)
    colors = np.full((40_000, 3), 128, np.uint8)
    sizes = np.tile(np.array([[1000, 750]], np.int32), (len(data.views), 1))
    Ks = data.views.Ks * np.array([1000 / 64, 750 / 48, 1])[:, None]
    views = replace(data.views, sizes=sizes, Ks=Ks)
    run, _ = training(TrainingData(views, points, colors), tmp_path, init_scaling=1e4, max_cap=40_000)
    with pytest.raises(TrainingFailure, match="tile intersections") as caught:
        run.run(never)
    assert caught.value.failure == "oom_raster"
