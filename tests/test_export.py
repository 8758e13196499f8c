"""Exports: what is chosen for how many Gaussians, and what splat-transform really writes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import KDTree

from splatpipe.errors import ConfigError, EnvironmentProblem
from splatpipe.export.formats import FORMATS, parse_formats, recipe
from splatpipe.export.transform import SplatTransform, find_transform, user_cache
from splatpipe.export.write import export_splat
from splatpipe.splatting.ply import SplatFileError, Splats, read_splats, write_splats


@pytest.fixture(scope="module")
def tool() -> SplatTransform:
    try:
        return find_transform(install=False)
    except EnvironmentProblem as error:
        pytest.skip(f"{error}; one `splatpipe export` installs it")


def scattered(n: int = 500, degree: int = 1) -> Splats:
    """Gaussians in an asymmetric box, so that a mirrored axis shows."""
    rng = np.random.default_rng(0)
    means = rng.uniform([-1, 0, 2], [4, 7, 3], (n, 3))
    arrays = (
        means,
        rng.normal(size=(n, 4)),
        rng.normal(-3, 0.3, (n, 3)),
        rng.normal(1, 1, n),
        rng.normal(size=(n, 1, 3)),
    )
    shN = rng.normal(0, 0.1, (n, (degree + 1) ** 2 - 1, 3))
    return Splats(*(array.astype(np.float32) for array in (*arrays, shN)))


def row_count(tool: SplatTransform, path: Path) -> int:
    """How many Gaussians splat-transform counts in a file."""
    argv = [str(tool.command), str(path), "--summary", "null"]
    text = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return int(text.split("**Row Count:** ")[1].split()[0])


def test_our_ply_is_counted_alike_by_splat_transform(tmp_path: Path, tool: SplatTransform) -> None:
    write_splats(tmp_path / "a.ply", scattered(321, degree=3), ["a comment"])
    assert row_count(tool, tmp_path / "a.ply") == 321


def test_every_format_is_written_whole_with_its_size_and_time(tmp_path: Path, tool: SplatTransform) -> None:
    write_splats(tmp_path / "a.ply", scattered())
    out = tmp_path / "exports"
    done = export_splat(tmp_path / "a.ply", list(FORMATS.values()), lambda name: out / name, tool)
    assert [one.format for one in done] == list(FORMATS)
    assert all(one.path.is_file() and one.size > 0 and one.seconds > 0 for one in done)
    leftovers = [path.name for path in out.rglob(".*")]
    assert leftovers == []
    for name in ("compressed", "spz", "sog"):
        assert row_count(tool, out / FORMATS[name].file) == 500


@pytest.mark.parametrize("degree", [0, 3])
def test_a_single_gaussian_is_written_in_every_format(tmp_path: Path, tool: SplatTransform, degree: int) -> None:
    write_splats(tmp_path / "a.ply", scattered(1, degree))
    formats = parse_formats("compressed,spz,sog,lod")
    done = export_splat(tmp_path / "a.ply", formats, lambda name: tmp_path / "out" / name, tool)
    assert [row_count(tool, one.path) for one in done[:3]] == [1, 1, 1]
    assert done[3].path.is_file()


@pytest.mark.parametrize(
    ("name", "place", "color", "size"),
    # What each format keeps: positions, base colours from 0 to 1, log sizes.
    [("compressed", 0.02, 0.01, 0.05), ("spz", 0.001, 0.02, 0.07), ("sog", 0.001, 0.02, 0.02)],
)
def test_what_is_written_decodes_to_the_same_splat(
    tmp_path: Path, tool: SplatTransform, name: str, place: float, color: float, size: float
) -> None:
    """No axis is mirrored or swapped: a red Gaussian in a corner of an asymmetric box is still there."""
    splats = scattered(degree=0)
    marker = np.array([5.0, 8.0, 4.0], np.float32)
    splats.means[0], splats.sh0[0, 0], splats.scales[0], splats.opacities[0] = marker, (1.7, -1.7, -1.7), -2.0, 4.0
    write_splats(tmp_path / "a.ply", splats)
    (done,) = export_splat(tmp_path / "a.ply", parse_formats(name), lambda file: tmp_path / file, tool)
    tool.run([str(done.path), str(tmp_path / "back.ply")])
    back = read_splats(tmp_path / "back.ply")
    assert len(back) == len(splats)
    away, nearest = KDTree(back.means).query(splats.means)
    assert away.max() < place
    assert len(np.unique(nearest)) == len(splats)
    base = [np.clip(0.5 + 0.28209479 * one.sh0[:, 0], 0, 1) for one in (splats, back.select(nearest))]
    # Quantisation leaves single outliers at the ends of the range; the bulk must agree.
    assert np.quantile(np.abs(base[0] - base[1]), 0.95) < color
    assert np.quantile(np.abs(np.sort(splats.scales) - np.sort(back.scales[nearest])), 0.95) < size
    found = int(np.argmin(np.linalg.norm(back.means - marker, axis=1)))
    red, green, blue = 0.5 + 0.28209479 * back.sh0[found, 0]
    assert red > 0.9
    assert max(green, blue) < 0.1
    corner = back.means.max(axis=0)
    np.testing.assert_allclose(back.means[found], corner, atol=place)


def test_a_failure_of_splat_transform_is_a_sentence_and_leaves_nothing(tmp_path: Path, tool: SplatTransform) -> None:
    write_splats(tmp_path / "a.ply", scattered(50))
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'out of coffee' >&2\nexit 1\n")
    broken.chmod(0o755)
    out = tmp_path / "exports"
    for name in ("sog", "lod"):
        with pytest.raises(EnvironmentProblem, match="ended with 1: out of coffee"):
            export_splat(tmp_path / "a.ply", parse_formats(name), lambda n: out / n, SplatTransform(broken, False))
    broken.write_text("#!/bin/sh\nexit 0\n")
    with pytest.raises(EnvironmentProblem, match="left no spz file"):
        export_splat(tmp_path / "a.ply", parse_formats("spz"), lambda n: out / n, SplatTransform(broken, False))
    assert [path for path in out.rglob("*") if path.is_file()] == []


def test_a_file_that_is_no_splat_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "a.ply").write_text("ply\nnonsense")
    with pytest.raises(SplatFileError, match=r"a\.ply"):
        export_splat(
            tmp_path / "a.ply", parse_formats("spz"), lambda n: tmp_path / n, SplatTransform(Path("no"), False)
        )


def test_too_many_for_sog_becomes_tiles() -> None:
    made = recipe(FORMATS["sog"], 50_000_000, 3, gpu=True)
    assert made.format.name == "lod"
    assert "50000000 Gaussians are too many for one sog" in made.notes[0]
    assert recipe(FORMATS["sog"], 44_000_000, 3, gpu=True).format.name == "sog"
    assert recipe(FORMATS["spz"], 50_000_000, 3, gpu=False).format.name == "spz"


def test_view_dependent_colour_is_left_out_only_where_it_would_take_hours() -> None:
    without = ("--filter-harmonics", "0")
    assert recipe(FORMATS["sog"], 500_000, 3, gpu=False).arguments == without
    assert recipe(FORMATS["sog"], 500_000, 3, gpu=False).notes
    assert recipe(FORMATS["sog"], 500_000, 3, gpu=True).arguments == ()
    assert recipe(FORMATS["sog"], 500_000, 0, gpu=False).arguments == ()
    assert recipe(FORMATS["spz"], 500_000, 3, gpu=False).arguments == ()


def test_unknown_formats_are_named_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="ksplat is no format; there are ply, compressed, spz, sog, html, lod"):
        parse_formats("sog,ksplat")
    with pytest.raises(ConfigError, match="nothing is no format"):
        parse_formats(" ,")
    assert [one.name for one in parse_formats("sog, spz,sog")] == ["sog", "spz"]


def test_without_node_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentProblem, match="node is not installed.*install Node.js 20"):
        find_transform(tmp_path)


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_another_version_is_not_used(tmp_path: Path) -> None:
    command = tmp_path / "node_modules" / ".bin" / "splat-transform"
    command.parent.mkdir(parents=True)
    command.write_text("#!/bin/sh\necho 'splat-transform v3.7.0'\n")
    command.chmod(0o755)
    with pytest.raises(EnvironmentProblem, match=r"is splat-transform v3\.7\.0, not 2\.7\.1"):
        find_transform(tmp_path)


def test_the_package_is_kept_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "splatpipe" / "splat-transform-2.7.1"
