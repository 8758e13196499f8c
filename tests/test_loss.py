"""The fused loss against torch's convolutions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from thread_counts import thread_counts

from splatpipe.splatting.loss import photometric_loss, ssim, ssim_torch


def images(height: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    target = torch.rand(height, width, 3, generator=random)
    return (target + 0.2 * torch.randn(height, width, 3, generator=random)).clamp(0, 1), target


def plain(render: torch.Tensor, target: torch.Tensor, share: float) -> torch.Tensor:
    return (1 - share) * (render - target).abs().mean() + share * (1 - ssim_torch(render, target))


def assert_equal_to_torch(height: int, width: int, share: float) -> None:
    render, target = images(height, width, height + width)
    ours = render.clone().requires_grad_()
    value = photometric_loss(ours, target, share)
    value.backward()
    theirs = render.double().requires_grad_()
    expected = plain(theirs, target.double(), share)
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    largest = theirs.grad.abs().max().item()
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-3, atol=2e-5 * largest)


@settings(max_examples=15, deadline=None)
@given(st.integers(11, 70), st.integers(11, 90), st.sampled_from([0.0, 0.2, 1.0]))
def test_value_and_gradient_equal_torch(height, width, share):
    assert_equal_to_torch(height, width, share)


@pytest.mark.parametrize("width", [256, 257, 600])
def test_seams_between_strips_do_not_show(width):
    assert_equal_to_torch(30, width, 0.5)


def test_result_does_not_depend_on_the_number_of_threads():
    render, target = images(80, 61)
    results = []
    for _ in thread_counts(1, 2, 5):
        leaf = render.clone().requires_grad_()
        value = photometric_loss(leaf, target, 0.2)
        value.backward()
        results.append((value.item(), leaf.grad.clone()))
    assert all(value == results[0][0] and torch.equal(gradient, results[0][1]) for value, gradient in results)


def test_gradient_is_scaled_by_what_follows():
    render, target = images(20, 20)
    once, thrice = render.clone().requires_grad_(), render.clone().requires_grad_()
    photometric_loss(once, target, 0.2).backward()
    (3 * photometric_loss(thrice, target, 0.2)).backward()
    torch.testing.assert_close(thrice.grad, 3 * once.grad)


def test_equal_images_have_no_loss_and_full_ssim():
    image, _ = images(32, 32)
    assert photometric_loss(image, image, 0.2).item() == pytest.approx(0, abs=1e-6)
    assert ssim(image, image) == pytest.approx(1, abs=1e-6)


def test_ssim_of_two_flat_images_is_the_ratio_of_their_means():
    # without variance only the luminance term is left: (2 m n + C1) / (m^2 + n^2 + C1)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert ssim(torch.full((15, 15, 3), 0.2), torch.full((15, 15, 3), 0.6)) == pytest.approx(expected, rel=1e-4)


def test_image_without_a_window_is_compared_by_l1_alone():
    render, target = images(10, 50)
    assert photometric_loss(render, target, 0.7).item() == pytest.approx((render - target).abs().mean().item())
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim(render, target)


@pytest.mark.parametrize(
    ("render", "target", "message"),
    [
        (torch.zeros(20, 20), torch.zeros(20, 20), "render must be a tensor of shape"),
        (torch.zeros(20, 20, 3), torch.zeros(20, 21, 3), "target has shape"),
        (torch.zeros(20, 20, 3), torch.zeros(20, 20, 3, dtype=torch.uint8), "target must be float32"),
    ],
)
def test_wrong_image_is_named(render, target, message):
    with pytest.raises(ValueError, match=message):
        photometric_loss(render, target, 0.2)
