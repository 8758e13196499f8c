"""What a user of the CPU rasteriser may rely on beside the numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_raster_gradients import INTRINSICS, NAMES, SIZE, VIEW, cloud
from thread_counts import thread_counts

from splatpipe.splatting.raster import pool, rasterization, view, warm_up, warmup


def draw(gaussians, view=VIEW, K=INTRINSICS, size=SIZE, **options):
    return rasterization(*(gaussians[k] for k in NAMES), view[None], K[None], *size, **options)


def gradients(gaussians, **options) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    leaves = {k: v.clone().requires_grad_() for k, v in gaussians.items()}
    image = draw(leaves, **options)[0]
    (image**2).sum().backward()
    return image.detach(), {k: v.grad for k, v in leaves.items()}


def many(n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    return cloud(n, seed, 2, 0.03)


def test_image_and_gradients_do_not_depend_on_the_number_of_threads():
    results = [gradients(many(20_000), sh_degree=2) for _ in thread_counts(1, 2, 3, 7)]
    for image, grads in results[1:]:
        assert torch.equal(image, results[0][0])
        assert all(torch.equal(grads[k], results[0][1][k]) for k in NAMES)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**20), st.integers(1, 60))
def test_order_of_the_gaussians_does_not_matter(seed, n):
    gaussians = cloud(n, seed, None)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    image, grads = gradients(gaussians)
    permuted, permuted_grads = gradients({k: v[order].contiguous() for k, v in gaussians.items()})
    assert torch.equal(image, permuted)
    for name in NAMES:
        torch.testing.assert_close(permuted_grads[name], grads[name][order], rtol=1e-4, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 20), st.integers(0, 30), st.integers(0, 30), st.integers(0, 40), st.integers(0, 99))
def test_margin_around_an_image_leaves_its_inside_as_it_was(left, top, right, bottom, seed):
    gaussians = cloud(40, seed, None)
    gaussians["means"][:, :2] *= 0.3  # well inside the view, where the Jacobian is not clamped
    K = torch.tensor([[60.0, 0, 32], [0, 60, 40], [0, 0, 1]])
    moved = K.clone()
    moved[0, 2] += left
    moved[1, 2] += top
    image = draw(gaussians, torch.eye(4), K, (64, 80))[0][0]
    framed = draw(gaussians, torch.eye(4), moved, (left + 64 + right, top + 80 + bottom))[0][0]
    torch.testing.assert_close(framed[top : top + 80, left : left + 64], image, rtol=0, atol=2e-5)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**20))
def test_alpha_and_background_add_up(seed):
    gaussians = cloud(30, seed, None)
    gaussians["colors"] = torch.ones(30, 3)
    image, alpha, _ = draw(gaussians)
    torch.testing.assert_close(image, alpha.expand(-1, -1, -1, 3), rtol=0, atol=1e-5)
    over_white, _, _ = draw(gaussians, backgrounds=torch.ones(1, 3))
    torch.testing.assert_close(over_white, torch.ones_like(image), rtol=0, atol=1e-5)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 17])
def test_any_number_of_gaussians_gives_each_its_gradient(n):
    gaussians = cloud(n, 3, None, 0.5)
    gaussians["means"][:, :2] *= 0.2
    _, grads = gradients(gaussians)
    assert (grads["opacities"] != 0).all()


def test_no_gaussian_gives_the_background():
    nothing = {k: v[:0] for k, v in cloud(1, 0, None).items()}
    image, alpha, meta = draw(nothing, backgrounds=torch.tensor([[0.1, 0.2, 0.3]]))
    assert torch.equal(image[0, 5, 7], torch.tensor([0.1, 0.2, 0.3]))
    assert not alpha.any() and meta["radii"].shape == (1, 0, 2) and meta["n_isects"] == 0


def test_camera_that_sees_nothing_gives_the_background_and_zero_gradients():
    gaussians = cloud(50, 0, 2)
    gaussians["means"][:, 2] -= 100
    leaves = {k: v.requires_grad_() for k, v in gaussians.items()}
    image, _, meta = draw(leaves, sh_degree=2, backgrounds=torch.full((1, 3), 0.25))
    assert (image == 0.25).all() and not meta["radii"].any()
    image.sum().backward()
    assert not any(v.grad.any() for v in leaves.values())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["means", "quats", "scales", "opacities"])
def test_gaussian_that_is_not_finite_is_not_drawn_and_harms_no_other(name, value):
    gaussians = cloud(33, 1, 1)
    good = torch.arange(33) % 5 != 0
    expected, expected_grads = gradients({k: v[good].contiguous() for k, v in gaussians.items()}, sh_degree=1)
    gaussians[name].reshape(33, -1)[~good, 0] = value
    if name == "opacities" and value < 0:
        value = 0.0
    image, grads = gradients(gaussians, sh_degree=1)
    assert torch.equal(image, expected)
    for key in NAMES:
        assert torch.equal(grads[key][good], expected_grads[key])
        assert not grads[key][~good].any()


def test_gaussian_whose_colour_is_not_finite_is_not_drawn():
    gaussians = cloud(20, 1, 1)
    gaussians["means"][0] = torch.tensor([0.0, 0.0, 3.0])  # in the middle of the view
    expected, _ = gradients({k: v[1:].contiguous() for k, v in gaussians.items()}, sh_degree=1)
    gaussians["colors"][0, 2, 1] = float("nan")
    image, grads = gradients(gaussians, sh_degree=1)
    assert torch.equal(image, expected)
    assert not grads["means"][0].any()


def test_zero_quaternion_is_not_drawn():
    gaussians = cloud(9, 2, None)
    gaussians["quats"][4] = 0
    image, _, meta = draw(gaussians)
    assert torch.isfinite(image).all() and not meta["radii"][0, 4].any()


def test_extreme_sizes_do_not_crash():
    gaussians = cloud(40, 4, None)
    gaussians["scales"][::2] = 1e6
    gaussians["scales"][1::2] = 1e-12
    gaussians["means"][:10, 2] = 0.0101
    image, grads = gradients(gaussians)
    assert torch.isfinite(image).all()
    assert all(torch.isfinite(v).all() for v in grads.values())


def test_cover_beyond_all_measure_is_a_memory_error_not_a_crash(monkeypatch):
    monkeypatch.setattr(view, "_MAX_SLOTS", 500)
    gaussians = cloud(100, 0, None)
    gaussians["scales"][:] = 50.0
    with pytest.raises(MemoryError, match="too many for one image"):
        draw(gaussians)
    gaussians["scales"][:] = 0.01
    assert draw(gaussians)[2]["n_isects"] > 0  # and it still works afterwards


def test_gradients_that_are_kept_are_not_overwritten_by_the_next_step():
    first = gradients(many(500), sh_degree=2)[1]
    copies = {k: v.clone() for k, v in first.items()}
    gradients(many(500, seed=1), sh_degree=2)
    assert all(torch.equal(first[k], copies[k]) for k in NAMES)


def test_gradients_accumulate_over_two_backward_passes():
    leaves = {k: v.requires_grad_() for k, v in cloud(30, 0, 1).items()}
    for seed in (0, 1):
        weight = torch.rand(1, SIZE[1], SIZE[0], 3, generator=torch.Generator().manual_seed(seed))
        (draw(leaves, sh_degree=1)[0] * weight).sum().backward()
    twice = {k: v.grad.clone() for k, v in leaves.items()}
    for leaf in leaves.values():
        leaf.grad = None
    both = sum(torch.rand(1, SIZE[1], SIZE[0], 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    (draw(leaves, sh_degree=1)[0] * both).sum().backward()
    for name in NAMES:
        torch.testing.assert_close(twice[name], leaves[name].grad, rtol=1e-3, atol=1e-3)


def test_two_images_may_be_open_at_once():
    one, two = cloud(40, 0, None), cloud(60, 1, None)
    expected = gradients(one)[1], gradients(two)[1]
    leaves = [{k: v.clone().requires_grad_() for k, v in g.items()} for g in (one, two)]
    images = [draw(leaf)[0] for leaf in leaves]
    with torch.no_grad():
        draw(two)  # a third in between, without gradients
    (images[0] ** 2).sum().backward()
    (images[1] ** 2).sum().backward()
    for leaf, grads in zip(leaves, expected, strict=True):
        assert all(torch.equal(leaf[k].grad, grads[k]) for k in NAMES)


def test_lower_degree_after_a_higher_one_leaves_no_old_gradients():
    gaussians = cloud(30, 0, 3)
    gradients(gaussians, sh_degree=3)
    _, grads = gradients(gaussians, sh_degree=1)
    assert grads["colors"][:, 1:4].any() and not grads["colors"][:, 4:].any()


WRONG = [
    ("means", lambda t: t[:, :2], r"means must have shape \(\?, 3\), not \(12, 2\)"),
    ("quats", lambda t: t[:5], r"quats must have shape \(12, 4\), not \(5, 4\)"),
    ("scales", lambda t: t.double(), "scales must be float32"),
    ("opacities", lambda t: t[:, None], "opacities must have shape"),
    ("quats", lambda t: t.T.contiguous().T, "quats must be contiguous"),
    ("colors", lambda t: t.numpy(), "colors must be a tensor"),
    ("opacities", lambda t: t.to("meta"), "opacities is on meta, but means is on cpu"),
]


@pytest.mark.parametrize(("name", "change", "message"), WRONG)
def test_wrong_input_is_named(name, change, message):
    gaussians = cloud(12, 0, None)
    gaussians[name] = change(gaussians[name])
    with pytest.raises(ValueError, match=message):
        draw(gaussians)


def test_wrong_views_and_degrees_are_named():
    gaussians = cloud(12, 0, 1)
    with pytest.raises(ValueError, match="colors holds 4 coefficients, but sh_degree 2 needs 9"):
        draw(gaussians | {"colors": torch.zeros(12, 4, 3)}, sh_degree=2)
    with pytest.raises(ValueError, match="sh_degree must be"):
        draw(gaussians, sh_degree=4)
    with pytest.raises(ValueError, match=r"Ks must have shape \(1, 3, 3\)"):
        draw(gaussians, K=torch.eye(4), sh_degree=1)
    with pytest.raises(ValueError, match="width must be a positive number"):
        draw(gaussians, size=(0, 5), sh_degree=1)
    with pytest.raises(ValueError, match="rasterize_mode"):
        draw(gaussians, sh_degree=1, rasterize_mode="sharp")


def test_every_chunk_runs_once_whatever_the_threads():
    for _ in thread_counts(1, 2, 5):
        hits = np.zeros(100, int)

        def task(chunk: int, hits: np.ndarray = hits) -> None:
            hits[chunk] += 1
            pool.run(lambda inner: None, 3)  # a loop within a loop

        pool.run(task, 100)
        assert (hits == 1).all()


def test_exception_in_a_thread_reaches_the_caller_and_the_pool_lives_on():
    def task(chunk: int) -> None:
        if chunk == 3:
            raise ZeroDivisionError("chunk 3")

    for _ in thread_counts(2):
        with pytest.raises(ZeroDivisionError, match="chunk 3"):
            pool.run(task, 10)
        pool.run(lambda chunk: None, 10)


def test_warm_up_announces_the_first_compile_only(tmp_path, monkeypatch):
    monkeypatch.setattr(warmup, "compiled_marker", lambda: tmp_path / "compiled")
    said: list[str] = []
    assert warm_up(said.append) is True
    assert warm_up(said.append) is False
    assert len(said) == 1 and "compiling" in said[0]
