"""What others make of our files: gsply, plyfile and splat-transform open them, Pillow reads SOG by its description."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import KDTree
from test_export import row_count, scattered
from test_merge import IDENTITY, slab

from splatpipe.errors import EnvironmentProblem
from splatpipe.export.formats import FORMATS, parse_formats
from splatpipe.export.transform import SplatTransform, find_transform
from splatpipe.export.write import export_splat
from splatpipe.merge.join import MergePart, merge_splats
from splatpipe.splatting.ply import columns, read_header, read_splats, write_splats

MIRRORED = np.array([1, -1, -1])  # the axes of SPZ that gsply leaves as they stand in the file


@pytest.fixture(scope="module")
def gsply() -> ModuleType:
    return pytest.importorskip("gsply", reason="gsply has wheels for Linux on x86-64 and Python before 3.14 only")


@pytest.fixture(scope="module")
def tool() -> SplatTransform:
    try:
        return find_transform(install=False)
    except EnvironmentProblem as error:
        pytest.skip(f"{error}; one `splatpipe export` installs it")


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patches of different SH degrees, merged."""
    folder = tmp_path_factory.mktemp("merged")
    patches = [slab("p000", -np.inf, 1.5), slab("p001", 1.5, np.inf)]
    for patch, degree in zip(patches, (1, 2), strict=True):
        write_splats(folder / f"{patch.id}.ply", scattered(200, degree))
    parts = [MergePart(patch.id, folder / f"{patch.id}.ply") for patch in patches]
    merge_splats(parts, folder / "splat.ply", patches, IDENTITY)
    return folder / "splat.ply"


@pytest.fixture(scope="module")
def exports(merged: Path, tool: SplatTransform) -> Path:
    """The folder with compressed PLY, SPZ and SOG of the merged splat."""
    export_splat(merged, parse_formats("compressed,spz,sog"), lambda name: merged.with_name(name), tool)
    return merged.parent


def box(means: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.stack([means.min(axis=0), means.max(axis=0)])


def test_plyfile_reads_the_values_that_we_read(merged: Path) -> None:
    plyfile = pytest.importorskip("plyfile", reason="plyfile is not installed (pip install -e .[test])")
    (vertex,) = plyfile.PlyData.read(merged).elements
    assert vertex.name == "vertex"
    assert [one.name for one in vertex.properties] == list(columns(2))
    ours = read_splats(merged)
    assert vertex.count == len(ours) == read_header(merged).count > 150
    theirs = np.stack([vertex[name] for name in columns(2)], axis=1)
    assert theirs.dtype == np.float32
    per_channel = np.swapaxes(theirs[:, 9:33].reshape(-1, 3, 8), 1, 2)
    for read, kept in (
        (theirs[:, :3], ours.means),
        (theirs[:, 6:9], ours.sh0[:, 0]),
        (per_channel, ours.shN),
        (theirs[:, 33], ours.opacities),
        (theirs[:, 34:37], ours.scales),
        (theirs[:, 37:], ours.quats),
    ):
        np.testing.assert_array_equal(read, kept)


def test_gsply_reads_the_values_that_we_read(merged: Path, gsply: ModuleType) -> None:
    theirs, ours = gsply.plyread(merged), read_splats(merged)
    assert len(theirs) == len(ours)
    for name in ("means", "scales", "quats", "opacities", "shN"):
        np.testing.assert_array_equal(getattr(theirs, name), getattr(ours, name), name)
    np.testing.assert_array_equal(theirs.sh0, ours.sh0[:, 0])


def test_splat_transform_counts_what_we_count(merged: Path, tool: SplatTransform, exports: Path) -> None:
    count = read_header(merged).count
    files = [merged, *(exports / FORMATS[name].file for name in ("compressed", "spz", "sog"))]
    assert [row_count(tool, file) for file in files] == [count] * 4


@pytest.mark.parametrize(("name", "reader", "axes"), [("compressed", "plyread", 1), ("spz", "read_spz", MIRRORED)])
def test_gsply_finds_every_gaussian_of_an_export_in_its_place(
    merged: Path, exports: Path, gsply: ModuleType, name: str, reader: str, axes: int | NDArray[np.int_]
) -> None:
    theirs, ours = getattr(gsply, reader)(exports / FORMATS[name].file), read_splats(merged)
    assert len(theirs) == len(ours)
    assert theirs.shN.shape == ours.shN.shape
    means = np.asarray(theirs.means) * axes
    np.testing.assert_allclose(box(means), box(ours.means), atol=0.01)
    away, nearest = KDTree(means).query(ours.means)
    assert away.max() < 0.02
    assert len(np.unique(nearest)) == len(ours)
    assert np.quantile(np.abs(np.sort(theirs.scales, axis=0) - np.sort(ours.scales, axis=0)), 0.95) < 0.07


def test_pillow_finds_every_gaussian_of_a_sog_in_its_place(merged: Path, exports: Path) -> None:
    """By the description of SOG: 16 bits a coordinate in two textures, logarithmic; sizes and colours by codebooks."""
    ours = read_splats(merged)
    with zipfile.ZipFile(exports / "splat.sog") as packed:
        meta = json.loads(packed.read("meta.json"))

        def texture(name: str) -> NDArray[np.int64]:
            with packed.open(name) as file, Image.open(file) as image:
                return np.asarray(image.convert("RGBA"), np.int64).reshape(-1, 4)[: meta["count"]]

        low, high = (texture(name)[:, :3] for name in meta["means"]["files"])
        scales = np.array(meta["scales"]["codebook"])[texture(meta["scales"]["files"][0])[:, :3]]
        base = texture(meta["sh0"]["files"][0])
    assert (meta["version"], meta["count"]) == (2, len(ours))
    share, least, most = (high << 8 | low) / 65535, np.array(meta["means"]["mins"]), np.array(meta["means"]["maxs"])
    logarithms = least + (most - least) * share
    means = np.sign(logarithms) * np.expm1(np.abs(logarithms))
    away, nearest = KDTree(means).query(ours.means)
    assert away.max() < 0.001
    assert len(np.unique(nearest)) == len(ours)
    assert np.quantile(np.abs(scales[nearest] - ours.scales), 0.95) < 0.02
    colors = np.array(meta["sh0"]["codebook"])[base[nearest, :3]]
    assert np.quantile(np.abs(colors - ours.sh0[:, 0]), 0.95) < 0.05
    opacities = 1 / (1 + np.exp(-ours.opacities.astype(np.float64)))
    assert np.abs(base[nearest, 3] / 255 - opacities).max() < 0.01
