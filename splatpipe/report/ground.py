"""The map of a report: the scene from above as a picture, with patches and cameras to be drawn over it as SVG."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splatpipe.patches.box import Box
from splatpipe.patches.outline import middle_of, rings_of
from splatpipe.report.scenery import Cameras, PatchScenery, bounds

LONGER = 1000  # units of the SVG, and pixels of the picture, along the longer side of the ground
MOST_POINTS = 300_000
DENSE = 50_000  # points from which on they are drawn smaller
LETTERS = (17, 34)  # least and largest height of a label: 10 pixels where the map is as wide as on a laptop
LETTER_WIDTH = 0.85  # of a letter and the space round the label, over its height
FEW_CAMERAS = 60  # of one patch: below that they are drawn larger
PALE = 0.25  # towards white, so that outlines and labels stand out


def draw_ground(patches: Sequence[PatchScenery]) -> dict[str, Any]:
    """The map: size, the picture as a data address, per patch outlines, label and cameras, a scale bar.

    Right and up are the ground axes of the cutting frame, as in map.png. `letter` is the height of labels, `dot` the
    radius of cameras, in units of the map; a label that does not `fit` into its patch is for the chosen patch only.
    """
    plane = _Plane(*bounds(patches))
    drawn = [_patch(one, plane) for one in patches]
    room = [min(one["room"][0] / (LETTER_WIDTH * len(one["id"])), one["room"][1] / 1.3) for one in drawn]
    letter = round(min(max(float(np.quantile(room, 0.25)), LETTERS[0]), LETTERS[1]))
    fit = [space >= 0.9 * letter for space in room]
    if 2 * sum(fit) < len(fit):  # a few names on a large map only puzzle
        fit = [False] * len(fit)
    bar = _round_length((plane.high[0] - plane.low[0]) / 5)
    return {
        "width": plane.width,
        "height": plane.height,
        "picture": _picture(patches, plane),
        "patches": [one | {"fits": fits} for one, fits in zip(drawn, fit, strict=True)],
        "letter": letter,
        "dot": 7 if max(len(one.training.names) for one in patches) < FEW_CAMERAS else 4.5,
        "bar": {"pixels": round(bar * plane.scale, 1), "text": f"{bar:g} scene units"},
    }


class _Plane:
    """From positions in the cutting frame to pixels; up is up."""

    def __init__(self, low: NDArray[np.float64], high: NDArray[np.float64]) -> None:
        self.low, self.high = low[:2], high[:2]
        self.scale = LONGER / float((self.high - self.low).max())
        self.width, self.height = (max(int(side), 1) for side in ((self.high - self.low) * self.scale).round())

    def at(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, 2) of (N, >= 2), those outside moved to the border."""
        inside = np.clip(positions[:, :2], self.low, self.high)
        return np.stack([inside[:, 0] - self.low[0], self.high[1] - inside[:, 1]], axis=1) * self.scale

    def shape(self, shape: Box) -> dict[str, Any]:
        """Attributes of a rectangle, or of a path where somebody drew the outline or several boxes make it up."""
        if type(shape) is Box:
            return self.rectangle(shape)
        rings = [self.at(ring).round(1).tolist() for ring in rings_of(shape, self.low, self.high)]
        return {"d": "".join("M" + "L".join(f"{x:g} {y:g}" for x, y in ring) + "Z" for ring in rings)}

    def rectangle(self, box: Box) -> dict[str, float]:
        corners = self.at(np.stack([box.lower, box.upper]))
        (left, bottom), (right, top) = corners.round(1).tolist()
        return {"x": left, "y": top, "width": round(right - left, 1), "height": round(bottom - top, 1)}


def _patch(one: PatchScenery, plane: _Plane) -> dict[str, Any]:
    core = plane.shape(one.core)
    if "d" in core:
        middle, inside = middle_of(one.core, plane.low, plane.high)
        label, width = plane.at(middle[None])[0].tolist(), inside * plane.scale * math.sqrt(2)  # of a square round it
        height = width
    else:
        width, height = core["width"], core["height"]
        label = [core["x"] + width / 2, core["y"] + height / 2]
    return {
        "id": one.id,
        "core": core,
        "buffered": plane.shape(one.buffered),
        "label": [round(place, 1) for place in label],
        "room": (width, height),
        "training": _dots(one.training, one, plane),
        "holdout": _dots(one.holdout, one, plane),
    }


def _dots(cameras: Cameras, one: PatchScenery, plane: _Plane) -> list[dict[str, Any]]:
    places = plane.at(one.frame.apply(cameras.centers)).round(1).tolist() if cameras.names else []
    return [{"x": x, "y": y, "name": name} for (x, y), name in zip(places, cameras.names, strict=True)]


def _picture(patches: Sequence[PatchScenery], plane: _Plane) -> str:
    """The points in their own colours, paler, as a PNG in a data address."""
    dot = 2 if sum(len(one.points) for one in patches) > DENSE else 4  # pixels a point is wide
    canvas = np.full((plane.height, plane.width, 3), 255, np.uint8)
    for one in patches:
        at = plane.at(one.frame.apply(one.points)).astype(int)
        pale = (one.colors + (255 - one.colors.astype(np.float64)) * PALE).astype(np.uint8)
        for dy in range(dot):
            for dx in range(dot):
                canvas[np.minimum(at[:, 1] + dy, plane.height - 1), np.minimum(at[:, 0] + dx, plane.width - 1)] = pale
    held = io.BytesIO()
    image = Image.fromarray(canvas).quantize(64)  # a quarter of the size, and nobody sees it in pale points
    image.save(held, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


def _round_length(wanted: float) -> float:
    power = 10 ** math.floor(math.log10(wanted))
    return float(max(n * power for n in (1, 2, 5) if n * power <= wanted))
