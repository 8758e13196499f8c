"""gsplat's kernels on a GPU against our CPU rasteriser: `make gpu-check` (skipped where there is no GPU)."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from scenes import EXAMPLE, scene_from, synthetic_scene

from splatpipe import pipeline
from splatpipe.splatting.mcmc import relocated_values
from splatpipe.splatting.raster import rasterization

pytestmark = pytest.mark.gpu
NAMES = ("means", "quats", "scales", "opacities", "colors")


def gaussians(device: str, count: int = 2000, seed: int = 0) -> list[torch.Tensor]:
    """Leaf tensors before the cameras of `views`, some faint, some large, some out of sight."""
    rng = np.random.default_rng(seed)
    values = (
        rng.uniform([-6, -6, -1], [6, 6, 2], (count, 3)),
        rng.normal(size=(count, 4)),
        np.exp(rng.normal(-2.5, 0.8, (count, 3))),
        rng.uniform(0.003, 0.99, count),
        rng.normal(0, 0.3, (count, 16, 3)),
    )
    return [torch.tensor(value, dtype=torch.float32, device=device, requires_grad=True) for value in values]


def views(device: str) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    one = synthetic_scene(n_cameras=2, n_points=50)
    scene = scene_from(one.points, one.viewmats, size=(320, 200), focal=250.0)
    viewmats, Ks = (torch.tensor(value, dtype=torch.float32, device=device) for value in (scene.viewmats, scene.Ks))
    return viewmats, Ks, 320, 200


def rendered(device: str, mode: str, degree: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Images, opacities and visibility; and every input's gradient of a loss that weighs each pixel differently."""
    inputs = gaussians(device)
    viewmats, Ks, width, height = views(device)
    images, alphas, meta = rasterization(
        *inputs, viewmats, Ks, width, height, sh_degree=degree, rasterize_mode=mode  # type: ignore[arg-type]
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand(images.shape, generator=generator).to(device)
    ((images * weights).sum() + (alphas * weights[..., :1]).sum()).backward()
    seen = (meta["radii"] > 0).all(-1)
    outputs = [value.detach().cpu().numpy() for value in (images, alphas, seen)]
    return outputs, [value.grad.cpu().numpy() for value in inputs]  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", ["classic", "antialiased"])
@pytest.mark.parametrize("degree", [0, 3])
def test_both_rasterisers_give_the_same_pictures_and_gradients(mode: str, degree: int) -> None:
    (image, alpha, seen), gradients = rendered("cpu", mode, degree)
    (image_gpu, alpha_gpu, seen_gpu), gradients_gpu = rendered("cuda", mode, degree)
    # The CPU draws a Gaussian only as far as its alpha reaches 1/255, gsplat to 3 sigma: its last faint pixels differ.
    np.testing.assert_allclose(image, image_gpu, atol=1e-2)
    assert np.abs(image - image_gpu).mean() < 1e-4
    np.testing.assert_allclose(alpha, alpha_gpu, atol=1e-2)
    assert (seen == seen_gpu).mean() > 0.995
    for name, ours, theirs in zip(NAMES, gradients, gradients_gpu, strict=True):
        scale = np.abs(theirs).max()
        assert np.abs(ours - theirs).max() < 0.02 * scale, name
        assert np.abs(ours - theirs).mean() < 1e-4 * scale, name


def test_relocation_is_the_same_on_both_devices() -> None:
    """It is our own, in torch: gsplat's kernel, which some compilers make return NaN, is not used."""
    opacities, scales = torch.linspace(0.01, 0.99, 51), torch.full((51, 3), 0.1)
    ratios = torch.arange(1, 52)
    cpu = relocated_values(opacities, scales, ratios)
    gpu = relocated_values(opacities.cuda(), scales.cuda(), ratios.cuda())
    for ours, theirs in zip(cpu, gpu, strict=True):
        assert torch.isfinite(theirs).all()
        torch.testing.assert_close(ours, theirs.cpu(), rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_example_trains_as_well_on_both(tmp_path: Path) -> None:
    found = {}
    for device in ("cpu", "cuda"):
        settings = ["training.iterations=2000", "training.max_width=400", f"training.device={device}"]
        options = pipeline.RunOptions.resolve(EXAMPLE, tmp_path / device, None, settings, None, None)
        assert pipeline.run(options, stop=threading.Event()) == 0
        found[device] = pipeline.status(tmp_path / device)["merged"]["psnr"]
    assert found["cuda"] == pytest.approx(found["cpu"], abs=0.1)
