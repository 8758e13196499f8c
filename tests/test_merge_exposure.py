"""Exposure of neighbouring patches: measured as cameras see it, whatever the Gaussians are, and evened out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scenes import look_at, scene_from
from test_merge import INF, splats_at
from test_merge_borders import carpet

from splatpipe.merge.colors import ColorDifference, ColorFit, exposure_advice, fit_colors
from splatpipe.merge.exposure import Look, compare, looks, renders
from splatpipe.merge.join import MergePart, merge_splats
from splatpipe.patches.box import Box
from splatpipe.patches.frame import Frame
from splatpipe.patches.patch import Patch, point_roles
from splatpipe.patches.visibility import visibility
from splatpipe.scene.arrays import Scene
from splatpipe.splatting.ply import Splats, from_rows, read_splats, to_rows, write_splats
from splatpipe.splatting.views import Views

FRAME = Frame(np.eye(3), "axes", "")
SH_C0 = 0.28209479177387814
DARK = ColorFit(np.array([0.8, 0.9, 0.85]), np.array([0.02, -0.03, 0.0]))


@pytest.fixture(scope="module")
def scene() -> Scene:
    """A flat strip of ground, looked at from above by nine cameras in a row."""
    viewmats = np.stack([look_at((x, 0, 3), (x, 0.01, 0), (0, 1, 0)) for x in np.linspace(-4, 4, 9)])
    rng = np.random.default_rng(5)
    points = np.column_stack([rng.uniform(-4, 4, 800), rng.uniform(-1.5, 1.5, 800), np.zeros(800)])
    return scene_from(points, viewmats, size=(120, 90), focal=90.0)


def patch(scene: Scene, patch_id: str, low: float, high: float, cameras: Sequence[int] = range(9)) -> Patch:
    core = Box(np.array([low, -INF, -INF]), np.array([high, INF, INF]))
    buffered = core.grown(1.0)
    inside = np.flatnonzero(buffered.contains(scene.points))
    roles = point_roles(scene.points[inside], core, buffered)
    index = np.array(cameras, np.int64)
    return Patch(patch_id, core, buffered, FRAME, inside, roles, index, ("",) * len(index), np.zeros(0, np.int64))


def row(scene: Scene) -> list[Patch]:
    return [patch(scene, "p000", -INF, -1.5), patch(scene, "p001", -1.5, 1.5), patch(scene, "p002", 1.5, INF)]


def ground(means: np.ndarray) -> np.ndarray:
    """(N, 3) what sh0 is there."""
    x, y = means[:, 0], means[:, 1]
    return 0.8 * np.sin(np.column_stack([3 * x, 3 * y, 2 * (x + y)]))


def strips() -> dict[str, Splats]:
    """What each patch of `row` trained: its own Gaussians on the same ground."""
    splats = {"p000": carpet(-4, -0.2, 6000, 1), "p001": carpet(-2.8, 2.8, 9000, 2), "p002": carpet(0.2, 4, 6000, 3)}
    for one in splats.values():
        one.sh0[:, 0] = ground(one.means)
    return splats


def written(folder: Path, splats: dict[str, Splats]) -> dict[str, Path]:
    paths = {name: folder / f"{name}.ply" for name in splats}
    for name, path in paths.items():
        write_splats(path, splats[name])
    return paths


def fitted(
    scene: Scene, patches: list[Patch], paths: dict[str, Path], **how: int
) -> tuple[dict[str, ColorFit], tuple[ColorDifference, ...]]:
    views = Views(scene.names, (Path(),) * len(scene.names), scene.viewmats, scene.Ks, scene.sizes)
    chosen = looks(patches, visibility(scene), len(scene.points))
    return fit_colors(compare(chosen, paths, views, scene.points, **how))


def under_haze(splats: Splats) -> Splats:
    """Looks the same from above, made otherwise: grey haze over ground whose colours make up for it."""
    haze = splats_at(np.array([[0.0, 0.0, 0.5]]))
    haze.scales[:], haze.quats[:], haze.sh0[:] = np.log([200, 200, 0.01]), [1, 0, 0, 0], 0.4
    haze.opacities[:] = np.log(0.3 / 0.7)
    out = splats.select(np.arange(len(splats)))
    out.sh0[:] = (splats.sh0 - 0.3 * 0.4) / 0.7
    return from_rows(np.concatenate([to_rows(out), to_rows(haze)]))


def test_a_difference_in_exposure_is_measured_and_evened_out(tmp_path: Path, scene: Scene) -> None:
    splats = strips()
    splats["p001"] = from_rows(DARK.apply(to_rows(splats["p001"])))
    paths, patches = written(tmp_path, splats), row(scene)
    fits, differences = fitted(scene, patches, paths)
    assert [one.patches for one in differences] == [("p000", "p001"), ("p001", "p002")]
    for one in differences:
        assert one.places > 50 and one.difference > 0.04 and one.after < 0.2 * one.difference
        assert "p001" in str(one.sentence) and "match_colors" in str(one.sentence)
    np.testing.assert_allclose(fits["p001"].gain * DARK.gain / fits["p000"].gain, 1, atol=0.03)
    np.testing.assert_allclose(fits["p002"].gain / fits["p000"].gain, 1, atol=0.03)
    np.testing.assert_allclose(np.mean([fit.gain for fit in fits.values()], axis=0), 1, atol=0.01)

    merge_splats([MergePart(*part) for part in paths.items()], tmp_path / "a.ply", patches, FRAME, fits=fits)
    merged = read_splats(tmp_path / "a.ply")
    base, truth = 0.5 + SH_C0 * merged.sh0[:, 0], 0.5 + SH_C0 * ground(merged.means)
    middle = np.abs(merged.means[:, 0]) < 1.5
    steps = (base - truth)[middle].mean(axis=0) - (base - truth)[~middle].mean(axis=0)
    before = np.mean(DARK.gain * truth + DARK.offset - truth, axis=0)
    assert np.abs(steps).max() < 0.15 * np.abs(before).max()


def test_patches_that_look_alike_are_left_as_they_are_whatever_they_are_made_of(tmp_path: Path, scene: Scene) -> None:
    splats = strips()
    splats["p001"] = under_haze(splats["p001"])
    fits, differences = fitted(scene, row(scene), written(tmp_path, splats))
    assert len(differences) == 2 and not any(one.sentence for one in differences)
    for fit in fits.values():
        np.testing.assert_allclose(fit.gain, 1, atol=0.03)
        np.testing.assert_allclose(fit.offset, 0, atol=0.015)


def test_what_moved_between_two_flights_and_ground_that_one_left_bare_do_not_count(
    tmp_path: Path, scene: Scene
) -> None:
    splats = strips()
    other = splats["p001"]
    parked = (np.abs(other.means[:, 0] - 1.2) < 0.25) & (other.means[:, 1] > 0)
    other.sh0[parked] = 1.7  # a white lorry
    splats["p000"] = splats["p000"].select(~((splats["p000"].means[:, 0] > -1) & (splats["p000"].means[:, 1] > 0)))
    fits, _ = fitted(scene, row(scene), written(tmp_path, splats))
    for fit in fits.values():
        np.testing.assert_allclose(fit.gain, 1, atol=0.03)
        np.testing.assert_allclose(fit.offset, 0, atol=0.015)


def test_only_cameras_that_train_both_are_asked_and_only_neighbours_compared(scene: Scene) -> None:
    seen = visibility(scene)
    chosen = looks(row(scene), seen, len(scene.points))
    assert {look.patches for look in chosen} == {("p000", "p001"), ("p001", "p002")}
    apart = [patch(scene, "p000", -INF, 0, range(4)), patch(scene, "p001", 0, INF, range(5, 9))]
    assert looks(apart, seen, len(scene.points)) == []
    shared = [patch(scene, "p000", -INF, 0, range(5)), patch(scene, "p001", 0, INF, range(4, 9))]
    assert {look.camera for look in looks(shared, seen, len(scene.points))} == {4}


def test_without_a_common_view_nothing_is_changed(tmp_path: Path, scene: Scene) -> None:
    apart = [patch(scene, "p000", -INF, 0, range(4)), patch(scene, "p001", 0, INF, range(5, 9))]
    fits, differences = fitted(scene, apart, written(tmp_path, {"p000": carpet(-4, 1), "p001": carpet(-1, 4)}))
    assert differences == ()
    assert all((fit.gain == 1).all() and (fit.offset == 0).all() for fit in fits.values())


def test_patches_too_large_to_hold_give_the_same_fits(tmp_path: Path, scene: Scene) -> None:
    splats = strips()
    splats["p001"] = from_rows(DARK.apply(to_rows(splats["p001"])))
    paths, patches = written(tmp_path, splats), row(scene)
    whole, part = (fitted(scene, patches, paths, held_at_once=most)[0] for most in (10**6, 100))
    for name in whole:
        np.testing.assert_allclose(part[name].gain, whole[name].gain, atol=0.005)
        np.testing.assert_allclose(part[name].offset, whole[name].offset, atol=0.005)


def test_gaussians_that_are_not_finite_do_not_hide_the_others(tmp_path: Path, scene: Scene) -> None:
    splats = strips()
    splats["p001"] = from_rows(DARK.apply(to_rows(splats["p001"])))
    splats["p001"].means[:3], splats["p001"].scales[3:6], splats["p001"].sh0[6:9] = np.nan, np.nan, np.inf
    splats["p002"].means[:2] = np.inf
    fits, differences = fitted(scene, row(scene), written(tmp_path, splats))
    assert all(one.places > 50 for one in differences)
    np.testing.assert_allclose(fits["p001"].gain * DARK.gain / fits["p000"].gain, 1, atol=0.03)


def test_every_render_is_counted(tmp_path: Path, scene: Scene) -> None:
    paths, ticks = written(tmp_path, strips()), []
    views = Views(scene.names, (Path(),) * len(scene.names), scene.viewmats, scene.Ks, scene.sizes)
    chosen: list[Look] = looks(row(scene), visibility(scene), len(scene.points))
    compare(chosen, paths, views, scene.points, tick=lambda: ticks.append(1))
    assert len(ticks) == renders(chosen) > 0


def test_what_a_fit_removes_is_named_though_others_differ_more() -> None:
    moved, dark = ColorDifference(("p000", "p001"), 40, 0.2, 0.19), ColorDifference(("p001", "p002"), 40, 0.1, 0.01)
    assert str(exposure_advice([moved, dark])).startswith("p001 and p002 differ by 10 %")
    assert exposure_advice([moved]) is None and exposure_advice([]) is None


def test_correcting_colours_scales_every_band_and_shifts_only_the_mean() -> None:
    splats = splats_at(np.zeros((4, 3)), degree=2)
    corrected = from_rows(ColorFit(np.array([2.0, 1.0, 0.5]), np.array([0.1, 0.0, 0.0])).apply(to_rows(splats)))
    np.testing.assert_allclose(corrected.shN, splats.shN * [2, 1, 0.5], rtol=1e-6)
    color = 0.5 + 0.28209479177387814 * splats.sh0[:, 0]
    np.testing.assert_allclose(
        0.5 + 0.28209479177387814 * corrected.sh0[:, 0], color * [2, 1, 0.5] + [0.1, 0, 0], rtol=1e-5
    )
    np.testing.assert_array_equal(corrected.opacities, splats.opacities)
