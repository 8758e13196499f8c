"""The pages of a real run in a real browser: the report, the merged splat, the viewer."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import PATIENCE_MS, Watched, center_of, chromium, find_chromium
from numpy.typing import NDArray
from scenes import synthetic_scene, write_scene

from splatpipe import pages, pipeline
from splatpipe.errors import EnvironmentProblem
from splatpipe.export.transform import SplatTransform, find_transform
from splatpipe.layout import RunLayout
from splatpipe.report import splat_page
from splatpipe.report.placement import Placement
from splatpipe.report.scenery import Cameras, read_scenery
from splatpipe.splatting.ply import Splats

pytestmark = [pytest.mark.slow, pytest.mark.browser]

HOSTILE = "<img src=x onerror=window.hacked=1>'\".jpg"
SETTINGS = ["training.iterations=120", "training.refine_start=20", "training.refine_every=20", "training.max_cap=600",
            "training.sh_degree=1", "training.device=cpu", "health.every=20", "init_scaling.fixed=0.4",
            "patching.max_cameras=12"]  # fmt: skip
CLOSE_PX = 12
RED, GREEN, BLUE = (1, 0, 0), (0, 1, 0), (0, 0, 1)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> RunLayout:
    """A real run of a scene where one image, a hold-out view, has a name that attacks the page."""
    find_chromium()  # before anything is trained in vain
    folder = tmp_path_factory.mktemp("browser")
    scene = synthetic_scene(n_cameras=25, n_points=400)
    names = sorted((HOSTILE, *(f"view_{i:04d}.jpg" for i in range(1, 25))))
    write_scene(folder / "field", replace(scene, names=tuple(names)))
    options = pipeline.RunOptions.resolve(folder / "field", folder / "run", None, SETTINGS, None, None)
    assert pipeline.run(options, stop=threading.Event()) == 0
    return options.layout


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def open_report(browser: Any, layout: RunLayout) -> Iterator[Callable[[int, int], Watched]]:
    opened: list[Watched] = []

    def open_at(width: int, height: int) -> Watched:
        opened.append(Watched(browser, width, height))
        opened[-1].page.goto(layout.report.as_uri())
        return opened[-1]

    yield open_at
    for watched in opened:
        watched.page.close()


def test_the_report_opens_from_disk_without_an_error_and_without_the_network(
    open_report: Callable[[int, int], Watched],
) -> None:
    watched = open_report(1280, 900)
    page = watched.page
    page.wait_for_load_state("load")
    page.evaluate("splatpipe.drawCharts()")
    assert page.locator(".patch.chosen canvas").count() >= 8
    drawn = page.evaluate(
        """[...document.querySelectorAll('.patch.chosen canvas')].map((canvas) => {
            const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
            return new Set(new Uint32Array(pixels.buffer)).size;
        })"""
    )
    assert min(drawn) > 5  # colours: axes, grid and at least one curve
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    watched.picture("report-desktop", full_page=True)
    assert watched.errors == []
    assert watched.foreign == []


def test_a_name_that_attacks_the_page_is_only_text(open_report: Callable[[int, int], Watched]) -> None:
    page = open_report(1280, 900).page
    page.wait_for_load_state("load")
    assert HOSTILE in (page.locator("body").text_content() or "")
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src=x]").count() == 0


def test_a_click_on_the_map_shows_that_patch_and_no_other(open_report: Callable[[int, int], Watched]) -> None:
    page = open_report(1280, 900).page
    shown = page.locator(".patch:visible")
    ids = page.locator(".patch-on-map").evaluate_all("all => all.map((one) => one.dataset.patch)")
    assert len(ids) >= 2
    for patch in (ids[1], ids[0]):
        page.locator(f'.patch-on-map[data-patch="{patch}"] rect').click()
        assert shown.evaluate_all("all => all.map((one) => one.id)") == [patch]
        assert page.url.endswith(f"#{patch}")


def test_the_list_shows_one_outcome_and_sorts_by_a_column(open_report: Callable[[int, int], Watched]) -> None:
    watched = open_report(1280, 900)
    page = watched.page
    rows = page.locator("table.patches tbody tr:visible")
    everything = rows.count()
    kinds = page.locator(".filters button[data-kind]").evaluate_all("all => all.map((one) => one.dataset.kind)")
    for kind in [kind for kind in kinds if kind]:
        page.locator(f'.filters button[data-kind="{kind}"]').click()
        shown = rows.evaluate_all("all => all.map((one) => one.dataset.kind)")
        assert set(shown) == {kind} and 0 < len(shown) < everything
        page.locator('.filters button[data-kind=""]').click()
    page.locator("table.patches th", has_text="Gaussians").click()

    def counts() -> list[float]:
        return [float(value) for value in page.locator("table.patches td.roomy").evaluate_all(
            "all => all.map((one) => one.dataset.order)")]  # fmt: skip

    assert rows.count() == everything and counts() == sorted(counts())
    page.locator("table.patches th", has_text="Gaussians").click()
    assert counts() == sorted(counts(), reverse=True)
    page.reload()  # as it does by itself while a run goes on
    assert counts() == sorted(counts(), reverse=True)
    assert watched.errors == []


def test_the_slider_uncovers_the_photograph(open_report: Callable[[int, int], Watched]) -> None:
    page = open_report(1280, 900).page
    pair = page.locator("#merged .compare").first
    pair.scroll_into_view_if_needed()
    box = pair.bounding_box()

    def at(share: float) -> bytes:
        page.mouse.click(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
        page.wait_for_function(
            "(share) => Math.abs(parseFloat(document.querySelector('#merged .compare').style.getPropertyValue('--at'))"
            " - 100 * share) < 5",
            arg=share,
        )
        return bytes(pair.screenshot())

    assert at(0.1) != at(0.9)
    slider = page.locator("#merged .compare input").first
    before = float(slider.input_value())
    slider.press("ArrowLeft")  # and by the keyboard
    assert float(slider.input_value()) == before - 1


@pytest.mark.parametrize("width", [390, 768])
def test_nothing_hangs_over_the_edge_of_a_small_screen(open_report: Callable[[int, int], Watched], width: int) -> None:
    watched = open_report(width, 844)
    watched.page.evaluate("splatpipe.drawCharts()")
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= width
    watched.picture(f"report-{width}px", full_page=True)


def test_every_patch_and_its_curves_are_printed(open_report: Callable[[int, int], Watched], layout: RunLayout) -> None:
    watched = open_report(1280, 900)
    page = watched.page
    page.evaluate("addEventListener('afterprint', () => { window.printed = "
                  "[...document.querySelectorAll('[data-chart]')].map((one) => !!one.plot); })")  # fmt: skip
    watched.page.pdf(path=str(layout.root / "report.pdf"), format="A4")
    printed = page.evaluate("window.printed")
    assert printed
    assert all(printed)
    page.emulate_media(media="print")
    assert page.locator(".patch:visible").count() == page.locator(".patch").count() >= 2


def test_the_page_of_the_splat_shows_it_with_a_pin_on_each_patch(browser: Any, layout: RunLayout) -> None:
    _find_tool()
    pages.add_splat_page(layout)  # as the end of a run does
    made = layout.splat_page.stat().st_mtime_ns
    pages.add_splat_page(layout)
    assert layout.splat_page.stat().st_mtime_ns == made, "the same splat is not converted again"
    watched = _open_splat(browser, layout.splat_page)
    picture = watched.picture("splat")
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 500  # no blank canvas
    assert watched.page.locator(".pc-annotation-hotspot").count() == len(read_scenery(layout, 100))
    assert watched.errors == []
    assert watched.foreign == []
    watched.page.close()
    assert 'href="splat.html"' in layout.report.read_text()


def test_markers_stand_in_the_splat_page_where_the_frame_says(browser: Any, tmp_path: Path) -> None:
    """Red to the map's right, blue to its upper edge, green up: seen where a camera with those axes sees them."""
    tool = _find_tool()
    frame, center, scale = _odd_frame(), np.array([812.0, -3300.0, 55.0]), 0.02
    placement = Placement(splat_page.AXES @ frame, center, scale)
    offsets = {RED: np.array([2.5, 0, 0]), BLUE: np.array([0, 2.5, 0]), GREEN: np.array([-2.5, 0, 1.5])}
    splats = _markers({color: center + frame.T @ at / scale for color, at in offsets.items()}, 0.25 / scale)
    pins = [_pin_at(placement.apply(center + frame.T @ at / scale)) for at in offsets.values()]
    splat_page.convert(splats, placement, pins, tmp_path / "splat.html", tool)
    watched = _open_splat(browser, tmp_path / "splat.html")
    left, up, above = np.eye(3)
    start = np.array(splat_page.START)
    # The viewer's axes in words: the map's left, up, and the map's upper edge.
    at = {color: -x * left + z * up + y * above for color, (x, y, z) in offsets.items()}
    expected = {
        color: _project(place, start, np.zeros(3), up, math.radians(splat_page.FOV), (640, 1000), horizontal=True)
        for color, place in at.items()
    }
    _assert_seen_at(watched, expected, "splat-markers")
    for pin, place in enumerate(expected.values()):
        spot = watched.page.locator(".pc-annotation-hotspot").nth(pin)
        found = spot.evaluate("(one) => [parseFloat(one.style.left), parseFloat(one.style.top)]")
        assert np.linalg.norm(np.array(found) - place) < CLOSE_PX, f"pin {pin} at {found}, not {place}"
    watched.page.close()


def test_the_viewer_shows_the_run_and_markers_where_the_frame_says(browser: Any, layout: RunLayout) -> None:
    pytest.importorskip("viser")
    from splatpipe.viewer.serve import Viewer

    viewer = Viewer(layout, "127.0.0.1", 0, 20_000)
    try:
        start = np.array([0.0, -9.0, 8.0])
        viewer.server.initial_camera.fov = math.radians(60)
        frame, place = read_scenery(layout, 100)[0].frame, viewer.stage.placement
        offsets = {RED: np.array([2.5, 0, 0]), BLUE: np.array([0, 2.5, 0]), GREEN: np.array([-2.5, 0, 1.5])}
        at = {color: place.center + frame.rotation.T @ offset / place.scale for color, offset in offsets.items()}
        for handle in (*viewer.stage.cores, *viewer.stage.names, *viewer.stage.cameras):
            handle.visible = False
        viewer.stage.show_splat(_markers(at, 0.25 / place.scale))
        watched = Watched(browser, 1100, 700, f"http://127.0.0.1:{viewer.port}")
        watched.page.goto(f"http://127.0.0.1:{viewer.port}")
        expected = {
            color: _project(offset, start, np.zeros(3), np.eye(3)[2], math.radians(60), (700, 1100), horizontal=False)
            for color, offset in offsets.items()
        }
        _assert_seen_at(watched, expected, "viewer-markers", 320, 440)
        viewer.stage.show_splat(None)
        for handle in (*viewer.stage.cores, *viewer.stage.names, *viewer.stage.cameras):
            handle.visible = True
        _click_a_camera(watched, viewer, start)
        viewer.show_camera(*_named(layout, HOSTILE))
        watched.page.wait_for_function("(name) => document.body.textContent.includes(name)", arg=HOSTILE)
        watched.picture("viewer")
        assert watched.page.evaluate("window.hacked") is None
        assert watched.foreign == [f for f in watched.foreign if f.startswith("ws://127.0.0.1")]
        watched.page.close()
    finally:
        viewer.server.stop()


def _click_a_camera(watched: Watched, viewer: Any, start: NDArray[np.float64]) -> None:
    """With the pointer, on the camera nearest to the middle of the window; waits for photograph and render."""
    middle, looks = np.array([550.0, 350.0]), []
    for one in read_scenery(viewer.layout, 100):
        ahead = viewer.stage.placement.rotation @ one.training.viewmats[:, 2, :3].T
        places = viewer.stage.placement.apply(one.training.centers) + 0.15 * ahead.T
        looks += [_project(at, start, np.zeros(3), np.eye(3)[2], math.radians(60), (700, 1100), False) for at in places]
    x, y = min(looks, key=lambda at: float(np.linalg.norm(at - middle)))
    page = watched.page
    before, deadline = page.evaluate("document.images.length"), time.monotonic() + PATIENCE_MS / 1000
    while page.evaluate("document.images.length") < before + 2:
        assert time.monotonic() < deadline, f"a click on the camera at {x:.0f}, {y:.0f} showed nothing"
        page.mouse.move(x, y)
        page.wait_for_timeout(500)
        page.mouse.click(x, y)
        page.wait_for_timeout(2000)
    assert re.search(r"view_\d{4}\.jpg|onerror", page.locator("body").text_content() or "")


def _named(layout: RunLayout, name: str) -> tuple[Cameras, int]:
    """The camera of an image, in whichever patch it is."""
    groups = [group for one in read_scenery(layout, 100) for group in (one.training, one.holdout)]
    return next((group, group.names.index(name)) for group in groups if name in group.names)


def _find_tool() -> SplatTransform:
    try:
        return find_transform(install=False)
    except EnvironmentProblem as problem:
        pytest.skip(f"{problem}; one `splatpipe report` installs it")


def _open_splat(browser: Any, page: Path) -> Watched:
    """With WebGL, at rest after its first frame."""
    watched = Watched(browser, 1000, 640)
    watched.page.add_init_script("window.firstFrame = () => { window.framed = true; }")
    watched.page.goto(page.as_uri() + "?webgl&noanim")
    watched.page.wait_for_function("window.framed === true", timeout=PATIENCE_MS)
    watched.page.mouse.move(500, 600)  # pins hide while nobody moves
    watched.page.wait_for_timeout(2000)  # the picture fades in
    return watched


def _assert_seen_at(
    watched: Watched,
    expected: dict[tuple[int, int, int], NDArray[np.float64]],
    name: str,
    left: int = 0,
    width: int = 1000,
) -> None:
    """Every colour where it should be, once the page has come to rest; patience is for slow machines only.

    Looks at `width` pixels from `left` on, where there is no other colour.
    """
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while True:
        picture = watched.picture(name)
        seen = {color: center_of(picture[:, left : left + width], color) for color in expected}
        found = {color: None if at is None else at + (left, 0) for color, at in seen.items()}
        off = [c for c, at in expected.items() if found[c] is None or np.linalg.norm(found[c] - at) >= CLOSE_PX]
        if not off:
            return
        assert time.monotonic() < deadline, f"markers {off} of {expected} seen at {found}"
        watched.page.wait_for_timeout(500)


def _odd_frame() -> NDArray[np.float64]:
    """A rotation that no two axes of which are easily mixed up."""
    rotation, _ = np.linalg.qr(np.array([[0.9, 0.3, -0.2], [-0.1, 0.2, 1.0], [0.4, -0.9, 0.3]]))
    return rotation * np.sign(np.linalg.det(rotation))


def _markers(at: dict[tuple[int, int, int], NDArray[np.float64]], sigma: float) -> Splats:
    """One round, opaque Gaussian for each colour, in scene coordinates, amid grey dust.

    Without dust SuperSplat does not always show all of three Gaussians.
    """
    rng, places = np.random.default_rng(3), np.array([*at.values()], np.float64)
    dust = places.mean(axis=0) + rng.uniform(-14, 14, (300, 3)) * sigma
    n = len(at) + len(dust)
    colors = np.concatenate([np.array([*at], np.float32), np.full((len(dust), 3), 0.3, np.float32)])
    sizes = np.where(np.arange(n) < len(at), sigma, sigma / 30)
    return Splats(
        means=np.concatenate([places, dust]).astype(np.float32),
        quats=np.tile(np.array([1, 0, 0, 0], np.float32), (n, 1)),
        scales=np.repeat(np.log(sizes)[:, None], 3, axis=1).astype(np.float32),
        opacities=np.full(n, 6.0, np.float32),
        sh0=((colors - 0.5) / 0.28209479177387814).reshape(n, 1, 3),
        shN=np.zeros((n, 0, 3), np.float32),
    )


def _pin_at(position: NDArray[np.float64]) -> dict[str, Any]:
    camera = {"position": list(splat_page.START), "target": [0.0, 0.0, 0.0], "fov": splat_page.FOV}
    return {"position": position.tolist(), "title": "a", "text": "b", "extras": None, "camera": {"initial": camera}}


def _project(
    point: NDArray[np.float64],
    eye: NDArray[np.float64],
    target: NDArray[np.float64],
    up: NDArray[np.float64],
    fov: float,
    size: tuple[int, int],
    horizontal: bool,
) -> NDArray[np.float64]:
    """(x, y) pixels of a pinhole camera; `fov` across the width or the height."""
    ahead = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(ahead, up) / np.linalg.norm(np.cross(ahead, up))
    height, width = size
    focal = (width if horizontal else height) / 2 / math.tan(fov / 2)
    seen = point - eye
    depth = seen @ ahead
    return np.array(
        [width / 2 + focal * (seen @ right) / depth, height / 2 - focal * (seen @ np.cross(right, ahead)) / depth]
    )
