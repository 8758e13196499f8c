"""Borders between patches: what is thin is filled, what is wide is shared, and nothing is doubled or faded."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation
from scipy.special import expit
from test_merge import IDENTITY, INF, Area, assert_accounted, slab, splats_at, write_part

from splatpipe.merge.clean import RULES, Cleaning, no_cleaning
from splatpipe.merge.coverage import Coverage
from splatpipe.merge.grid import Grid
from splatpipe.merge.join import Borders, merge_splats
from splatpipe.merge.neighbours import spacing
from splatpipe.merge.ownership import distance, touching
from splatpipe.merge.settings import MergeSettings
from splatpipe.merge.survey import survey
from splatpipe.patches.box import Box
from splatpipe.patches.region import regions_of
from splatpipe.patches.union import together
from splatpipe.splatting.ply import Splats, from_rows, read_header, read_splats, to_rows, write_splats

LEFT, RIGHT = slab("p000", -INF, 0), slab("p001", 0, INF)


def carpet(low: float, high: float, n: int = 3000, seed: int = 0) -> Splats:
    """Small Gaussians that cover low <= x < high, -2 <= y < 2 densely; each file its own."""
    rng = np.random.default_rng(seed)
    splats = splats_at(np.column_stack([rng.uniform(low, high, n), rng.uniform(-2, 2, n), rng.normal(0, 0.01, n)]))
    splats.sh0[:] = np.sin(3 * splats.means[:, None]) * 0.8  # the same ground has the same colour in every file
    return splats


def without(splats: Splats, low: float, high: float) -> Splats:
    """The same with nothing at low <= x < high."""
    return splats.select((splats.means[:, 0] < low) | (splats.means[:, 0] >= high))


def covered(splats: Splats, low: float, high: float) -> int:
    return int(((splats.means[:, 0] >= low) & (splats.means[:, 0] < high)).sum())


def test_a_neighbour_fills_ground_that_its_owner_left_bare(tmp_path: Path) -> None:
    bare = without(carpet(-4, 1, seed=1), -0.8, 0)
    parts = [write_part(tmp_path, "p000", bare), write_part(tmp_path, "p001", carpet(-1, 4, seed=2))]
    report = merge_splats(parts, tmp_path / "a.ply", [LEFT, RIGHT], IDENTITY)
    assert covered(read_splats(tmp_path / "a.ply"), -0.7, -0.2) == 0
    assert report.coverage.holes.any()
    filled = merge_splats(parts, tmp_path / "b.ply", [LEFT, RIGHT], IDENTITY, borders=Borders(thin_owner=0.5))
    there = covered(carpet(-1, 4, seed=2), -0.6, -0.2)
    assert covered(read_splats(tmp_path / "b.ply"), -0.6, -0.2) > 0.8 * there, "all but the outermost row of cells"
    assert not filled.coverage.holes.any()
    assert [(loan.owner, loan.neighbour) for loan in filled.loans] == [("p000", "p001")]
    assert filled.parts[1].borrowed > 0
    assert_accounted(filled)


def test_what_cleaning_will_take_does_not_count_as_cover(tmp_path: Path) -> None:
    """An owner that covers its ground with Gaussians too faint to be kept is as thin there as one without them."""
    owner = carpet(-4, 1, 4000, seed=1)
    faint = (owner.means[:, 0] >= -0.8) & (owner.means[:, 0] < -0.2)
    owner.opacities[faint] = -3.0  # 0.05 each, but many
    owner = from_rows(np.concatenate([to_rows(owner), *[to_rows(owner.select(faint))] * 8]))
    parts = [write_part(tmp_path, "p000", owner), write_part(tmp_path, "p001", carpet(-1, 4, seed=2))]
    both, cleaning = Borders(thin_owner=0.5), Cleaning(MergeSettings(min_opacity=0.1), np.zeros(3), 0.0)
    kept = merge_splats(parts, tmp_path / "a.ply", [LEFT, RIGHT], IDENTITY, borders=both)
    assert not kept.coverage.holes.any() and covered(read_splats(kept.path), -0.7, -0.3) > 8 * 200
    cleaned = merge_splats(parts, tmp_path / "b.ply", [LEFT, RIGHT], IDENTITY, cleaning, borders=both)
    assert not cleaned.coverage.holes.any() and covered(read_splats(cleaned.path), -0.7, -0.3) > 100
    assert_accounted(cleaned)


def test_ground_that_both_cover_well_stays_with_its_owner(tmp_path: Path) -> None:
    parts = [write_part(tmp_path, "p000", carpet(-4, 1, seed=1)), write_part(tmp_path, "p001", carpet(-1, 4, seed=2))]
    report = merge_splats(parts, tmp_path / "a.ply", [LEFT, RIGHT], IDENTITY, borders=Borders(thin_owner=0.5))
    merged = read_splats(tmp_path / "a.ply")
    assert covered(merged, -1, 0) == covered(carpet(-4, 1, seed=1), -1, 0)
    assert covered(merged, 0, 1) == covered(carpet(-1, 4, seed=2), 0, 1)
    assert report.loans == () and not report.coverage.holes.any()


def test_a_neighbour_is_not_believed_beyond_its_buffer(tmp_path: Path) -> None:
    parts = [
        write_part(tmp_path, "p000", without(carpet(-4, 1), -4, -1.5)),
        write_part(tmp_path, "p001", carpet(-4, 4)),
    ]
    merge_splats(parts, tmp_path / "a.ply", [LEFT, RIGHT], IDENTITY, borders=Borders(thin_owner=0.5))
    assert covered(read_splats(tmp_path / "a.ply"), -4, -1.5) == 0


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1), widths=st.floats(-3, 3), borders=st.lists(st.floats(-3, 3), max_size=3, unique=True)
)
def test_shares_of_wide_gaussians_make_up_the_whole(
    tmp_path: Path, seed: int, widths: float, borders: list[float]
) -> None:
    """Equal inputs: the transparencies of a Gaussian's copies multiply to its own, but for slivers below 1 %."""
    rng = np.random.default_rng(seed)
    splats = splats_at(rng.uniform(-4, 4, (20, 3)), seed=seed)
    splats.scales[:] = rng.normal(widths, 1, (20, 3))
    columns = list(zip([-INF, *sorted(borders)], [*sorted(borders), INF], strict=True))
    patches = [slab(f"p{i:03d}", low, high) for i, (low, high) in enumerate(columns)]
    parts = [write_part(tmp_path, patch.id, splats) for patch in patches]
    report = merge_splats(parts, tmp_path / "out.ply", patches, IDENTITY, borders=Borders(share_wide=True))
    assert_accounted(report)
    merged = read_splats(tmp_path / "out.ply")
    thickness = -np.log1p(-expit(merged.opacities.astype(np.float64)))
    for mean, opacity in zip(splats.means, splats.opacities, strict=True):
        total = thickness[(merged.means == mean).all(axis=1)].sum()
        assert total == pytest.approx(-np.log1p(-expit(float(opacity))), rel=0.01 * len(patches) + 1e-4)


def test_a_wide_gaussian_counts_by_its_mass_and_not_by_its_centre(tmp_path: Path) -> None:
    """Sigma 2 along x with its centre 2 left of the border: 84 % of it is on the left (Phi(1) = 0.8413)."""
    splats = splats_at(np.array([[-2.0, 0, 0]]))
    splats.quats[:] = [1, 0, 0, 0]
    splats.scales[0] = np.log([2, 0.1, 0.1])
    parts = [write_part(tmp_path, "p001", splats), write_part(tmp_path, "p000", splats_at(np.array([[-3.0, 0, 0]])))]
    report = merge_splats(parts, tmp_path / "a.ply", [LEFT, RIGHT], IDENTITY, borders=Borders(share_wide=True))
    merged = read_splats(tmp_path / "a.ply")
    assert [part.shared for part in report.parts] == [0, 1]
    before, after = expit(2.0), expit(float(merged.opacities[-1]))
    assert np.log1p(-after) / np.log1p(-before) == pytest.approx(1 - 0.8413, abs=1e-3)


def test_a_wide_gaussian_without_rotation_or_without_end_is_not_lost(tmp_path: Path) -> None:
    """Foreign files hold quaternions of zeros, and log sizes whose exponential is no number."""
    splats = splats_at(np.array([[-2.0, 0, 0], [3, 0, 0], [1e30, 0, 0]]))
    splats.quats[0] = 0
    splats.scales[0], splats.scales[1] = 2, 2000
    parts = [write_part(tmp_path, "p000", splats), write_part(tmp_path, "p001", splats)]
    report = merge_splats(parts, tmp_path / "a.ply", [LEFT, RIGHT], IDENTITY, borders=Borders(share_wide=True))
    merged = read_splats(tmp_path / "a.ply")
    thickness = -np.log1p(-expit(merged.opacities.astype(np.float64))) / -np.log1p(-expit(2.0))
    for mean in splats.means:
        assert thickness[(merged.means == mean).all(axis=1)].sum() == pytest.approx(1, abs=0.01)
    assert_accounted(report)


ELL = np.array([[0.0, 0], [6, 0], [6, 2], [2, 2], [2, 6], [0, 6]])


def boxes_of_the_ell() -> list[Box]:
    """The L and what lies round it, each as boxes put together."""
    columns = [Box(np.array([a, -INF, -INF]), np.array([b, INF, INF])) for a, b in pairwise((-INF, 0.0, 2.0, 6.0, INF))]
    cells = [
        (Box(np.array([one.lower[0], a, -INF]), np.array([one.upper[0], b, INF])), (i, j) in {(1, 1), (2, 1), (1, 2)})
        for i, one in enumerate(columns)
        for j, (a, b) in enumerate(pairwise((-INF, 0.0, 2.0, 6.0, INF)))
    ]
    return [together([box for box, inside in cells if inside == wanted]) for wanted in (True, False)]


@pytest.mark.parametrize("drawn", [True, False])
def test_in_a_core_of_any_shape_a_wide_gaussian_counts_by_its_mass_too(tmp_path: Path, drawn: bool) -> None:
    """Held against 200,000 random places of each Gaussian; the shares of all patches make up the whole."""
    rng = np.random.default_rng(0)
    splats = splats_at(rng.uniform([-1, -1, -1], [7, 7, 1], (12, 3)))
    splats.scales[:] = rng.uniform(-1, 1.5, (12, 3))
    if not drawn:
        splats.quats[:] = [1, 0, 0, 0]  # of one that lies askew, boxes take the sides
    cores = regions_of([ELL], rest=True) if drawn else boxes_of_the_ell()
    patches = [Area(f"p{i:03d}", core, core.grown(0.3)) for i, core in enumerate(cores)]
    parts = [write_part(tmp_path, patch.id, splats) for patch in patches]
    report = merge_splats(parts, tmp_path / "a.ply", patches, IDENTITY, borders=Borders(share_wide=True))
    assert_accounted(report)
    merged = read_splats(tmp_path / "a.ply")
    count = report.parts[0].kept
    thickness = -np.log1p(-expit(merged.opacities.astype(np.float64))) / -np.log1p(-expit(2.0))
    for i in range(12):
        turn = Rotation.from_quat(splats.quats[i], scalar_first=True).as_matrix()
        places = splats.means[i] + (rng.normal(size=(200_000, 3)) * np.exp(splats.scales[i])) @ turn.T
        expected = patches[0].core.contains(places.astype(np.float64)).mean()
        mine = (merged.means == splats.means[i]).all(axis=1)
        assert thickness[:count][mine[:count]].sum() == pytest.approx(expected, abs=0.03)
        assert thickness[mine].sum() == pytest.approx(1, abs=0.02)


def test_outlines_touch_and_lie_apart_by_what_was_drawn_and_not_by_their_boxes() -> None:
    """A square in the notch of the L lies within its box, and one unit from it."""
    square = np.array([[3.0, 3], [5, 3], [5, 5], [3, 5]])
    ell, inner, _ = regions_of([ELL, square], rest=True)
    assert not touching(ell.grown(0.5), inner) and touching(ell.grown(1.2), inner)
    places = np.array([[1.0, 1, 0], [3, 3, 0], [4, 5, 9], [9, 2, 0]])
    np.testing.assert_allclose(distance(ell, places), [0, 1, 2, 3])
    ell, _ = boxes_of_the_ell()
    assert not touching(ell.grown(0.5), inner) and touching(ell.grown(1.2), inner)
    np.testing.assert_allclose(distance(ell, places), [0, 1, 2, 3])


def test_sharing_and_filling_do_not_depend_on_the_order_of_the_parts(tmp_path: Path) -> None:
    corner = [
        Area(f"p{i:03d}", box, box.grown(1.0))
        for i, box in enumerate(
            Box(np.array([x, y, -INF]), np.array([u, v, INF]))
            for x, u in ((-INF, 0), (0, INF))
            for y, v in ((-INF, 0), (0, INF))
        )
    ]
    parts = []
    for i, patch in enumerate(corner):
        splats = without(carpet(-3, 3, 2000, seed=i), 0.3 * i - 1, 0.3 * i)
        splats.scales[:40] = 0.5
        parts.append(write_part(tmp_path, patch.id, splats))
    both = Borders(thin_owner=0.5, share_wide=True)
    report = merge_splats(parts, tmp_path / "a.ply", corner, IDENTITY, borders=both)
    merge_splats(parts[::-1], tmp_path / "b.ply", corner[::-1], IDENTITY, borders=both)
    assert (tmp_path / "a.ply").read_bytes() == (tmp_path / "b.ply").read_bytes()
    assert report.loans and sum(part.shared for part in report.parts)
    assert_accounted(report)


def test_the_coverage_map_names_a_missing_patch_and_shows_its_hole(tmp_path: Path) -> None:
    middle = [slab("p000", -INF, -1, 0.5), slab("p001", -1, 1, 0.5), slab("p002", 1, INF, 0.5)]
    parts = [write_part(tmp_path, "p000", carpet(-4, 1, seed=1)), write_part(tmp_path, "p002", carpet(-0.4, 4, seed=2))]
    report = merge_splats(parts, tmp_path / "a.ply", middle, IDENTITY, borders=Borders(thin_owner=0.5))
    merged = read_splats(tmp_path / "a.ply")
    assert covered(merged, -1, -0.5) and covered(merged, 0.5, 1), "buffers of both neighbours"
    assert report.holes == ("p001",) and report.hole_sentences()[0].startswith("p001 is missing")
    report.coverage.draw(tmp_path / "map.png", middle, report.holes)
    pixels = np.asarray(Image.open(tmp_path / "map.png").convert("RGB")).astype(int)
    assert ((pixels[..., 0] > 200) & (pixels[..., 1] < 60)).any(), "the missing core is outlined in red"


@pytest.mark.parametrize(
    ("rule", "limit", "victim"), [("max_isolation", 10, 0), ("max_needle", 20, 1), ("max_spacing", 30, 2)]
)
def test_rules_of_local_spacing_take_the_floater_the_needle_and_the_blob(
    tmp_path: Path, rule: str, limit: float, victim: int
) -> None:
    splats = carpet(-4, 4, seed=5)
    spacing = 0.1
    splats.means[0] = [0, 0, 30 * spacing * 3]
    splats.scales[1] = np.log([5 * spacing, 0.1 * spacing, 0.1 * spacing])
    splats.scales[2] = np.log(60 * spacing)
    part = write_part(tmp_path, "p000", splats)
    cleaning = Cleaning(MergeSettings(min_opacity=0, max_distance=0, **{rule: limit}), np.zeros(3), 8.0)
    report = merge_splats([part], tmp_path / "a.ply", [slab("p000", -INF, INF)], IDENTITY, cleaning)
    merged = read_splats(tmp_path / "a.ply")
    name = {"max_isolation": "isolated", "max_needle": "needle", "max_spacing": "coarse"}[rule]
    assert not (merged.means == splats.means[victim]).all(axis=1).any()
    others = [i for i in range(3) if i != victim]
    assert all((merged.means == splats.means[i]).all(axis=1).any() for i in others)
    assert 1 <= report.dropped[name] <= 0.02 * len(splats)
    assert {other: report.dropped[other] for other in RULES if other != name} == dict.fromkeys(
        [other for other in RULES if other != name], 0
    )
    assert_accounted(report)


def test_what_is_wider_than_a_third_of_the_buffer_says_nothing_of_where_ground_is_covered(tmp_path: Path) -> None:
    """Buffers of 0.9: 0.29 is counted, 0.31 is not, be it turned in any way."""
    splats = splats_at(np.array([[-1.0, 0, 0], [-3, 0, 0]]))
    splats.scales[:] = np.log([[0.01, 0.29, 0.01], [0.01, 0.01, 0.31]])
    part = write_part(tmp_path, "p000", splats)
    areas = [slab("p000", -INF, 0, buffer=0.9), slab("p001", 0, INF, buffer=0.9)]
    grid = Grid((-4.0, -1.0), 1.0, 4, 2)
    found = survey({"p000": read_header(part.path)}, areas, IDENTITY, grid, no_cleaning())
    assert found.cell.tolist() == grid.cell(np.array([[-1.0, 0, 0]])).tolist()


def test_spacing_is_that_of_the_third_neighbour_and_needs_one(tmp_path: Path) -> None:
    line = splats_at(np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [4, 0, 0]]))
    write_splats(tmp_path / "four.ply", line)
    found = spacing(read_header(tmp_path / "four.ply"))
    np.testing.assert_allclose(found.distance, [4, 3, 2, 4])
    np.testing.assert_allclose(found.isolation, [4 / 3, 9 / 10, 6 / 11, 4 / 3], rtol=1e-6)
    lost = line.select(np.arange(4))
    lost.means[1, 2] = np.nan  # leaves three
    write_splats(tmp_path / "three.ply", lost)
    assert np.isinf(spacing(read_header(tmp_path / "three.ply")).distance).all()


@pytest.mark.parametrize("drawn", [True, False])
def test_the_coverage_map_outlines_a_core_of_any_shape_and_not_the_box_round_it(tmp_path: Path, drawn: bool) -> None:
    ell = (regions_of([ELL], rest=True) if drawn else boxes_of_the_ell())[0]
    grid, full = Grid((-1.0, -1.0), 0.25, 32, 32), np.ones((32, 32))
    Coverage(grid, full, full).draw(tmp_path / "map.png", [Area("p000", ell, ell.grown(0.3))], [])
    with Image.open(tmp_path / "map.png") as picture:
        panel = np.asarray(picture.convert("RGB"))[30 : 30 + 480, 10 : 10 + 480]  # 60 pixels for a unit, from the top
    orange = (panel == (255, 165, 0)).all(axis=2)
    for x, y in ((6, 1), (4, 2), (2, 4), (3, 0), (0, 3)):
        row, column = 480 - 60 * (y + 1), 60 * (x + 1)
        assert orange[row - 2 : row + 2, column - 2 : column + 2].any(), (x, y)
    assert not orange[60 : 60 + 230, 200:].any(), "nothing in the notch"


@pytest.mark.parametrize("rows", [0, 50])
def test_a_trained_patch_that_holds_nothing_is_filled_as_one_that_is_missing(tmp_path: Path, rows: int) -> None:
    """No Gaussian at all, or none whose numbers are any."""
    hollow = write_part(tmp_path, "p000", splats_at(np.zeros((rows, 3))))
    header = read_header(hollow.path)
    values = np.full(rows * header.row_bytes // 4, np.nan, np.float32)
    hollow.path.write_bytes(hollow.path.read_bytes()[: header.offset] + values.tobytes())
    neighbour = write_part(tmp_path, "p001", carpet(-1, 4, seed=2))
    missing = merge_splats([neighbour], tmp_path / "a.ply", [LEFT, RIGHT], IDENTITY)
    report = merge_splats([hollow, neighbour], tmp_path / "b.ply", [LEFT, RIGHT], IDENTITY, borders=Borders(0.5))
    there = covered(read_splats(missing.path), -0.6, -0.2)
    assert there > 100
    assert covered(read_splats(report.path), -0.6, -0.2) > 0.95 * there, "all but cells that are hardly covered"
    assert [(loan.owner, loan.neighbour) for loan in report.loans] == [("p000", "p001")]
    assert_accounted(report)
