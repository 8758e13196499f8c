"""`report/splat.html`: the merged splat in a page that a browser opens from disk, with a pin on each patch.

The viewer is SuperSplat's, which splat-transform puts into the page with the splat.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from splatpipe.errors import RunFolderError
from splatpipe.export.transform import SplatTransform, find_transform
from splatpipe.files import put_file, scratch_folder
from splatpipe.layout import RunLayout
from splatpipe.ledger import Ledger
from splatpipe.patches.outline import middle_of
from splatpipe.report import words
from splatpipe.report.placement import Placement, ground_height
from splatpipe.report.scenery import PatchScenery, bounds, read_scenery
from splatpipe.report.thinning import thinned
from splatpipe.splatting.ply import Splats, write_splats

MOST_GAUSSIANS = 1_000_000  # a page of about 20 MB, which a phone still shows
MOST_POINTS = 50_000
AXES = np.array([[-1.0, 0, 0], [0, 0, 1], [0, 1, 0]])  # the viewer's: the map's left, up, and its upper edge
HALF_TURN = np.diag([-1.0, -1.0, 1.0])  # what the viewer does to a file, because trainers' y points down
START = (0.0, 9.0, -6.5)  # the camera: above the lower edge of the map, looking over it
FOV = 60.0
PIN_HEIGHT, PIN_BACK = 3.2, 3.6  # where the camera goes when a pin is chosen


def is_current(layout: RunLayout) -> bool:
    """Whether the page is there, and not that of an earlier merged splat."""
    page, splat = layout.splat_page, layout.merged_splat
    return page.is_file() and splat.is_file() and page.stat().st_mtime >= splat.stat().st_mtime


def write_splat_page(layout: RunLayout, say: Callable[[str], None]) -> Path:
    """Replace the page. Raises `RunFolderError` when nothing is merged, `EnvironmentProblem` without Node.js."""
    if not layout.merged_splat.is_file():
        raise RunFolderError(f"{layout.root}: nothing is merged yet; splatpipe merge {layout.root} does it")
    tool = find_transform(say=say)
    patches = read_scenery(layout, MOST_POINTS)
    with Ledger(layout.ledger, read_only=True) as ledger:
        rows = {row["id"]: row for row in ledger.status()["patches"]}
    placement = Placement.of(patches, AXES)
    pins = [_pin(one, rows.get(one.id), placement, patches) for one in patches]
    convert(thinned(layout.merged_splat, MOST_GAUSSIANS), placement, pins, layout.splat_page, tool)
    return layout.splat_page


def convert(splats: Splats, placement: Placement, pins: list[dict[str, Any]], page: Path, tool: SplatTransform) -> None:
    """Write the page of `splats`, which have no SH bands, whole or not at all."""
    with scratch_folder(page) as folder:
        source, settings, made = (folder / name for name in ("splat.ply", "settings.json", "splat.html"))
        write_splats(source, placement.turned(HALF_TURN).splats(splats))
        settings.write_text(json.dumps(viewer_settings(pins)))
        tool.run([str(source), "--viewer-settings", str(settings), str(made)])
        put_file(made, page)


def viewer_settings(pins: list[dict[str, Any]]) -> dict[str, Any]:
    """SuperSplat's settings, version 2. They stand in a script of the page: `pins` must hold no foreign text."""
    off: dict[str, Any] = {"enabled": False}
    return {
        "version": 2,
        "tonemapping": "none",
        "highPrecisionRendering": False,
        "background": {"color": [0.09, 0.12, 0.16]},
        "postEffectSettings": {
            "sharpness": off | {"amount": 0},
            "bloom": off | {"intensity": 1, "blurLevel": 2},
            "grading": off | {"brightness": 0, "contrast": 1, "saturation": 1, "tint": [1, 1, 1]},
            "vignette": off | {"intensity": 0.5, "inner": 0.3, "outer": 0.75, "curvature": 1},
            "fringing": off | {"intensity": 0.5},
        },
        "animTracks": [],
        "cameras": [{"initial": {"position": list(START), "target": [0.0, 0.0, 0.0], "fov": FOV}}],
        "annotations": pins,
        "startMode": "default",
    }


def _pin(
    one: PatchScenery, row: dict[str, Any] | None, placement: Placement, patches: Sequence[PatchScenery]
) -> dict[str, Any]:
    """At the middle of the core's ground: numbers and words of our own only."""
    height = ground_height([one] if len(one.points) else patches)
    middle, _ = middle_of(one.core, *bounds(patches))
    at = placement.apply(one.frame.rotation.T @ np.array([middle[0], middle[1], height])).round(4)
    camera = {"position": (at + (0, PIN_HEIGHT, -PIN_BACK)).round(4).tolist(), "target": at.tolist(), "fov": FOV}
    return {
        "position": at.tolist(),
        "title": one.id,
        "text": _said(row) if row else "",
        "extras": None,
        "camera": {"initial": camera},
    }


def _said(row: dict[str, Any]) -> str:
    parts = [words.outcome(row["outcome"])]
    if row["psnr"] is not None:
        parts.append(f"hold-out PSNR {row['psnr']:.2f} dB")
    if row["gaussians"]:
        parts.append(f"{words.number(row['gaussians'])} Gaussians")
    tries = len(row["attempts"])
    return ", ".join([*parts, f"{tries} attempt{'s' if tries != 1 else ''}"])
