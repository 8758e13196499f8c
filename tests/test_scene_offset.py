"""Scenes far from the origin: what single precision would spoil there is as good as at home."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from scenes import synthetic_scene, write_scene
from test_pipeline import FAST

from splatpipe import pipeline
from splatpipe.errors import ConfigError, RunFolderError
from splatpipe.exporting import export_run
from splatpipe.options import RunOptions
from splatpipe.patches.partition import split
from splatpipe.patches.settings import PatchingSettings
from splatpipe.scene.arrays import Scene, Similarity
from splatpipe.scene.colmap import read_scene
from splatpipe.scene.offset import near_origin
from splatpipe.splatting.ply import read_header, read_splats

UTM = (500_000.0, 5_600_000.0, 100.0)
HOME = synthetic_scene(n_cameras=18, n_points=300)


def away(scene: Scene, place: tuple[float, float, float] = UTM) -> Scene:
    shift = Similarity(1.0, place)
    return replace(scene, points=shift.apply(scene.points), viewmats=shift.apply_viewmats(scene.viewmats))


def options(scene: Path, out: Path, *overrides: str) -> RunOptions:
    return RunOptions.resolve(scene, out, None, [*FAST, *overrides], None, None)


def test_a_scene_near_the_origin_is_left_as_it_is() -> None:
    for scene in (HOME, away(HOME, (20.0, -30.0, 0.0))):
        same, findings = near_origin(scene, "auto")
        assert same is scene
        assert not findings


def test_a_round_offset_brings_a_survey_home() -> None:
    moved, (finding,) = near_origin(away(HOME), "auto")
    assert moved.offset == UTM
    assert "(500000, 5600000, 100) is taken off" in finding.message
    np.testing.assert_allclose(moved.points, HOME.points, atol=1e-8)
    np.testing.assert_allclose(moved.centers, HOME.centers, atol=1e-8)
    everything_at_one_place = replace(HOME, points=np.full_like(HOME.points, 1e9))
    assert np.isfinite(near_origin(everything_at_one_place, "auto")[0].points).all()


def test_it_is_cut_as_at_home_and_polygons_stay_in_the_models_coordinates() -> None:
    moved, _ = near_origin(away(HOME), "auto")
    for settings in (PatchingSettings(max_cameras=8), PatchingSettings(max_cameras=8, frame="xy")):
        pairs = zip(split(HOME, settings).patches, split(moved, settings).patches, strict=True)
        for one, other in pairs:
            np.testing.assert_array_equal(one.camera_index, other.camera_index)
            np.testing.assert_array_equal(one.point_index, other.point_index)
    middle = float(np.median(HOME.points[:, 0]))
    ring = [(-99.0, -99.0), (middle, -99.0), (middle, 99.0), (-99.0, 99.0)]
    cells = [
        PatchingSettings(frame="xy", cells=(tuple((x + dx, y + dy) for x, y in ring),)) for dx, dy in ((0, 0), UTM[:2])
    ]
    drawn = [split(scene, one).patches for scene, one in zip((HOME, moved), cells, strict=True)]
    assert len(drawn[0]) == len(drawn[1]) == 2
    for one, other in zip(*drawn, strict=True):
        np.testing.assert_array_equal(one.camera_index, other.camera_index)


def test_a_survey_in_utm_trains_as_well_as_at_home_and_its_files_say_where_it_is(tmp_path: Path) -> None:
    results = []
    for name, scene in (("home", HOME), ("utm", away(HOME))):
        write_scene(tmp_path / name, scene)
        given = options(tmp_path / name, tmp_path / f"{name}-run", "patching.max_cameras=10", "training.threads=1")
        assert pipeline.run(given, stop=threading.Event()) == 0
        status = pipeline.status(given.layout.root)
        rows = [(p["id"], p["cameras"], p["points"], p["init_scaling"]) for p in status["patches"]]
        results.append((rows, status["merged"]["psnr"], pipeline.judge(given)["psnr"]))
    (rows, merged, judged), (far_rows, far_merged, far_judged) = results
    assert far_rows == rows
    assert far_merged == pytest.approx(merged, abs=0.05)
    assert far_judged == pytest.approx(judged, abs=0.05)

    run = tmp_path / "utm-run"
    splat = run / "merged" / "splat.ply"
    assert np.abs(np.median(read_splats(splat).means, axis=0)).max() < 100
    assert {"offsetx 500000.0", "offsety 5600000.0", "offsetz 100.0"} <= set(read_header(splat).comments)
    assert json.loads((run / "merged" / "offset.json").read_text())["offset"] == list(UTM)
    assert json.loads((run / "patches" / "p000" / "patch.json").read_text())["offset"] == list(UTM)
    home = tmp_path / "home-run"
    assert not any(c.startswith("offset") for c in read_header(home / "merged" / "splat.ply").comments)
    assert not (home / "merged" / "offset.json").exists()
    assert "offset" not in json.loads((home / "patches" / "p000" / "patch.json").read_text())

    export_run(run, "ply", None, False, print)
    beside = json.loads((run / "merged" / "exports" / "georeference.json").read_text())
    np.testing.assert_allclose(
        np.array(beside["matrix"]) @ [1, 2, 3, 1] + [*beside["offset"], 0], [*np.add(UTM, [1, 2, 3]), 1]
    )
    (tmp_path / "utm" / "georeference.txt").write_text("2 1 0 0 0 -1000000 0 0")  # twice as large, then to the west
    done = export_run(run, "ply", None, True, print)
    beside = json.loads((run / "merged" / "exports" / "georeferenced" / "georeference.json").read_text())
    exported = read_splats(Path(done["exports"][0]["path"])).means.astype(np.float64) + beside["offset"]
    inside = read_splats(splat).means.astype(np.float64)
    np.testing.assert_allclose(exported, 2 * (inside + UTM) - [1e6, 0, 0], atol=1e-2)


def test_a_run_keeps_the_offset_it_began_with(tmp_path: Path) -> None:
    write_scene(tmp_path / "scene", away(HOME))
    given = options(tmp_path / "scene", tmp_path / "run", "scene.offset=[499990,5600000,0]")
    assert pipeline.split(given, dry_run=False)["offset"] == [499_990, 5_600_000, 0]
    assert pipeline.split(RunOptions.of_run(tmp_path / "run", None), dry_run=True)["offset"][0] == 499_990
    with pytest.raises(RunFolderError, match="scene.offset"):
        pipeline.split(options(tmp_path / "scene", tmp_path / "run"), dry_run=False)


def test_a_run_from_before_there_were_offsets_goes_on_without(tmp_path: Path) -> None:
    write_scene(tmp_path / "scene", away(HOME))
    given = options(tmp_path / "scene", tmp_path / "run", "scene.offset=[0,0,0]")
    pipeline.split(given, dry_run=False)
    record = yaml.safe_load((tmp_path / "run" / "run.yml").read_text())
    del record["offset"], record["settings"]["scene"]["offset"]
    (tmp_path / "run" / "run.yml").write_text(yaml.safe_dump(record))
    assert pipeline.split(options(tmp_path / "scene", tmp_path / "run"), dry_run=False)["offset"] == [0, 0, 0]


@pytest.mark.parametrize("offset", [[1e300, 0, 0], [float("nan"), 0, 0], [0, 0], "far"])
def test_an_offset_that_was_damaged_in_run_yml_is_a_sentence(tmp_path: Path, offset: object) -> None:
    write_scene(tmp_path, synthetic_scene(6, 60))
    options = RunOptions.resolve(tmp_path, tmp_path / "run", None, [], None, None)
    pipeline.split(options, dry_run=False)
    record = yaml.safe_load(options.layout.run_yml.read_text())
    options.layout.run_yml.write_text(yaml.safe_dump(record | {"offset": offset}))
    with pytest.raises(RunFolderError, match="run.yml cannot be read"):
        pipeline.split(options, dry_run=False)


@pytest.mark.parametrize("value", ["[1,2]", "[.inf,0,0]", "[.nan,0,0]", "north"])
def test_an_offset_is_three_numbers(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match=r"scene\.offset"):
        options(tmp_path, tmp_path / "run", f"scene.offset={value}")


@pytest.mark.parametrize("place", [".", "sparse", "sparse/0", "sparse/0/run", "images", "images/run", ".."])
def test_a_run_folder_over_the_scene_s_own_files_is_refused(tmp_path: Path, place: str) -> None:
    scene = tmp_path / "here" / "scene"
    write_scene(scene, HOME)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunFolderError, match=r"cannot be the run folder.*--out, for example .*splatpipe/default"):
        pipeline.split(options(scene, (scene / place).resolve()), dry_run=False)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_folder_beside_the_photographs_of_a_flat_scene_is_fine(tmp_path: Path) -> None:
    write_scene(tmp_path, HOME, model=".", images=".")
    assert pipeline.split(options(tmp_path, tmp_path / "splatpipe" / "default"), dry_run=False)["patches"]
    assert read_scene(tmp_path).scene.n_cameras == HOME.n_cameras
