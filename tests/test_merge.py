"""Merging: every Gaussian from exactly one patch, nothing lost but by a rule that is counted."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from splatpipe.errors import EnvironmentProblem, RunFolderError
from splatpipe.merge.clean import RULES, Cleaning
from splatpipe.merge.join import MergePart, MergeReport, merge_splats
from splatpipe.merge.settings import MergeSettings
from splatpipe.patches.frame import Frame
from splatpipe.patches.patch import Box
from splatpipe.splatting.ply import (
    SplatFileError,
    Splats,
    antialiased_comment,
    read_header,
    read_splats,
    to_rows,
    write_splats,
)

INF = np.inf
IDENTITY = Frame(np.eye(3), "axes", "")


@dataclass(frozen=True)
class Area:
    """As much of a `Patch` as the merge looks at."""

    id: str
    core: Box
    buffered: Box


def slab(patch_id: str, low: float, high: float, buffer: float = 1.0) -> Area:
    """A patch that owns low <= x < high, whatever y and z."""
    core = Box(np.array([low, -INF, -INF]), np.array([high, INF, INF]))
    return Area(patch_id, core, core.grown(buffer))


def splats_at(means: np.ndarray, degree: int = 0, seed: int = 0) -> Splats:
    """Opaque, small Gaussians at `means`; sh0 carries their position, so that they can be told apart."""
    n, rng = len(means), np.random.default_rng(seed)
    means = np.asarray(means, np.float32)
    quats = rng.normal(size=(n, 4)).astype(np.float32)
    shN = rng.normal(size=(n, (degree + 1) ** 2 - 1, 3)).astype(np.float32)
    return Splats(means, quats, np.full((n, 3), -3, np.float32), np.full(n, 2, np.float32), means[:, None].copy(), shN)


def on_x(*xs: float) -> np.ndarray:
    return np.array([[x, 0.5, -0.5] for x in xs], np.float64)


def write_part(folder: Path, patch_id: str, splats: Splats) -> MergePart:
    write_splats(folder / f"{patch_id}.ply", splats)
    return MergePart(patch_id, folder / f"{patch_id}.ply")


def assert_accounted(report: MergeReport) -> None:
    for part in report.parts:
        assert part.read == part.kept + part.foreign + sum(part.dropped.values())
    assert report.gaussians == sum(part.kept for part in report.parts)


def test_each_patch_gives_what_lies_in_its_core(tmp_path: Path) -> None:
    parts = [
        write_part(tmp_path, "p000", splats_at(on_x(-5, -0.1, 0.2))),
        write_part(tmp_path, "p001", splats_at(on_x(-0.2, 0.0, 7))),
    ]
    patches = [slab("p000", -INF, 0), slab("p001", 0, INF)]
    report = merge_splats(parts, tmp_path / "out.ply", patches, IDENTITY)
    np.testing.assert_allclose(read_splats(tmp_path / "out.ply").means[:, 0], [-5, -0.1, 0, 7], rtol=1e-6)
    assert [(part.read, part.kept, part.foreign) for part in report.parts] == [(3, 2, 1), (3, 2, 1)]
    assert report.holes == ()
    assert_accounted(report)
    json.dumps(report.to_json(), allow_nan=False)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    borders=st.lists(st.floats(-3, 3), max_size=3, unique=True),
    floors=st.lists(st.floats(-3, 3), max_size=2, unique=True),
    chunk=st.integers(1, 70),
)
def test_cores_that_tile_space_keep_every_gaussian_of_equal_inputs_once(
    tmp_path: Path, seed: int, borders: list[float], floors: list[float], chunk: int
) -> None:
    rng = np.random.default_rng(seed)
    rotation = Rotation.random(random_state=seed).as_matrix()
    means = rng.uniform(-4, 4, (60, 3))
    # Many Gaussians exactly on borders, as far as float32 goes.
    means[:30] = np.array([[*(rng.choice([*borders, 0]), rng.choice([*floors, 0])), 1] for _ in range(30)]) @ rotation
    splats = splats_at(means)
    columns = list(zip([-INF, *sorted(borders)], [*sorted(borders), INF], strict=True))
    rows = list(zip([-INF, *sorted(floors)], [*sorted(floors), INF], strict=True))
    cells = [(x, y) for x in columns for y in rows]
    boxes = [Box(np.array([x[0], y[0], -INF]), np.array([x[1], y[1], INF])) for x, y in cells]
    patches = [Area(f"p{i:03d}", box, box) for i, box in enumerate(boxes)]
    # The same Gaussians in another order in every file.
    parts = [write_part(tmp_path, t.id, splats.select(rng.permutation(60))) for t in patches]
    report = merge_splats(parts, tmp_path / "out.ply", patches, Frame(rotation, "axes", ""), chunk_rows=chunk)
    assert_accounted(report)
    merged = read_splats(tmp_path / "out.ply")
    np.testing.assert_array_equal(np.unique(merged.means, axis=0), np.unique(splats.means, axis=0))
    assert len(merged) == 60


def test_the_order_of_the_parts_does_not_change_a_byte(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    parts = [write_part(tmp_path, f"p{i:03d}", splats_at(rng.normal(size=(50, 3)), seed=i)) for i in range(3)]
    patches = [slab("p000", -INF, -1), slab("p001", -1, 1), slab("p002", 1, INF)]
    merge_splats(parts, tmp_path / "a.ply", patches, IDENTITY)
    merge_splats(parts[::-1], tmp_path / "b.ply", patches[::-1], IDENTITY)
    assert (tmp_path / "a.ply").read_bytes() == (tmp_path / "b.ply").read_bytes()


def test_degrees_are_reconciled_to_the_highest_without_touching_what_is_there(tmp_path: Path) -> None:
    low, high = splats_at(on_x(-1, -2), degree=1), splats_at(on_x(1, 2), degree=3)
    parts = [write_part(tmp_path, "p000", low), write_part(tmp_path, "p001", high)]
    report = merge_splats(parts, tmp_path / "out.ply", [slab("p000", -INF, 0), slab("p001", 0, INF)], IDENTITY)
    merged = read_splats(tmp_path / "out.ply")
    assert report.sh_degree == merged.sh_degree == 3
    np.testing.assert_array_equal(merged.shN[:2, :3], low.shN)
    assert not merged.shN[:2, 3:].any()
    np.testing.assert_array_equal(merged.shN[2:], high.shN)
    np.testing.assert_array_equal(merged.quats, np.concatenate([low.quats, high.quats]))


def test_buffers_of_the_neighbours_stand_in_for_a_missing_patch(tmp_path: Path) -> None:
    patches = [slab("p000", -INF, 0), slab("p001", 0, 4), slab("p002", 4, INF)]
    parts = [
        write_part(tmp_path, "p000", splats_at(on_x(-1, 0.5, 0.9, 1.5))),  # 1.5 is beyond its buffer
        write_part(tmp_path, "p002", splats_at(on_x(0.6, 3.5, 5))),  # 0.6 is not its to fill
    ]
    report = merge_splats(parts, tmp_path / "out.ply", patches, IDENTITY)
    np.testing.assert_allclose(read_splats(tmp_path / "out.ply").means[:, 0], [-1, 0.5, 0.9, 3.5, 5])
    assert report.holes == ("p001",)
    assert report.filled("p001") == {"p000": 2, "p002": 1}
    (sentence,) = report.hole_sentences()
    assert sentence.startswith("p001 is missing") and "2 Gaussians of p000, 1 Gaussians of p002" in sentence
    assert_accounted(report)


def test_where_two_buffers_reach_into_a_hole_the_nearer_core_fills_it(tmp_path: Path) -> None:
    patches = [slab("p000", -INF, 0, buffer=9), slab("p001", 0, 4), slab("p002", 4, INF, buffer=9)]
    everywhere = splats_at(on_x(0.5, 1.9, 2.0, 2.1, 3.9))
    parts = [write_part(tmp_path, "p000", everywhere), write_part(tmp_path, "p002", everywhere)]
    report = merge_splats(parts, tmp_path / "out.ply", patches, IDENTITY)
    np.testing.assert_allclose(read_splats(tmp_path / "out.ply").means[:, 0], [0.5, 1.9, 2.0, 2.1, 3.9])
    assert report.filled("p001") == {"p000": 3, "p002": 2}


def faulty_splats() -> Splats:
    splats = splats_at(on_x(1, 2, 3, 4, 5, 5000))
    splats.means[0, 1] = np.nan
    splats.opacities[1] = -7  # 0.0009
    splats.scales[2, 1] = np.log(30)
    splats.scales[0, 1] = np.log(30)  # already dropped as not finite
    return splats


@pytest.mark.parametrize(
    ("rules", "kept", "dropped"),
    [
        (MergeSettings(max_scale=1), [4, 5], {"not_finite": 1, "transparent": 1, "oversized": 1, "far_away": 1}),
        (
            MergeSettings(max_scale=1, min_opacity=0),
            [2, 4, 5],
            {"not_finite": 1, "transparent": 0, "oversized": 1, "far_away": 1},
        ),
        (MergeSettings(), [3, 4, 5], {"not_finite": 1, "transparent": 1, "oversized": 0, "far_away": 1}),
        (
            MergeSettings(max_scale=1, max_distance=0),
            [4, 5, 5000],
            {"not_finite": 1, "transparent": 1, "oversized": 1, "far_away": 0},
        ),
        (MergeSettings(max_scale=4), [3, 4, 5], {"not_finite": 1, "transparent": 1, "oversized": 0, "far_away": 1}),
    ],
)
def test_each_rule_drops_and_counts_what_it_says_and_can_be_off(
    tmp_path: Path, rules: MergeSettings, kept: list[float], dropped: dict[str, int]
) -> None:
    path = tmp_path / "p000.ply"
    splats = faulty_splats()
    write_splats(path, splats_at(on_x(1, 2, 3, 4, 5, 5000)))
    header_bytes = path.read_bytes().index(b"end_header\n") + 11
    # A file with NaN, which write_splats would not write.
    path.write_bytes(path.read_bytes()[:header_bytes] + to_rows(splats).tobytes())
    cleaning = Cleaning(rules, np.zeros(3), extent=10.0)
    report = merge_splats(
        [MergePart("p000", path)], tmp_path / "out.ply", [slab("p000", -INF, INF)], IDENTITY, cleaning
    )
    np.testing.assert_allclose(read_splats(tmp_path / "out.ply").means[:, 0], kept)
    assert report.dropped == dict.fromkeys(RULES, 0) | dropped
    assert_accounted(report)


def test_rules_relative_to_the_scene_do_not_depend_on_its_units(tmp_path: Path) -> None:
    for factor in (1e-3, 1.0, 1e3):
        splats = splats_at(on_x(1, 2, 3, 4, 5, 5000) * factor)
        splats.scales[:] = np.log(0.1 * factor)
        splats.scales[2] = np.log(30 * factor)
        part = write_part(tmp_path, "p000", splats)
        cleaning = Cleaning(MergeSettings(max_scale=1), np.zeros(3), extent=10 * factor)
        report = merge_splats([part], tmp_path / "out.ply", [slab("p000", -INF, INF)], IDENTITY, cleaning)
        assert report.dropped == dict.fromkeys(RULES, 0) | {"oversized": 1, "far_away": 1}


def test_antialiased_parts_make_an_antialiased_splat_and_nothing_else_joins_them(tmp_path: Path) -> None:
    patches, splats = [slab("p000", 0, 5), slab("p001", 5, 10)], splats_at(on_x(1, 6))
    parts = [write_part(tmp_path, patch.id, splats) for patch in patches]
    for part in parts:
        write_splats(part.path, splats, (antialiased_comment(0.3),))
    merge_splats(parts, tmp_path / "merged.ply", patches, IDENTITY)
    assert read_header(tmp_path / "merged.ply").antialiased == 0.3
    write_splats(parts[1].path, splats)
    with pytest.raises(RunFolderError, match="p000 and p001 were not both trained with the same antialiasing"):
        merge_splats(parts, tmp_path / "merged.ply", patches, IDENTITY)


def test_a_truncated_part_is_named_and_the_old_merge_stays(tmp_path: Path) -> None:
    parts = [write_part(tmp_path, f"p{i:03d}", splats_at(on_x(-1, 1))) for i in range(2)]
    patches = [slab("p000", -INF, 0), slab("p001", 0, INF)]
    merge_splats(parts, tmp_path / "out.ply", patches, IDENTITY)
    before = (tmp_path / "out.ply").read_bytes()
    parts[1].path.write_bytes(parts[1].path.read_bytes()[:-100])
    with pytest.raises(SplatFileError, match=r"p001\.ply"):
        merge_splats(parts, tmp_path / "out.ply", patches, IDENTITY)
    assert (tmp_path / "out.ply").read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.ply", "p000.ply", "p001.ply"]


def test_nothing_to_merge_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no patch has a trained splat"):
        merge_splats([], tmp_path / "out.ply", [slab("p000", -INF, INF)], IDENTITY)


def test_a_disk_without_room_is_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the full disk."""
    part = write_part(tmp_path, "p000", splats_at(np.zeros((5000, 3))))
    before = sorted(entry.name for entry in tmp_path.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(EnvironmentProblem, match=r"out\.ply: the merged splat does not fit there"):
            merge_splats([part], tmp_path / "out.ply", [slab("p000", -INF, INF)], IDENTITY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == before


MEASURE = """
import sys
import numpy as np
from pathlib import Path
from splatpipe.merge.join import MergePart, merge_splats
sys.path.insert(0, {tests!r})
from test_merge import IDENTITY, slab
folder = Path({folder!r})
peak_kib = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before = peak_kib()
parts = [MergePart(f"p{{i:03d}}", folder / "big.ply") for i in range({n})]
edges = [-np.inf, *np.linspace(-1, 1, {n} - 1), np.inf]
patches = [slab(part.patch_id, *edges[i : i + 2]) for i, part in enumerate(parts)]
report = merge_splats(parts, folder / "out.ply", patches, IDENTITY)
assert report.gaussians == 200_000, report.gaussians
print(peak_kib() - before)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_gaussians(tmp_path: Path) -> None:
    """12 files of 47 MB through chunks of 31 MB: less is held than three of the files."""
    write_splats(tmp_path / "big.ply", splats_at(np.random.default_rng(0).normal(size=(200_000, 3)), degree=3))
    script = MEASURE.format(tests=str(Path(__file__).parent), folder=str(tmp_path), n=12)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 160 * 1024, "KiB"
