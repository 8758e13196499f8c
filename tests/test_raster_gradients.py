"""Our images and gradients against a float64 brute-force reference."""

from __future__ import annotations

import pytest
import torch
from raster_reference import render, rotation

from splatpipe.splatting.raster import rasterization

NAMES = ("means", "quats", "scales", "opacities", "colors")


def cloud(n: int, seed: int, degree: int | None, size: float = 0.1) -> dict[str, torch.Tensor]:
    """Gaussians around z = 4, opacities clear of the thresholds where a step in float32 could flip."""
    random = torch.Generator().manual_seed(seed)
    means = torch.randn(n, 3, generator=random) * torch.tensor([1.4, 0.9, 0.8]) + torch.tensor([0.0, 0.0, 4.0])
    shape = (n, 3) if degree is None else (n, 16, 3)
    return {
        "means": means,
        "quats": torch.randn(n, 4, generator=random) * 3,
        "scales": size * torch.exp(0.7 * torch.randn(n, 3, generator=random)),
        "opacities": 0.02 + 0.9 * torch.rand(n, generator=random),
        "colors": torch.rand(shape, generator=random) if degree is None else 0.3 * torch.randn(shape, generator=random),
    }


VIEW = torch.eye(4)
VIEW[:3, :3] = rotation(torch.tensor([[0.98, 0.1, -0.15, 0.05]], dtype=torch.float64))[0].float()
VIEW[:3, 3] = torch.tensor([0.1, -0.05, 0.2])
INTRINSICS = torch.tensor([[60.0, 0, 27.3], [0, 66.0, 20.8], [0, 0, 1.0]])
SIZE = (53, 37)  # neither a multiple of the tile


def both(gaussians, *, background=None, antialiased=False, degree=None, view=VIEW, K=INTRINSICS, size=SIZE, **planes):
    """(image, alpha, gradients) of ours in float32 and of the reference in float64."""
    random = torch.Generator().manual_seed(5)
    v_image = torch.randn(size[1], size[0], 3, generator=random)
    v_alpha = torch.randn(size[1], size[0], generator=random)
    ours = {k: v.clone().requires_grad_() for k, v in gaussians.items()}
    shades = None if background is None else background[None]
    mode = "antialiased" if antialiased else "classic"
    image, alpha, _ = rasterization(
        *(ours[k] for k in NAMES), view[None], K[None], *size,
        sh_degree=degree, backgrounds=shades, rasterize_mode=mode, **planes,
    )  # fmt: skip
    ((image[0] * v_image).sum() + (alpha[0, :, :, 0] * v_alpha).sum()).backward()
    theirs = {k: v.double().requires_grad_() for k, v in gaussians.items()}
    image64, alpha64 = render(
        *(theirs[k] for k in NAMES), view.double(), K.double(), *size, sh_degree=degree,
        background=None if background is None else background.double(), antialiased=antialiased, **planes,
    )  # fmt: skip
    ((image64 * v_image).sum() + (alpha64 * v_alpha).sum()).backward()
    return (
        (image[0], alpha[0, :, :, 0], {k: v.grad for k, v in ours.items()}),
        (image64, alpha64, {k: v.grad for k, v in theirs.items()}),
    )


def assert_same(ours, theirs, tolerance: float = 2e-4) -> None:
    """Images to 2e-5; each gradient to `tolerance` of its own largest value."""
    assert torch.isfinite(ours[0]).all()
    torch.testing.assert_close(ours[0].double(), theirs[0], rtol=0, atol=2e-5)
    torch.testing.assert_close(ours[1].double(), theirs[1], rtol=0, atol=2e-5)
    for name in NAMES:
        scale = theirs[2][name].abs().max().item()
        torch.testing.assert_close(ours[2][name].double(), theirs[2][name], rtol=1e-3, atol=tolerance * scale, msg=name)


@pytest.mark.parametrize("degree", [None, 0, 1, 2, 3])
def test_image_and_every_gradient_equal_the_reference(degree):
    assert_same(*both(cloud(60, 1, degree), degree=degree))


@pytest.mark.parametrize("antialiased", [False, True])
def test_background_and_antialiasing_equal_the_reference(antialiased):
    shade = torch.tensor([0.9, 0.2, 0.5])
    assert_same(*both(cloud(50, 2, None, 0.03), background=shade, antialiased=antialiased))


def test_opaque_gaussians_on_top_of_each_other_equal_the_reference():
    gaussians = cloud(120, 3, None, 0.5)
    gaussians["opacities"] = torch.full((120,), 0.97)
    ours, theirs = both(gaussians)
    assert (theirs[1] > 0.9998).any()  # the transmittance stop is reached
    assert_same(ours, theirs)


def test_full_opacity_is_clamped_as_in_the_reference():
    gaussians = cloud(30, 4, None, 0.4)
    gaussians["opacities"] = torch.ones(30)
    assert_same(*both(gaussians))


def test_huge_and_tiny_gaussians_equal_the_reference():
    gaussians = cloud(40, 5, None)
    gaussians["scales"][::4] *= 40
    gaussians["scales"][1::4] *= 1e-4
    gaussians["scales"][2::4, 0] *= 30  # needles
    assert_same(*both(gaussians))


def test_gaussians_behind_and_beside_the_camera_equal_the_reference():
    gaussians = cloud(80, 6, None, 0.3)
    gaussians["means"] = (gaussians["means"] - torch.tensor([0.0, 0.0, 4.0])) * 3  # all around the camera
    gaussians["means"][:, 2] += 0.5
    assert_same(*both(gaussians, near_plane=0.2), tolerance=1e-3)


def test_far_plane_hides_what_lies_behind_it():
    assert_same(*both(cloud(40, 7, None), far_plane=4.0))


def test_pair_of_coefficients_equals_one_tensor():
    gaussians = cloud(40, 8, 3)
    sh0, shN = gaussians["colors"][:, :1].contiguous(), gaussians["colors"][:, 1:].contiguous()
    geometry = [gaussians[k] for k in NAMES[:4]]
    views = (VIEW[None], INTRINSICS[None], *SIZE)
    whole = gaussians["colors"].clone().requires_grad_()
    pair = (sh0.requires_grad_(), shN.requires_grad_())
    for degree in (0, 1, 3):
        for tensor in (whole, *pair):
            tensor.grad = None
        a, _, _ = rasterization(*geometry, whole, *views, sh_degree=degree)
        b, _, _ = rasterization(*geometry, pair, *views, sh_degree=degree)
        assert torch.equal(a, b)
        (a * a).sum().backward()
        (b * b).sum().backward()
        assert torch.equal(whole.grad[:, :1], pair[0].grad)
        if degree == 0:
            assert pair[1].grad is None
        else:
            assert torch.equal(whole.grad[:, 1:], pair[1].grad)
            assert not pair[1].grad[:, (degree + 1) ** 2 - 1 :].any()


def test_two_cameras_give_two_images_and_the_sum_of_their_gradients():
    gaussians = cloud(50, 9, None)
    views = torch.stack([VIEW, torch.eye(4)])
    Ks = torch.stack([INTRINSICS, INTRINSICS * torch.tensor([[0.8], [0.8], [1.0]])])

    def gradients(select):
        leaves = {k: v.clone().requires_grad_() for k, v in gaussians.items()}
        images, _, meta = rasterization(*(leaves[k] for k in NAMES), views[select], Ks[select], *SIZE)
        (images**2).sum().backward()
        return images, {k: v.grad for k, v in leaves.items()}, meta

    images, together, meta = gradients(slice(0, 2))
    first, one, meta_one = gradients(slice(0, 1))
    second, two, meta_two = gradients(slice(1, 2))
    assert torch.equal(images, torch.cat([first, second]))
    assert meta["n_isects"] == meta_one["n_isects"] + meta_two["n_isects"]
    for name in NAMES:
        torch.testing.assert_close(together[name], one[name] + two[name])
