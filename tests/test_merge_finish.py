"""The last training of a merged splat: borders fit the photographs better, and nothing else changes by a bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scenes import look_at
from test_merge import IDENTITY, INF, slab, splats_at

from splatpipe.merge.evaluate import Renderer, evaluate_splat
from splatpipe.merge.finish import at_borders, finish
from splatpipe.splatting.loop import Stopped
from splatpipe.splatting.ply import Splats, antialiased_comment, read_header, read_splats, to_rows, write_splats
from splatpipe.splatting.settings import TrainSettings
from splatpipe.splatting.views import Views

PATCHES = [slab("p000", -INF, 0, buffer=0.6), slab("p001", 0, INF, buffer=0.6)]
K = np.array([[40.0, 0, 24], [0, 40, 18], [0, 0, 1]])
TRAINED, HELD = np.array([0, 1, 3, 5, 6]), np.array([2, 4])


def ground() -> Splats:
    """A carpet of small Gaussians, and haze as wide as the scene on which both patches build."""
    rng = np.random.default_rng(4)
    flat = np.column_stack([rng.uniform(-2, 2, 500), rng.uniform(-1, 1, 500), rng.normal(0, 0.02, 500)])
    splats = splats_at(np.concatenate([flat, [[-0.4, 0, 0.5], [0.4, 0, 0.5]]]), degree=1)
    splats.shN[:] *= 0.1
    splats.scales[:] = np.log(0.08)
    splats.scales[500:], splats.opacities[500:], splats.sh0[500:] = np.log(1.5), -1.0, 0.8
    return splats


def badly_joined(splats: Splats) -> Splats:
    """The same, but with the haze of each side in another colour and much too thick."""
    out = splats.select(np.arange(len(splats)))
    out.opacities[500:] = 0.5
    out.sh0[500:] = np.array([[-0.8, 0.9, 0.2]])
    return out


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> Views:
    """Seven photographs of the ground, in a row across the border."""
    folder, renderer = tmp_path_factory.mktemp("photographs"), Renderer(ground())
    viewmats = np.stack([look_at((x, 0.1, 3.0), (x * 0.8, 0, 0), (0, 1, 0)) for x in np.linspace(-1.5, 1.5, 7)])
    paths = tuple(folder / f"{i}.png" for i in range(7))
    for path, viewmat in zip(paths, viewmats, strict=True):
        Image.fromarray((renderer.render(viewmat, K, 48, 36) * 255).round().astype(np.uint8)).save(path)
    sizes = np.tile(np.array([[48, 36]], np.int32), (7, 1))
    return Views(tuple(path.name for path in paths), paths, viewmats, np.tile(K, (7, 1, 1)), sizes)


def finished(path: Path, views: Views, **changes: object):  # type: ignore[no-untyped-def]
    given = {"visits": 12, **changes}
    points = ground().means.astype(np.float64)
    settings = given.pop("settings", TrainSettings())
    return finish(path, views.take(TRAINED), points, PATCHES, IDENTITY, settings, **given)


def test_views_that_took_no_part_come_closer_and_only_borders_change(tmp_path: Path, views: Views) -> None:
    path, splats = tmp_path / "merged.ply", badly_joined(ground())
    write_splats(path, splats, ("made by a test", antialiased_comment(0.3)))
    before = evaluate_splat(path, views.take(HELD)).psnr
    done = finished(path, views)
    assert done.kept and (done.steps, done.views) == (60, 5), done.sentence
    assert evaluate_splat(path, views.take(HELD)).psnr > before + 1
    assert done.psnr_after > done.psnr_before
    free = at_borders(to_rows(splats), PATCHES, IDENTITY)
    assert free[500:].all() and done.free == free.sum() < 250
    old, new = to_rows(splats), to_rows(read_splats(path))
    np.testing.assert_array_equal(new[~free], old[~free])
    assert (new[free] != old[free]).any(axis=1).mean() > 0.9
    assert read_header(path).comments[:2] == ("made by a test", antialiased_comment(0.3))
    assert sum(not comment.strip("-") for comment in read_header(path).comments) == 1, "the header is padded once"


def test_what_training_cannot_better_stays_as_it_was(tmp_path: Path, views: Views) -> None:
    path = tmp_path / "merged.ply"
    write_splats(path, ground())
    before = path.read_bytes()
    done = finished(path, views, settings=TrainSettings(opacity_reg=10.0, scale_reg=10.0))
    assert not done.kept and "not kept" in done.sentence
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"most": 400}, "502 Gaussians are more than the 400"),
        ({"settings": replace(TrainSettings(), pose_lr=1e-3)}, "cameras or colours of its own"),
    ],
)
def test_where_it_cannot_be_done_a_sentence_says_why(
    tmp_path: Path, views: Views, changes: dict[str, object], reason: str
) -> None:
    path = tmp_path / "merged.ply"
    write_splats(path, badly_joined(ground()))
    before = path.read_bytes()
    done = finished(path, views, **changes)
    assert not done.kept and reason in done.sentence
    assert path.read_bytes() == before


def test_a_stop_leaves_the_merged_splat_whole(tmp_path: Path, views: Views) -> None:
    path = tmp_path / "merged.ply"
    write_splats(path, badly_joined(ground()))
    before = path.read_bytes()
    with pytest.raises(Stopped):
        finished(path, views, should_stop=lambda: True)
    assert path.read_bytes() == before
