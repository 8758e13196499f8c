"""What the report says of a run: outcomes, attempts, curves, pictures; and when it is written."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles.trainer_double import TrainerDouble
from scenes import synthetic_scene, write_scene

from splatpipe import pages, pipeline
from splatpipe.config import Config
from splatpipe.errors import RunFolderError
from splatpipe.layout import RunLayout
from splatpipe.ledger import Ledger
from splatpipe.patches.region import regions_of
from splatpipe.report import live, write
from splatpipe.report.curves import health_charts, read_attempt
from splatpipe.report.figures import extent_against_rung, schedule
from splatpipe.report.ground import draw_ground
from splatpipe.report.placement import Placement
from splatpipe.report.scenery import bounds, read_scenery
from splatpipe.report.thinning import thinned
from splatpipe.report.write import RunReport
from splatpipe.splatting.ply import Splats, write_splats

SETTINGS = ["patching.max_cameras=12", "training.iterations=60", "training.device=cpu", "training.refine_start=10"]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> RunLayout:
    """A run on the double: p000 collapses whatever is done, the others train."""
    folder = tmp_path_factory.mktemp("report")
    write_scene(folder / "field", synthetic_scene(n_cameras=25, n_points=400))
    options = pipeline.RunOptions.resolve(folder / "field", folder / "run", None, SETTINGS, None, None)
    double = TrainerDouble({"p000": {"fails": "guard_mcmc_collapse", "at": 40, "relocated": 0.4}, "default": {}})
    assert pipeline.run(options, stop=threading.Event(), trainer=double) == 3
    return options.layout


@pytest.fixture(scope="module")
def page(layout: RunLayout) -> str:
    return layout.report.read_text()


def text(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", re.sub(r"<(script|style).*?</\1>", " ", html, flags=re.S)))


def section(page: str, patch: str) -> str:
    return page.split(f'data-section="{patch}"')[1].split("</section>")[0]


def test_the_run_leaves_a_page_that_names_what_failed_in_words(page: str) -> None:
    assert re.search(r"1 of \d patches failed; the rest are merged", text(page))
    failed = text(section(page, "p000"))
    assert "The Gaussians died out" in failed
    assert re.search(r"mcmc_collapse: .* after \d+ attempts", failed)
    assert "guard: mcmc_collapse" in failed  # the line that decided
    assert 'http-equiv="refresh"' not in page
    assert "splatpipe.renew(" not in page.split("<script>")[-1]  # the run is over


def test_every_attempt_of_a_patch_is_told_with_what_was_changed(page: str, layout: RunLayout) -> None:
    row = pipeline.status(layout.root)["patches"][0]
    assert len(row["attempts"]) > 1
    told = text(section(page, "p000"))
    for attempt in row["attempts"]:
        assert f"Attempt {attempt['n']}: The Gaussians died out" in told
        if attempt["remedy"]:
            assert f"remedy {attempt['remedy']}" in told


def test_charts_hold_what_the_events_say(layout: RunLayout) -> None:
    events = read_attempt(layout.attempt("p000", 1).events)
    charts = {chart["title"]: chart for chart in health_charts({1: events})}
    steps = [(event["step"], event["loss"]) for event in events if event["event"] == "step"]
    loss = charts["Loss"]
    assert loss["x"] == [step for step, _ in steps]
    assert loss["lines"][0]["values"] == pytest.approx([value for _, value in steps], rel=1e-4)
    assert (loss["marks"][0]["x"], loss["marks"][0]["severity"]) == (40, "stop")
    relocated = charts["Relocated at each refinement"]["lines"][0]["values"]
    assert [value for value in relocated if value is not None] == pytest.approx([0.4] * len(relocated), abs=0.01)


def test_what_an_interrupted_attempt_did_twice_is_drawn_once() -> None:
    def step(n: int, loss: float) -> dict[str, Any]:
        return {"event": "step", "step": n, "loss": loss, "gaussians": 5, "steps_per_s": 1.0}

    charts = health_charts({2: [step(10, 0.5), step(20, 0.4), step(10, 0.45), step(20, 0.35), step(30, 0.3)]})
    loss = next(chart for chart in charts if chart["title"] == "Loss")
    assert loss["x"] == [10, 20, 30]
    assert loss["lines"][0]["values"] == [0.45, 0.35, 0.3]


def test_a_damaged_event_file_costs_curves_only(layout: RunLayout, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(layout.root, run, symlinks=True)
    for events in run.glob("attempts/*/*/events.jsonl"):
        events.write_bytes(b'\xff\xfe{"event": "step", "st')
    assert RunReport(RunLayout(run), Config().to_dict()).write(running=False).is_file()


def test_a_run_that_was_merged_before_renders_were_compared_has_its_page(layout: RunLayout, tmp_path: Path) -> None:
    run = RunLayout(tmp_path / "run")
    shutil.copytree(layout.root, run.root, symlinks=True)
    older = {"patches": ["p001", "p002"], "cells": 40, "difference": 0.0123, "after": 0.01}
    now = {"patches": ["p002", "p003"], "places": 40, "difference": 0.0345, "after": 0.01}
    with Ledger(run.ledger) as ledger:
        merged = ledger.status()["merged"]
        details = merged["details"] | {"colors": [older, now]}
        ledger.set_merged(Path(merged["path"]), merged["gaussians"], merged["psnr"], merged["ssim"], details)
    told = text(RunReport(run, Config().to_dict()).write(running=False).read_text())
    assert "p002 and p003 3.5 40" in told
    assert "p001 and p002" not in told


def test_the_folder_of_the_report_can_be_moved(page: str, layout: RunLayout, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(layout.report.parent, moved)
    links = re.findall(r'(?:src|href)="(?!data:|#)([^"]+)"', page)
    assert len(links) >= 2  # photographs and renders
    assert all((moved / link).is_file() for link in links)


def test_the_map_places_points_and_cameras_as_the_cutting_frame_does(layout: RunLayout) -> None:
    patches = read_scenery(layout, 10_000)
    ground = draw_ground(patches)
    frame = patches[0].frame
    for one, drawn in zip(patches, ground["patches"], strict=True):
        places = frame.apply(one.training.centers)
        east = np.argsort(places[:, 0])
        assert [drawn["training"][i]["x"] for i in east] == sorted(dot["x"] for dot in drawn["training"])
        north = np.argsort(-places[:, 1])
        assert [drawn["training"][i]["y"] for i in north] == sorted(dot["y"] for dot in drawn["training"])
        left, top = drawn["core"]["x"], drawn["core"]["y"]
        inside = one.core.contains(places)
        for dot, within in zip(drawn["training"], inside, strict=True):
            in_x = left - 0.2 <= dot["x"] <= left + drawn["core"]["width"] + 0.2
            in_y = top - 0.2 <= dot["y"] <= top + drawn["core"]["height"] + 0.2
            assert not within or (in_x and in_y)


def test_the_map_draws_an_outline_as_it_is_and_puts_the_name_inside_it(layout: RunLayout) -> None:
    one = read_scenery(layout, 10_000)[0]
    low, high = bounds([one])
    shares = np.array([[0.1, 0.1], [0.9, 0.1], [0.9, 0.2], [0.2, 0.2], [0.2, 0.9], [0.1, 0.9]])
    corners = low[:2] + shares * (high - low)[:2]
    ell, rest = regions_of([corners], rest=True)
    shown = [replace(one, core=core, buffered=core.grown(0.1)) for core in (ell, rest)]
    ground = draw_ground(shown)
    for core, drawn in zip((ell, rest), ground["patches"], strict=True):
        scale = 1000 / (high - low)[:2].max()
        label = np.array([[low[0] + drawn["label"][0] / scale, high[1] - drawn["label"][1] / scale, 0.0]])
        assert core.contains(label).all()
    rings = [re.findall(r"([\d.]+) ([\d.]+)", part) for part in ground["patches"][0]["core"]["d"].split("Z")[:-1]]
    assert [len(ring) for ring in rings] == [6]
    expected = (corners - [low[0], high[1]]) * [1, -1] * scale
    places = np.array(rings[0], float)
    assert np.linalg.norm(places[:, None] - expected, axis=2).min(axis=0).max() < 2


def test_names_stand_on_the_map_where_they_fit_and_on_a_crowded_one_nowhere(layout: RunLayout) -> None:
    patches = read_scenery(layout, 10_000)
    assert all(one["fits"] for one in draw_ground(patches)["patches"])
    long = [replace(one, id=f"p{i:090d}") for i, one in enumerate(patches)]
    assert not any(one["fits"] for one in draw_ground(long)["patches"])


def test_scenery_is_in_scene_coordinates(layout: RunLayout) -> None:
    scene = synthetic_scene(n_cameras=25, n_points=400)
    centers = {name: center for name, center in zip(scene.names, scene.centers, strict=True)}
    for one in read_scenery(layout, 10_000):
        for name, center in zip(one.training.names, one.training.centers, strict=True):
            assert center == pytest.approx(centers[name], abs=1e-6)
        distances = np.linalg.norm(one.points[:, None] - scene.points[None], axis=2).min(axis=1)
        assert distances.max() < 1e-6


def test_figures_say_when_attempts_ran_and_which_rung_each_extent_needed() -> None:
    def attempt(n: int, kind: str, started: float, ended: float) -> dict[str, Any]:
        return {"n": n, "kind": kind, "started": started, "ended": ended, "init_scaling": 0.1 * n, "title": "x"}

    patches = [
        {"id": "p000", "extent": 1.0, "attempts": [attempt(1, "failed", 0, 25), attempt(2, "trained", 25, 50)]},
        {"id": "p001", "extent": 2.0, "attempts": [attempt(1, "trained", 50, 100)]},
    ]
    drawn = schedule(patches)
    assert drawn is not None
    assert [(bar["left"], bar["width"]) for bar in drawn["rows"][0]["bars"]] == [(0, 25), (25, 25)]
    assert [tick["text"] for tick in drawn["ticks"]] == ["0 s", "25 s", "50 s", "1 min 15 s", "1 min 40 s"]
    dots = extent_against_rung(patches)
    assert dots is not None
    assert [dot["kind"] for dot in dots["dots"]] == ["failed", "trained", "trained"]
    (x0, y0), (x1, y1), (x2, _) = ((dot["x"], dot["y"]) for dot in dots["dots"])
    assert x0 == x1 < x2
    assert y1 < y0  # up is a larger rung
    assert schedule([{"id": "p000", "attempts": []}]) is None
    late = {"id": "p002", "attempts": []}
    crowd = schedule([late, *reversed(patches)], many=True)
    assert crowd is not None
    assert [row["id"] for row in crowd["rows"]] == ["p000", "p001"], "in the order in which they began"


def test_of_many_hold_out_views_the_telling_ones_are_shown() -> None:
    views = [{"name": f"{n}.jpg", "psnr": float((7 * n) % 101)} for n in range(101)]
    shown = [view["psnr"] for view in write.telling(views)]
    assert shown == [0, 1, 2, 3, 48, 49, 50, 51, 97, 98, 99, 100]
    assert write.telling(views[:12]) == views[:12]


def test_the_most_visible_gaussians_survive_thinning(tmp_path: Path) -> None:
    n = 1000
    sizes = np.random.default_rng(1).permutation(n) / 1000.0 - 5
    splats = Splats(
        means=np.arange(3 * n, dtype=np.float32).reshape(n, 3),
        quats=np.tile(np.float32([1, 0, 0, 0]), (n, 1)),
        scales=np.repeat(sizes[:, None], 3, axis=1).astype(np.float32),
        opacities=np.zeros(n, np.float32),
        sh0=np.zeros((n, 1, 3), np.float32),
        shN=np.ones((n, 15, 3), np.float32),
    )
    write_splats(tmp_path / "a.ply", splats)
    kept = thinned(tmp_path / "a.ply", 100)
    assert (len(kept), kept.sh_degree) == (100, 0)
    assert sorted(kept.scales[:, 0]) == pytest.approx(sorted(sizes)[-100:], abs=1e-5)
    assert len(thinned(tmp_path / "a.ply", 5000)) == n


def test_turned_gaussians_have_turned_shapes() -> None:
    from splatpipe.viewer.stage import covariances

    rng = np.random.default_rng(2)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    rotation *= np.sign(np.linalg.det(rotation))
    placement = Placement(rotation, np.array([5.0, -2.0, 1.0]), 0.5)
    splats = Splats(
        means=rng.normal(size=(20, 3)).astype(np.float32),
        quats=rng.normal(size=(20, 4)).astype(np.float32),
        scales=rng.normal(size=(20, 3)).astype(np.float32),
        opacities=np.zeros(20, np.float32),
        sh0=np.zeros((20, 1, 3), np.float32),
        shN=np.zeros((20, 0, 3), np.float32),
    )
    turned = placement.splats(splats)
    expected = 0.25 * rotation @ covariances(splats) @ rotation.T
    assert covariances(turned) == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert turned.means == pytest.approx(0.5 * (splats.means - (5, -2, 1)) @ rotation.T, abs=1e-5)


def test_the_page_follows_the_run_and_a_page_that_cannot_be_written_ends_nothing(
    layout: RunLayout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunLayout(tmp_path / "run")
    shutil.copytree(layout.root, run.root, symlinks=True)
    run.report.unlink()
    with live.LiveReport(RunReport(run, Config().to_dict())):
        while not run.report.is_file():
            time.sleep(0.05)
        assert "splatpipe.renew(" in run.report.read_text().split("<script>")[-1]
        run.ledger.write_bytes(b"gone")
    assert capsys.readouterr().err.count("the report could not be written") == 1


def test_the_command_writes_the_page_anew_and_says_where(layout: RunLayout) -> None:
    layout.report.unlink()
    command = [sys.executable, "-m", "splatpipe.cli", "report", str(layout.root), "--no-splat", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"report": str(layout.report), "splat": None}
    assert layout.report.is_file()


def test_without_splat_transform_the_page_says_how_to_see_the_splat_and_nothing_is_installed(
    layout: RunLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pages.add_splat_page(layout)
    assert capsys.readouterr() == ("", "")
    assert not layout.splat_page.exists() and not list(tmp_path.iterdir())
    RunReport(layout, Config().to_dict()).write(running=False)
    assert f"splatpipe report {layout.root}" in text(layout.report.read_text())


def test_a_folder_without_a_run_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="is not a run folder"):
        pages.write_pages(tmp_path, splat=False)


def test_the_scene_in_the_place_of_its_run_is_answered_with_the_run(tmp_path: Path) -> None:
    run = tmp_path / "splatpipe" / "default"
    run.mkdir(parents=True)
    (run / "run.yml").write_text("")
    with pytest.raises(RunFolderError, match=f"is not a run folder.*its runs are {run}"):
        pages.write_pages(tmp_path, splat=False)


def test_the_viewer_listens_on_this_machine_only_unless_told_otherwise() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "splatpipe.cli", "view", "--help"], capture_output=True, text=True, check=True
    )
    assert "127.0.0.1" in done.stdout
