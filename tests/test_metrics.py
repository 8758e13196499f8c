"""Metrics against independent implementations, and photographs as they are loaded for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from splatpipe.errors import SceneError
from splatpipe.splatting.images import load_image, load_pixels, scaled_K, training_size
from splatpipe.splatting.metrics import color_corrected, evaluate_views, psnr, side_by_side, ssim


def pictures(seed: int = 0, height: int = 40, width: int = 57, noise: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.random((height, width, 3))
    return truth + rng.normal(0, noise, truth.shape), truth


def ssim_in_torch(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM by one dense 2-D convolution per moment, no separable filters, no scipy."""
    torch = pytest.importorskip("torch")
    grid = torch.arange(11, dtype=torch.float64) - 5
    window = torch.exp(-(grid[:, None] ** 2 + grid[None, :] ** 2) / (2 * 1.5**2))
    window = (window / window.sum()).expand(3, 1, 11, 11)

    def blur(x):  # type: ignore[no-untyped-def]
        return torch.nn.functional.conv2d(x[None], window, groups=3)

    x, y = (torch.from_numpy(np.clip(p, 0, 1)).double().permute(2, 0, 1) for p in (a, b))
    mx, my = blur(x), blur(y)
    vx, vy, cxy = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    return float((((2 * mx * my + 1e-4) * (2 * cxy + 9e-4)) / ((mx * mx + my * my + 1e-4) * (vx + vy + 9e-4))).mean())


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.5])
def test_ssim_agrees_with_dense_convolution_in_torch(noise: float) -> None:
    a, b = pictures(noise=noise)
    assert ssim(a, b) == pytest.approx(ssim_in_torch(a, b), abs=1e-9)


def test_ssim_of_a_picture_with_itself_is_one_and_falls_with_noise() -> None:
    _, truth = pictures()
    assert ssim(truth, truth) == pytest.approx(1.0)
    values = [ssim(pictures(noise=noise)[0], truth) for noise in (0.02, 0.1, 0.3)]
    assert values == sorted(values, reverse=True)


def test_ssim_refuses_pictures_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match="11x11"):
        ssim(np.zeros((10, 30, 3)), np.zeros((10, 30, 3)))


def test_psnr_by_hand() -> None:
    black = np.zeros((4, 4, 3))
    assert psnr(black + 0.1, black) == pytest.approx(20.0)
    assert psnr(black + 0.5, black) == pytest.approx(6.0206, abs=1e-4)
    assert psnr(np.full_like(black, 7.0), np.ones_like(black)) == 100.0, "a render is clamped to [0, 1]"


def test_evaluation_names_every_view_and_averages() -> None:
    truth = np.full((20, 20, 3), 0.5)
    renders = [truth + 0.1, truth + 0.01]
    evaluation = evaluate_views(lambda i: renders[i], lambda i: truth, ["a.jpg", "sub/b.jpg"])
    assert [view.name for view in evaluation.views] == ["a.jpg", "sub/b.jpg"]
    assert evaluation.psnr == pytest.approx(30.0)


def test_evaluation_refuses_views_of_another_size() -> None:
    with pytest.raises(ValueError, match=r"b\.jpg"):
        evaluate_views(lambda i: np.zeros((20, 20, 3)), lambda i: np.zeros((20, 21, 3)), ["b.jpg"])


def test_colour_correction_undoes_a_gain_and_an_offset_of_each_channel() -> None:
    _, truth = pictures()
    exposed = truth * [0.8, 0.9, 0.7] + [0.05, 0.0, 0.1]
    np.testing.assert_allclose(color_corrected(exposed, truth), truth, atol=1e-9)
    flat = np.full_like(truth, 0.5)
    assert np.isfinite(color_corrected(flat, truth)).all()
    evaluation = evaluate_views(lambda i: exposed, lambda i: truth, ["a.jpg"])
    assert evaluation.views[0].cc_psnr == 100.0 > evaluation.psnr
    assert evaluation.views[0].lpips is None and np.isnan(evaluation.mean("lpips"))


def lpips_weights(folder: Path) -> Path:
    """Random weights in the shapes of torchvision's AlexNet and of the heads of lpips 0.1."""
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    shapes = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    backbone, heads = {}, {}
    for k, (i, (out, into, size)) in enumerate(shapes.items()):
        scale = (2 / (into * size**2)) ** 0.5
        backbone[f"features.{i}.weight"] = scale * torch.randn(out, into, size, size, generator=generator)
        backbone[f"features.{i}.bias"] = torch.zeros(out)
        heads[f"lin{k}.model.1.weight"] = torch.rand(1, out, 1, 1, generator=generator)
    torch.save(backbone, folder / "alexnet-owt-7be5be79.pth")
    torch.save(heads, folder / "alex.pth")
    return folder


def test_lpips_is_zero_for_equal_pictures_and_grows_with_noise(tmp_path: Path) -> None:
    from splatpipe.splatting.lpips import Lpips

    distance = Lpips(lpips_weights(tmp_path))
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 1, (80, 96, 3))
    assert distance(truth, truth) == 0
    noise = rng.normal(size=truth.shape)
    values = [distance(truth + s * noise, truth) for s in (0.05, 0.15, 0.4)]
    assert 0 < values[0] < values[1] < values[2]
    evaluation = evaluate_views(lambda i: truth + 0.1 * noise, lambda i: truth, ["a"], perceptual=distance)
    assert evaluation.mean("lpips") > 0


def test_lpips_is_what_the_lpips_package_computes(tmp_path: Path) -> None:
    """0.27612492 is what lpips 0.1.4 gives for these pictures and weights (net="alex", normalize=True)."""
    from splatpipe.splatting.lpips import Lpips

    rng = np.random.default_rng(7)
    truth = rng.uniform(0, 1, (80, 96, 3))
    render = np.clip(truth + 0.2 * rng.normal(size=truth.shape), 0, 1)
    assert Lpips(lpips_weights(tmp_path))(render, truth) == pytest.approx(0.27612492, rel=1e-4)


def test_a_folder_without_lpips_weights_is_refused_with_what_it_must_hold(tmp_path: Path) -> None:
    from splatpipe.errors import ConfigError
    from splatpipe.splatting.lpips import Lpips

    with pytest.raises(ConfigError, match=r"evaluation\.lpips_weights: .* has no LPIPS weights; it must hold"):
        Lpips(tmp_path)
    lpips_weights(tmp_path)
    (tmp_path / "alex.pth").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match=r"alex\.pth is not a file of weights"):
        Lpips(tmp_path)
    torch = pytest.importorskip("torch")
    torch.save([torch.zeros(3)], tmp_path / "alex.pth")
    with pytest.raises(ConfigError, match=r"alex\.pth is not a file of weights"):
        Lpips(tmp_path)
    torch.save({f"lin{k}.model.1.weight": torch.zeros(1, 5, 1, 1) for k in range(5)}, tmp_path / "alex.pth")
    with pytest.raises(ConfigError, match=r"tensors of other shapes; it must hold"):
        Lpips(tmp_path)


def test_the_comparison_picture_holds_both_pictures_unchanged(tmp_path: Path) -> None:
    render, photograph = np.zeros((60, 80, 3)), np.ones((60, 80, 3)) * [1.0, 0.0, 0.0]
    side_by_side(render, photograph, tmp_path / "a.png", ("render, 21.3 dB", "a very long name " * 9))
    pixels = np.asarray(Image.open(tmp_path / "a.png"))
    assert pixels.shape[0] > 60 and pixels.shape[1] > 160
    assert (pixels[-60:, :80] == 0).all()
    assert (pixels[-60:, -80:] == [255, 0, 0]).all()
    assert (pixels[:-60] < 128).any(), "there is a caption"


@pytest.mark.parametrize(
    ("downscale", "max_width", "expected"),
    [
        (1, 0, (5472, 3648)),
        (4, 0, (1368, 912)),
        (1, 1600, (1600, 1067)),
        (8, 1600, (684, 456)),
        (1, 9999, (5472, 3648)),
    ],
)
def test_training_size_takes_the_stronger_of_both_reductions(
    downscale: float, max_width: int, expected: tuple[int, int]
) -> None:
    assert training_size(5472, 3648, downscale, max_width) == expected


def test_scaled_intrinsics_project_to_the_same_place_of_the_picture() -> None:
    K = np.array([[700.0, 0, 400.5], [0, 710.0, 225.25], [0, 0, 1]])
    small = scaled_K(K, (801, 450), (400, 225))
    point = np.array([0.3, -0.2, 1.0])
    before, after = K @ point, small @ point
    np.testing.assert_allclose(after[:2] / [400, 225], before[:2] / [801, 450])


def test_reduction_averages_areas(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    small = load_image(tmp_path / "a.png", 15, 10)
    assert small.dtype == np.float32 and small.shape == (10, 15, 3)
    expected = pixels.reshape(10, 4, 15, 4, 3).mean(axis=(1, 3)) / 255
    np.testing.assert_allclose(small, expected, atol=1.5 / 255)


def test_every_kind_of_image_becomes_rgb(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 32)[None, :].repeat(8, axis=0)
    eight = (ramp * 255).astype(np.uint8)
    Image.fromarray(eight).save(tmp_path / "grey.png")
    Image.fromarray((ramp * 65535).astype(np.uint16)).save(tmp_path / "grey16.png")
    Image.fromarray(np.dstack([eight] * 4)).save(tmp_path / "rgba.png")
    Image.fromarray(np.dstack([eight] * 3)).quantize(64).save(tmp_path / "palette.png")
    for name in ("grey.png", "grey16.png", "rgba.png", "palette.png"):
        loaded = load_image(tmp_path / name, 32, 8)
        np.testing.assert_allclose(loaded, np.dstack([ramp] * 3), atol=0.03, err_msg=name)


def test_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # rotated by 180 degrees
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert (load_pixels(tmp_path / "a.png", 16, 8) == pixels).all()


def test_an_undecodable_image_is_named_in_one_sentence(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    path = tmp_path / "DJI_0007.JPG"
    Image.fromarray(pixels).save(path, quality=95)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(SceneError, match=r"DJI_0007\.JPG: the image cannot be decoded"):
        load_image(path, 100, 100)
    path.write_bytes(b"")
    with pytest.raises(SceneError, match=r"DJI_0007\.JPG"):
        load_image(path, 100, 100)
    with pytest.raises(SceneError, match="does not exist"):
        load_image(tmp_path / "none.jpg", 10, 10)
