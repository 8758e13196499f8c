"""A splat file rendered at hold-out views and held against their photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from splatpipe.merge.evaluate import Renderer, evaluate_splat, in_view, normalising
from splatpipe.splatting.ply import Splats, antialiased_comment, to_rows, write_splats
from splatpipe.splatting.views import Views

WIDTH, HEIGHT = 96, 64


def colourful_wall(n: int = 400) -> Splats:
    """Opaque Gaussians on the plane z = 0, 4 units wide."""
    rng = np.random.default_rng(3)
    means = np.column_stack([rng.uniform(-2, 2, n), rng.uniform(-1.5, 1.5, n), np.zeros(n)])
    quats = np.tile([1.0, 0, 0, 0], (n, 1))
    arrays = (means, quats, np.full((n, 3), np.log(0.12)), np.full(n, 3.0), rng.normal(0, 1, (n, 1, 3)))
    return Splats(*(array.astype(np.float32) for array in arrays), np.zeros((n, 0, 3), np.float32))


def moved(splats: Splats, scale: float, offset: np.ndarray) -> Splats:
    """The same scene in other units and elsewhere."""
    means = (splats.means.astype(np.float64) * scale + offset).astype(np.float32)
    scales = splats.scales + np.float32(np.log(scale))
    return Splats(means, splats.quats, scales, splats.opacities, splats.sh0, splats.shN)


def cameras(scale: float = 1.0, offset: np.ndarray | None = None, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    viewmats = np.tile(np.eye(4), (count, 1, 1))
    for i in range(count):
        center = np.array([0.3 * i - 0.2, 0.1 * i, -3.0]) * scale + (0 if offset is None else offset)
        viewmats[i, :3, 3] = -center
    K = np.array([[80.0, 0, WIDTH / 2], [0, 80.0, HEIGHT / 2], [0, 0, 1]])
    return viewmats, np.tile(K, (count, 1, 1))


def views_with_photographs(folder: Path, splats: Splats) -> Views:
    """Photographs are what the untouched scene looks like."""
    viewmats, Ks = cameras()
    renderer = Renderer(splats)
    names = tuple(f"{i}.png" for i in range(len(viewmats)))
    for i, name in enumerate(names):
        picture = renderer.render(viewmats[i], Ks[i], WIDTH, HEIGHT)
        Image.fromarray(np.rint(picture * 255).astype(np.uint8)).save(folder / name)
    sizes = np.tile(np.array([WIDTH, HEIGHT], np.int32), (len(names), 1))
    return Views(names, tuple(folder / name for name in names), viewmats, Ks, sizes)


def test_a_gaussian_is_drawn_where_the_camera_model_says() -> None:
    one = colourful_wall(1)
    one.means[:] = [[0.52, -0.27, 1.0]]
    one.scales[:] = np.log(0.02)
    one.sh0[:] = 1.7  # white
    viewmats, Ks = cameras(count=1)
    picture = Renderer(one).render(viewmats[0], Ks[0], WIDTH, HEIGHT)
    row, column = np.unravel_index(picture.sum(axis=2).argmax(), picture.shape[:2])
    # Camera at (-0.2, 0, -3): x = 0.72, y = -0.27, z = 4; u = 48 + 80 * 0.18, v = 32 - 80 * 0.0675.
    assert (column, row) == (62, 26)


def test_the_scene_itself_scores_high_and_another_scene_does_not(tmp_path: Path) -> None:
    wall = colourful_wall()
    views = views_with_photographs(tmp_path, wall)
    write_splats(tmp_path / "wall.ply", wall)
    seen = []
    same = evaluate_splat(tmp_path / "wall.ply", views, on_view=lambda *arguments: seen.append(arguments))
    assert same.psnr > 50 and same.ssim > 0.99
    assert [metrics.name for metrics, _, _ in seen] == ["0.png", "1.png"]
    assert seen[0][1].shape == seen[0][2].shape == (HEIGHT, WIDTH, 3)
    write_splats(tmp_path / "half.ply", wall.select(np.arange(len(wall)) % 2 == 0))
    assert evaluate_splat(tmp_path / "half.ply", views).psnr < same.psnr - 15


def test_smaller_views_are_compared_at_their_own_size(tmp_path: Path) -> None:
    wall = colourful_wall()
    views = views_with_photographs(tmp_path, wall)
    write_splats(tmp_path / "wall.ply", wall)
    pictures = []
    small = evaluate_splat(tmp_path / "wall.ply", views, max_width=48, on_view=lambda *view: pictures.extend(view[1:]))
    assert [picture.shape for picture in pictures] == [(32, 48, 3)] * 4
    assert small.psnr > 25


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_units_and_distance_from_the_origin_do_not_change_the_score(tmp_path: Path, scale: float) -> None:
    wall = colourful_wall()
    offset = np.array([300.0, -200.0, 50.0]) * scale  # 100 times as far as the scene is wide
    views = views_with_photographs(tmp_path, wall)
    viewmats, Ks = cameras(scale, offset)
    elsewhere = Views(views.names, views.paths, viewmats, Ks, views.sizes)
    write_splats(tmp_path / "moved.ply", moved(wall, scale, offset))
    assert evaluate_splat(tmp_path / "moved.ply", elsewhere).psnr > 50


def test_the_frame_of_rendering_is_the_same_for_every_unit_of_length() -> None:
    means = colourful_wall().means
    here, there = normalising(means), normalising(means * np.float32(1000))
    np.testing.assert_allclose(here.apply(means), there.apply(means * 1000), atol=1e-4)


def test_an_empty_splat_is_a_black_picture() -> None:
    viewmats, Ks = cameras(count=1)
    picture = Renderer(colourful_wall(0)).render(viewmats[0], Ks[0], WIDTH, HEIGHT)
    assert picture.shape == (HEIGHT, WIDTH, 3) and not picture.any()


def test_a_file_too_large_to_hold_gives_the_same_figures_view_by_view(tmp_path: Path) -> None:
    splats = colourful_wall()
    views = views_with_photographs(tmp_path, splats)
    splats.sh0[:100] += 0.5  # so that the renders are not perfect
    write_splats(tmp_path / "splat.ply", splats)
    whole = evaluate_splat(tmp_path / "splat.ply", views)
    streamed = evaluate_splat(tmp_path / "splat.ply", views, held_at_once=10)
    assert whole.psnr < 50
    assert [view.psnr for view in streamed.views] == pytest.approx([view.psnr for view in whole.views], abs=0.01)


def test_an_antialiased_splat_is_rendered_as_one(tmp_path: Path) -> None:
    splats = colourful_wall()
    splats.scales[:] = np.log(0.004)  # far below a pixel: only then does it show
    for name, comments in (("plain", ()), ("antialiased", (antialiased_comment(0.3),))):
        write_splats(tmp_path / f"{name}.ply", splats, comments)
    views = views_with_photographs(tmp_path, splats)
    pictures: list[Any] = []
    for name in ("plain", "antialiased"):
        for held in (10, 10_000_000):
            evaluate_splat(
                tmp_path / f"{name}.ply",
                views,
                held_at_once=held,
                on_view=lambda _, render, __: pictures.append(render),
            )
    per_run = len(pictures) // 4
    plain, antialiased = pictures[0], pictures[2 * per_run]
    assert antialiased.mean() < 0.7 * plain.mean(), "specks are no longer as wide and bright as the blur"
    np.testing.assert_allclose(pictures[3 * per_run], antialiased, atol=0.01)


def test_only_what_lies_in_a_view_is_held_for_it() -> None:
    viewmats, Ks = cameras()
    splats = colourful_wall(300)
    splats.means[:100, 2] = -10  # behind the cameras
    splats.means[100:200, 0] += 50  # far to the side
    splats.scales[100] = np.log(40)  # but this one reaches into the view
    held = in_view(to_rows(splats), viewmats[0], Ks[0], WIDTH, HEIGHT)
    assert not held[:100].any()
    assert held[100] and not held[101:200].any()
    centres = splats.means[200:] @ viewmats[0, :3, :3].T + viewmats[0, :3, 3]
    pixels = centres @ Ks[0].T
    inside = ((pixels[:, :2] / pixels[:, 2:] >= 0) & (pixels[:, :2] / pixels[:, 2:] < [WIDTH, HEIGHT])).all(axis=1)
    assert held[200:][inside].all()
