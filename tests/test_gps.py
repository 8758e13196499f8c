"""GPS in photographs: read as cameras write it, fitted robustly, refused where it says too little."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from PIL.TiffImagePlugin import IFDRational
from scenes import look_at, scene_from, write_scene
from scipy.spatial.transform import Rotation
from test_georeference import shiny

from splatpipe.config import Config
from splatpipe.errors import ConfigError
from splatpipe.export.gps import fit_gps, read_gps, utm
from splatpipe.exporting import export_run
from splatpipe.splatting.ply import read_splats, write_splats

TORONTO = (43.642567, -79.387139, 120.0)
METRE = 1 / 111_200  # degrees of latitude
TURN = Rotation.from_euler("xyz", [40, -70, 130], degrees=True)


def place(metres: np.ndarray) -> list[tuple[float, float, float]]:
    """(N, 3) east, north and up of a tower in Toronto, as latitude, longitude and height."""
    latitude = TORONTO[0] + metres[:, 1] * METRE
    longitude = TORONTO[1] + metres[:, 0] * METRE / np.cos(np.radians(TORONTO[0]))
    return list(zip(latitude.tolist(), longitude.tolist(), (TORONTO[2] + metres[:, 2]).tolist(), strict=True))


def photograph(path: Path, where: tuple[float, float, float] | None) -> Path:
    """A JPEG with GPS as a camera writes it: references, degrees, minutes and seconds, height. Keeps what is there."""
    picture, exif = (Image.open(path) if path.is_file() else Image.new("RGB", (8, 8))), Image.Exif()
    picture.load()
    if where:
        latitude, longitude, height = where
        tags = exif.get_ifd(0x8825)
        tags.update({1: "S" if latitude < 0 else "N", 2: dms(latitude), 3: "W" if longitude < 0 else "E"})
        tags.update({4: dms(longitude), 5: b"\1" if height < 0 else b"\0"})
        tags[6] = IFDRational(round(abs(height) * 1000), 1000)
    picture.save(path, exif=exif)
    return path


def dms(angle: float) -> tuple[IFDRational, ...]:
    seconds = round(abs(angle) * 3600 * 1_000_000)
    return (
        IFDRational(seconds // 3_600_000_000, 1),
        IFDRational(seconds // 60_000_000 % 60, 1),
        IFDRational(seconds % 60_000_000, 1_000_000),
    )


def flight(n: int = 20) -> np.ndarray:
    """(N, 3) metres: three lanes, a little up and down."""
    rng = np.random.default_rng(5)
    return np.column_stack([np.arange(n) * 8.0 % 60, np.arange(n) // 7 * 40.0, 80 + rng.normal(0, 3, n)])


def seen_from(metres: np.ndarray) -> np.ndarray:
    """The same camera centres in a scene that is turned, moved and 30 times smaller."""
    return TURN.apply(metres / 30) + [1.0, -2.0, 5.0]


@pytest.mark.parametrize(
    ("degrees", "zone", "metres"),
    [  # two published examples, and the edge of a zone on the equator
        ((43.642567, -79.387139), 17, (630_084, 4_833_439)),
        ((-33.857, 151.215), 56, (334_873, 6_252_266)),
        ((0.0, 6.0), 31, (833_979, 0)),
    ],
)
def test_degrees_become_utm(degrees: tuple[float, float], zone: int, metres: tuple[int, int]) -> None:
    found = utm(np.array([degrees[0]]), np.array([degrees[1]]), zone, degrees[0] < 0)
    assert found[0] == pytest.approx(metres, abs=0.6)


@pytest.mark.parametrize("where", [TORONTO, (-33.857, 151.215, -12.5), (0.5, -0.25, 0.0)])
def test_all_hemispheres_are_read_from_a_photograph(tmp_path: Path, where: tuple[float, float, float]) -> None:
    assert read_gps(photograph(tmp_path / "a.jpg", where)) == pytest.approx(where, abs=1e-8)


def test_what_is_no_fix_is_not_taken_for_one(tmp_path: Path) -> None:
    assert read_gps(photograph(tmp_path / "none.jpg", None)) is None
    assert read_gps(photograph(tmp_path / "zero.jpg", (0.0, 0.0, 0.0))) is None, "a receiver without a fix"
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    assert read_gps(tmp_path / "broken.jpg") is None
    assert read_gps(tmp_path / "absent.jpg") is None


def test_a_flight_is_placed_in_the_world_and_wrong_photographs_do_not_matter(tmp_path: Path) -> None:
    metres = flight()
    noisy = metres + np.random.default_rng(1).normal(0, 0.5, metres.shape)
    noisy[[3, 11, 12]] += [[400, 0, 0], [0, -90, 60], [0, 0, 800]]
    paths = [photograph(tmp_path / f"{i:02d}.jpg", where) for i, where in enumerate(place(noisy))]
    photograph(paths[7], None)
    fit = fit_gps(seen_from(metres), paths)
    assert fit is not None and fit.reference is not None
    assert "GPS in 19 of 20 photographs (EPSG:32617)" in fit.sentence and "3 left out" in fit.sentence
    reference = fit.reference
    assert reference.crs == "EPSG:32617"
    assert reference.scale == pytest.approx(30, rel=0.02)
    there = reference.scale * seen_from(metres) @ reference.rotation.T + reference.translation
    expected = np.column_stack([utm(*np.array(place(metres)).T[:2], 17, False), 120 + metres[:, 2]])
    assert np.abs(there - expected).max() < 2


def test_photographs_in_one_line_are_not_used_because_up_would_be_a_guess(tmp_path: Path) -> None:
    metres = flight() * [1, 0, 0]
    noisy = metres + np.random.default_rng(1).normal(0, 1, metres.shape)
    paths = [photograph(tmp_path / f"{i:02d}.jpg", where) for i, where in enumerate(place(noisy))]
    fit = fit_gps(seen_from(metres), paths)
    assert fit is not None and fit.reference is None and "in one line" in fit.sentence


def test_an_export_takes_gps_where_the_scene_has_no_file(tmp_path: Path) -> None:
    metres = flight(9)
    said: list[str] = []
    points = TURN.apply(np.random.default_rng(2).uniform(0, 2, (200, 3)) * [1, 1, 0.1]) + [1.0, -2.0, 5.0]
    middle = points.mean(axis=0)
    views = np.stack([look_at(center, middle, TURN.apply([0, 1, 0])) for center in seen_from(metres)])
    scene = scene_from(points, views)
    write_scene(tmp_path / "scene", scene)
    run = tmp_path / "run"
    (run / "merged").mkdir(parents=True)
    (run / "run.yml").write_text(yaml.safe_dump({"scene": str(tmp_path / "scene"), "settings": Config().to_dict()}))
    write_splats(run / "merged" / "splat.ply", shiny())
    with pytest.raises(ConfigError, match="its photographs have no GPS that fits"):
        export_run(run, "ply", None, True, said.append)
    for name, where in zip(scene.names, place(metres), strict=True):
        photograph(tmp_path / "scene" / "images" / name, where)
    done = export_run(run, "ply", None, True, said.append)
    assert "GPS in 9 of 9 photographs (EPSG:32617)" in said[-1]
    beside = json.loads((run / "merged/exports/georeferenced/georeference.json").read_text())
    world = read_splats(Path(done["exports"][0]["path"])).means + np.array(beside["offset"])
    size = np.linalg.norm(shiny().means - shiny().means.mean(axis=0), axis=1)
    np.testing.assert_allclose(np.linalg.norm(world - world.mean(axis=0), axis=1), 30 * size, rtol=0.01)
    assert beside["crs"] == "EPSG:32617"
