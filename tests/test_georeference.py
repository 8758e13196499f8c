"""Transforms to the world: what files are read, what they do to a splat, and what stands beside an export."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.spatial.transform import Rotation

from splatpipe.errors import ConfigError
from splatpipe.export.georeference import Georeference, find_georeference, read_georeference, write_georeferenced
from splatpipe.export.harmonics import band_rotations, basis
from splatpipe.merge.evaluate import Renderer
from splatpipe.splatting.ply import Splats, read_splats, write_splats

TURN = Rotation.from_euler("xyz", [40, -70, 130], degrees=True)
SHIFT = np.array([431_250.5, 5_700_123.25, 87.0])


def matrix_of(scale: float = 2.5) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = scale * TURN.as_matrix(), SHIFT
    return matrix


def shiny(n: int = 60) -> Splats:
    """Gaussians whose colour depends strongly on the direction."""
    rng = np.random.default_rng(3)
    arrays = (
        rng.uniform(-1, 1, (n, 3)),
        rng.normal(size=(n, 4)),
        rng.normal(-1.8, 0.4, (n, 3)),
        rng.normal(1, 1, n),
        rng.normal(0, 0.6, (n, 1, 3)),
        rng.normal(0, 0.3, (n, 15, 3)),
    )
    return Splats(*(array.astype(np.float32) for array in arrays))


def test_every_accepted_file_says_the_same(tmp_path: Path) -> None:
    matrix, (x, y, z, w) = matrix_of(), TURN.as_quat()
    rows = "\n".join(" ".join(repr(float(v)) for v in row) for row in matrix)
    texts = {
        "matrix.txt": f"# to UTM\n{rows}\n",
        "aligner.txt": " ".join(repr(float(v)) for v in (2.5, w, x, y, z, *SHIFT)),
        "list.json": str(matrix.tolist()),
        "matrix.json": f'{{"matrix": {matrix.tolist()}, "crs": "EPSG:32630"}}',
        "parts.json": f'{{"scale": 2.5, "rotation": {TURN.as_matrix().tolist()}, "translation": {SHIFT.tolist()}}}',
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        np.testing.assert_allclose(read_georeference(tmp_path / name).matrix, matrix, rtol=1e-9, err_msg=name)
    assert read_georeference(tmp_path / "matrix.json").crs == "EPSG:32630"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1 2 3", "3 numbers"),
        ("1 0 0 0  0 2 0 0  0 0 1 0  0 0 0 1", "cannot be stretched"),
        ("-1 0 0 0  0 1 0 0  0 0 1 0  0 0 0 1", "mirrors or flattens"),
        ("1 0 0 nan  0 1 0 0  0 0 1 0  0 0 0 1", "every number finite"),
        ("0 0 0 0 0 1 2 3", "quaternion is 0"),
        ('{"scale": 2}', "rotation, translation missing"),
        ("{", "4x4 matrix"),
        ("north", "4x4 matrix"),
    ],
)
def test_other_files_are_refused_with_what_is_wanted(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "g.txt"
    path.write_text(text)
    with pytest.raises(ConfigError, match=sentence) as error:
        read_georeference(path)
    assert str(path) in str(error.value)


def test_the_scenes_own_file_is_found_and_a_named_one_goes_first(tmp_path: Path) -> None:
    assert find_georeference(None, tmp_path) is None
    (tmp_path / "georeference.txt").write_text("1 1 0 0 0 1 2 3")
    (tmp_path / "other.txt").write_text("1 1 0 0 0 4 5 6")
    for setting, x in ((None, 1), ("other.txt", 4), (str(tmp_path / "other.txt"), 4)):
        found = find_georeference(setting, tmp_path)
        assert found is not None
        assert found.translation[0] == x
    with pytest.raises(ConfigError, match=r"nowhere\.txt cannot be read"):
        find_georeference("nowhere.txt", tmp_path)


def test_turned_coefficients_show_in_turned_directions_what_they_showed_before() -> None:
    rng = np.random.default_rng(0)
    coefficients, directions = rng.normal(size=16), rng.normal(size=(50, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    turned = coefficients.copy()
    for degree, band in enumerate(band_rotations(TURN.as_matrix()), 1):
        part = slice(degree**2, (degree + 1) ** 2)
        turned[part] = band @ coefficients[part]
    before = basis(directions) @ coefficients
    np.testing.assert_allclose(basis(TURN.apply(directions)) @ turned, before, atol=1e-9)


def test_a_georeferenced_splat_looks_the_same_from_a_moved_camera(tmp_path: Path) -> None:
    """With our rasteriser, which has spherical harmonics of its own."""
    splats, K = shiny(), np.array([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]])
    write_splats(tmp_path / "scene.ply", splats)
    reference = Georeference(2.5, TURN.as_matrix(), SHIFT)
    offset = reference.offset(np.zeros(3))
    np.testing.assert_array_equal(offset, [431_000, 5_700_000, 0])
    assert write_georeferenced(tmp_path / "scene.ply", tmp_path / "world.ply", reference, offset) == len(splats)
    viewmat = np.eye(4)
    viewmat[:3, :3] = Rotation.from_euler("xyz", [10, 20, 30], degrees=True).as_matrix()
    viewmat[2, 3] = 4
    moved = np.eye(4)
    moved[:3, :3] = viewmat[:3, :3] @ TURN.as_matrix().T
    moved[:3, 3] = 2.5 * viewmat[:3, 3] - moved[:3, :3] @ (SHIFT - offset)
    before = Renderer(splats).render(viewmat, K, 64, 48)
    after = Renderer(read_splats(tmp_path / "world.ply")).render(moved, K, 64, 48)
    assert before.std() > 0.05
    assert np.abs(before - after).max() < 0.01
    unturned = read_splats(tmp_path / "world.ply")
    unturned.shN[:] = splats.shN
    assert np.abs(Renderer(unturned).render(moved, K, 64, 48) - before).max() > 0.05


def test_what_stands_beside_an_export_leads_back_to_the_world() -> None:
    reference = Georeference(2.5, TURN.as_matrix(), SHIFT, "EPSG:32630")
    point = np.array([1.0, -2.0, 0.5])
    world = 2.5 * TURN.as_matrix() @ point + SHIFT
    offset = reference.offset(np.zeros(3))
    for applied, stored in ((False, point), (True, world - offset)):
        data = reference.to_json(applied, offset)
        back = np.array(data["matrix"]) @ [*stored, 1] + [*data["offset"], 0]
        np.testing.assert_allclose(back[:3], world, rtol=1e-12)
        assert data["crs"] == "EPSG:32630"


def test_a_run_is_exported_in_world_coordinates_with_the_json_beside(tmp_path: Path) -> None:
    from splatpipe.config import Config
    from splatpipe.exporting import export_run

    run, scene = tmp_path / "run", tmp_path / "scene"
    (run / "merged").mkdir(parents=True)
    scene.mkdir()
    settings = yaml.safe_dump({"scene": str(scene), "settings": Config().to_dict()})
    (run / "run.yml").write_text(settings)
    write_splats(run / "merged" / "splat.ply", shiny())
    with pytest.raises(ConfigError, match="--georeferenced: .* has no georeference"):
        export_run(run, "ply", None, True, print)
    (scene / "georeference.txt").write_text("2.5 1 0 0 0 431250.5 5700123.25 87")
    done = export_run(run, "ply", None, True, print)
    beside = json.loads((run / "merged/exports/georeferenced/georeference.json").read_text())
    world = read_splats(Path(done["exports"][0]["path"])).means + np.array(beside["offset"])
    np.testing.assert_allclose(world, 2.5 * shiny().means + SHIFT, atol=1e-3)
    assert read_splats(run / "merged" / "splat.ply").means == pytest.approx(shiny().means)
