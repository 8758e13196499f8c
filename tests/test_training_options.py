"""What the loop can do beyond gsplat's preset: each option does what it is for, and survives an interruption."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import synthetic_scene, write_scene
from test_training import SETTINGS, data_of, never, stop_at, training

from splatpipe.scene.arrays import Scene
from splatpipe.splatting.clipping import LEARN, GradientClip
from splatpipe.splatting.loop import Seen, Stopped, Training, TrainingData, render
from splatpipe.splatting.raster import BLUR
from splatpipe.splatting.settings import OPTIONS, TrainSettings
from splatpipe.splatting.views import ViewLoader

pytestmark = pytest.mark.usefixtures("one_thread")

EVERYTHING = {
    "views_per_step": 2,
    "warmup_steps": 30,
    "clip_gradients": 1.5,
    "random_background": True,
    "antialiased": True,
}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return write_scene(tmp_path_factory.mktemp("scene"), synthetic_scene(n_cameras=9, n_points=150))


class Watch:
    """Keeps the gradient of the means and the learning rates of each step."""

    def __init__(self) -> None:
        self.gradients: list[torch.Tensor] = []
        self.rates: list[dict[str, float]] = []

    def after_step(self, training: Training, seen: Seen) -> None:
        gradient = training.params["means"].grad
        assert gradient is not None
        self.gradients.append(gradient.clone())
        self.rates.append(dict(training.optimizer.lrs))


def watched(data: TrainingData, folder: Path, steps: int, **changes: object) -> Watch:
    run, _ = training(data, folder, **changes)
    run.observer = watch = Watch()
    with pytest.raises(Stopped):
        run.run(stop_at(run, steps))
    return watch


def test_every_option_survives_an_interruption_to_the_bit(scene: Scene, tmp_path: Path) -> None:
    whole, _ = training(data_of(scene), tmp_path / "whole", **EVERYTHING)
    expected = whole.run(never)
    part, _ = training(data_of(scene), tmp_path / "parts", **EVERYTHING)
    with pytest.raises(Stopped):
        part.run(stop_at(part, 47))
    last, _ = training(data_of(scene), tmp_path / "parts", **EVERYTHING)
    assert last.resumed_from == 47
    result = last.run(never)
    assert all(torch.equal(result[name], value) for name, value in expected.items())
    assert last.health == whole.health


def test_options_left_alone_do_not_change_what_a_checkpoint_belongs_to(scene: Scene, tmp_path: Path) -> None:
    run, _ = training(data_of(scene), tmp_path)
    plain = {name: value for name, value in vars(run.settings).items() if name not in OPTIONS}
    # the identity that checkpoints had before there were options
    facts = [plain | {"checkpoint_every": 0, "image_cache_gb": 0}, 0.5, scene.names, scene.n_points]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(scene.points).tobytes())
    assert run.key == digest.hexdigest()
    assert training(data_of(scene), tmp_path, warmup_steps=5)[0].key != run.key


def test_a_step_of_several_views_averages_their_gradients(scene: Scene, tmp_path: Path) -> None:
    data = data_of(scene)
    # the first epoch's order is the same whatever the views in one step
    run, _ = training(data, tmp_path / "order")
    first = [run._cameras(step)[0] for step in range(3)]
    alone = [
        watched(replace(data, views=data.views.take(np.array([camera]))), tmp_path / f"{camera}", 1).gradients[0]
        for camera in first
    ]
    together = watched(data, tmp_path / "three", 1, views_per_step=3)
    torch.testing.assert_close(together.gradients[0], sum(alone) / 3, rtol=1e-4, atol=1e-9)
    assert together.rates[0]["scales"] == pytest.approx(SETTINGS.scales_lr * 3**0.5)


def test_learning_rates_rise_over_the_warm_up(scene: Scene, tmp_path: Path) -> None:
    rates = [rate["sh0"] / SETTINGS.sh0_lr for rate in watched(data_of(scene), tmp_path, 12, warmup_steps=10).rates]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1, 1])


def test_a_gradient_far_above_its_like_is_clipped_and_counted(scene: Scene, tmp_path: Path) -> None:
    clip, param = GradientClip(3.0), torch.nn.Parameter(torch.zeros(100, 3))
    for step in range(LEARN + 5):
        param.grad = torch.full((100, 3), 1e-4 * (1 + 0.1 * (step % 3)))
        usual = float(param.grad.norm())
        assert clip({"means": param}) == ()
    direction = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    param.grad = 1000 * direction
    assert clip({"means": param}) == ("means",)
    assert float(param.grad.norm()) == pytest.approx(3 * usual, rel=0.2)
    torch.testing.assert_close(param.grad / param.grad.norm(), direction / direction.norm())
    run, _ = training(data_of(scene), tmp_path, clip_gradients=1.2)
    run.run(never)
    assert run.health.clipped and all(0 < count < run.step for count in run.health.clipped.values())


def test_a_random_background_makes_dark_things_opaque(scene: Scene, tmp_path: Path) -> None:
    """A black photograph is explained by black Gaussians, and on a black background just as well by none at all."""
    folder = tmp_path / "black"
    folder.mkdir()
    for name in scene.names:
        Image.new("RGB", (64, 48)).save(folder / name)
    dark = data_of(replace(scene, image_dir=folder))
    opacity = {}
    for random in (False, True):
        run, _ = training(dark, tmp_path / f"{random}", iterations=200, random_background=random)
        opacity[random] = float(torch.sigmoid(run.run(never)["opacities"].detach()).mean())
    assert opacity[True] > 2 * opacity[False]


def test_an_antialiased_splat_looks_the_same_from_farther_away(scene: Scene, tmp_path: Path) -> None:
    """Small Gaussians at a quarter of the size are what averaging 4 by 4 pixels makes of them; else they swell."""
    data = data_of(scene)
    run, _ = training(data, tmp_path, init_scaling=0.05, init_opacity=0.9)
    pictures = {}
    for factor in (1.0, 4.0):
        loader = ViewLoader(data.views.resized(factor, 0), torch.device("cpu"), 1 << 24)
        for blur in (None, BLUR):
            image = render(run.params, loader.get(0), sh_degree=0, antialiased=blur)[0]
            pictures[blur, factor] = image.detach().numpy()
        loader.close()
    error = {}
    for blur in (None, BLUR):
        averaged = pictures[blur, 1.0].reshape(12, 4, 16, 4, 3).mean((1, 3))
        error[blur] = abs(pictures[blur, 4.0].mean() / averaged.mean() - 1)
    assert error[BLUR] < 0.15
    assert error[None] > 1


def test_antialiased_training_looks_at_antialiased_pictures(scene: Scene, tmp_path: Path) -> None:
    data = data_of(scene)
    pictures: dict[bool, torch.Tensor] = {}
    for wanted in (False, True):
        run, _ = training(data, tmp_path / f"{wanted}", init_scaling=0.05, antialiased=wanted)
        loader = ViewLoader(data.views, torch.device("cpu"), 1 << 24)
        expected = render(run.params, loader.get(run._cameras(0)[0]), sh_degree=0, antialiased=BLUR if wanted else None)
        loader.close()
        run.observer = Keep(pictures, wanted)
        with pytest.raises(Stopped):
            run.run(stop_at(run, 1))
        assert torch.equal(pictures[wanted], expected[0].detach())
    assert pictures[True].mean() < 0.5 * pictures[False].mean()


class Keep:
    def __init__(self, pictures: dict[bool, torch.Tensor], key: bool) -> None:
        self.pictures, self.key = pictures, key

    def after_step(self, training: Training, seen: Seen) -> None:
        self.pictures[self.key] = seen.image


def test_render_puts_the_background_behind_the_gaussians(scene: Scene, tmp_path: Path) -> None:
    data = data_of(scene)
    run, _ = training(data, tmp_path)
    loader = ViewLoader(data.views, torch.device("cpu"), 1 << 24)
    view, red = loader.get(0), torch.tensor([1.0, 0.0, 0.0])
    loader.close()
    black, on_red = (render(run.params, view, sh_degree=0, background=colour)[0] for colour in (None, red))
    behind = (on_red - black).detach()
    assert float(behind[..., 0].max()) > 0.5
    assert float(behind[..., 1:].abs().max()) < 1e-6


def test_the_schedule_stretches_the_warm_up() -> None:
    assert replace(TrainSettings(), warmup_steps=100).scaled(600).warmup_steps == 200
