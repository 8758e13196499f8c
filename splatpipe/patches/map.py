"""A split seen from above, as a picture to show: points, cores, buffers, and cameras in their patch's colour."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFont

from splatpipe.files import atomic_path
from splatpipe.patches.box import Box
from splatpipe.patches.partition import Split
from splatpipe.patches.patch import Patch
from splatpipe.patches.region import Region
from splatpipe.patches.union import parts_of
from splatpipe.scene.arrays import Scene

LONGER = 2000  # pixels of the longer side of the ground
FINE = 2  # drawn larger by this and reduced, for smooth lines
BOUNDS = (0.005, 0.995)  # quantiles of points and cameras that the picture shows
EDGE, HEAD, FOOT = 40, 90, 110  # pixels round the ground, above it, and below it
PAPER, INK, RED = (250, 250, 248), (35, 38, 45), (205, 20, 30)
DOTS = (1, 4)  # pixels of a point's edge, at least and at most
GRID = 24  # places each way at which a label may stand in a core
TINT = 40  # of 255: how much of its patch's colour the ground takes on
MOST_POINTS = 500_000  # a map has no room for more
GOLDEN = 0.618034  # turns of hue that keep neighbouring numbers apart

Color = tuple[int, int, int]
Line = tuple[float, float, float, float]


def draw_map(scene: Scene, split: Split, path: Path, blind: Collection[str] = ()) -> None:
    """Write the top view to `path` as PNG; `blind` are images that see no Gaussian when training begins.

    Right and up are the frame's ground axes, in scene units; with the scene's offset, these are the coordinates of
    `patching.cells`.
    """
    some = slice(None, None, 1 + scene.n_points // MOST_POINTS)
    points = split.frame.apply(scene.points[some])
    canvas = _Canvas(points, split.frame.apply(scene.centers))
    canvas.points(points, scene.colors[some])
    for i, patch in enumerate(split.patches):
        canvas.core(patch, _color(i))
    centers, ahead = split.frame.apply(scene.centers), split.frame.apply(scene.viewmats[:, 2, :3])
    canvas.holdout(centers[split.holdout], ahead[split.holdout])
    for i, patch in enumerate(split.patches):
        home = patch.camera_index[[reason.startswith("home") for reason in patch.camera_reasons]]
        canvas.cameras(centers[home], ahead[home], _color(i))
    lost = np.array([name in set(blind) for name in scene.names]) if blind else np.zeros(scene.n_cameras, bool)
    lost[split.unused] = True
    canvas.crosses(centers[lost])
    for i, patch in enumerate(split.patches):
        canvas.label(patch, centers[patch.camera_index], _color(i))
    canvas.frame(_title(scene, split), _legend(len(split.holdout), int(lost.sum())), split.frame.ground(scene.offset))
    with atomic_path(path) as temporary:
        canvas.finished().save(temporary, format="PNG", compress_level=3)  # the smallest file takes 3 s and more


def _title(scene: Scene, split: Split) -> tuple[str, str]:
    counts = [len(patch.camera_index) for patch in split.patches]
    patches = f"{len(counts)} patch" + ("es" if len(counts) != 1 else "")
    range_of = f"{min(counts)} to " if min(counts) != max(counts) else ""
    facts = f"{_plural(scene.n_cameras, 'camera')}, {_plural(scene.n_points, 'point')}; "
    facts += f"{range_of}{_plural(max(counts), 'camera')} a patch"
    return patches, f"{facts}; {split.frame.message}"


def _plural(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"


def _legend(holdout: int, lost: int) -> list[tuple[str, str]]:
    entries = [
        ("camera", "camera with its direction, in the colour of its home patch"),
        ("core", "core"),
        ("buffer", "buffer"),
    ]
    if holdout:
        entries.append(("holdout", _plural(holdout, "hold-out view")))
    if lost:
        entries.append(("cross", f"{lost} camera{'s' * (lost != 1)} seeing nothing or training nowhere"))
    return entries


def _color(i: int, saturation: float = 0.72, value: float = 0.78) -> Color:
    red, green, blue = colorsys.hsv_to_rgb((0.58 + i * GOLDEN) % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


class _Canvas:
    """The picture at `FINE` times its size; takes positions in the cutting frame."""

    def __init__(self, points: NDArray[np.float64], centers: NDArray[np.float64]) -> None:
        low = np.minimum(*(np.quantile(p[:, :2], BOUNDS[0], axis=0) for p in (points, centers)))
        high = np.maximum(*(np.quantile(p[:, :2], BOUNDS[1], axis=0) for p in (points, centers)))
        margin = 0.03 * float((high - low).max()) or 1.0
        self.low, self.high = low - margin, high + margin
        self.centers = np.clip(centers[:, :2], self.low, self.high)  # as they are shown
        self.scale = FINE * LONGER / float((self.high - self.low).max())
        width, height = ((self.high - self.low) * self.scale).round().astype(int)
        self.left, self.top = FINE * EDGE, FINE * HEAD
        self.ground = (self.left, self.top, self.left + int(width), self.top + int(height))
        size = max(int(width), FINE * 900) + 2 * self.left, int(height) + FINE * (HEAD + FOOT)
        self.image = Image.new("RGB", size, PAPER)
        self.draw = ImageDraw.Draw(self.image, "RGBA")
        self.draw.rectangle(self.ground, fill=(255, 255, 255))
        self.dot = float(np.clip(0.08 * np.sqrt(width * height / max(len(centers), 1)), FINE * 3.5, FINE * 10))

    def at(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, 2) pixels of (N, >= 2) positions; up is up."""
        x = self.left + (positions[:, 0] - self.low[0]) * self.scale
        y = self.top + (self.high[1] - positions[:, 1]) * self.scale
        return np.stack([x, y], axis=1)

    def points(self, positions: NDArray[np.float64], colors: NDArray[np.uint8]) -> None:
        """Points in their own colours, as dots that are larger where they are few."""
        every = max(len(positions) // MOST_POINTS, 1)
        pixels = self.at(positions[::every]) - (self.left, self.top)
        size = np.array((self.ground[2] - self.left, self.ground[3] - self.top))
        shown = ((pixels >= 0) & (pixels < size)).all(axis=1)
        step = FINE * int(np.clip(np.sqrt(size.prod() / max(int(shown.sum()), 1)) / (2 * FINE), *DOTS))
        columns, rows = (int(n) for n in size // step + 1)
        place = (pixels[shown] // step).astype(int)
        flat, seen = place[:, 1] * columns + place[:, 0], colors[::every][shown]
        counts = np.bincount(flat, minlength=rows * columns)
        filled = np.flatnonzero(counts)
        table = np.full((rows * columns, 3), 255, np.uint8)
        for i in range(3):
            table[filled, i] = np.bincount(flat, seen[:, i], rows * columns)[filled] / counts[filled]
        raster = Image.fromarray(table.reshape(rows, columns, 3))
        picture = raster.resize((columns * step, rows * step), Image.Resampling.NEAREST)
        self.image.paste(picture.crop((0, 0, int(size[0]), int(size[1]))), (self.left, self.top))

    def core(self, patch: Patch, color: Color) -> None:
        for part in parts_of(patch.core):
            if isinstance(part, Region):
                self._outline(part, color)
            else:
                self.draw.rectangle(self._clipped(part), fill=(*color, TINT))
        for line in _rim([self._clipped(part) for part in parts_of(patch.core) if not isinstance(part, Region)]):
            self.draw.line(line, fill=(*color, 255), width=FINE * 3)
        self._dashed(
            _rim([self._clipped(part) for part in parts_of(patch.buffered) if not isinstance(part, Region)]),
            (*color, 170),
        )

    def _outline(self, core: Region, color: Color) -> None:
        """Ground and inner edge of an outline that somebody drew, or of what is left beside, within the core's box."""
        inside, edges = Image.new("L", self.image.size), Image.new("L", self.image.size)
        ImageDraw.Draw(inside).rectangle(self._clipped(core), fill=255)
        ImageDraw.Draw(edges).rectangle(self._clipped(core), outline=255, width=FINE * 3)
        for ring, whole in [(core.ring, True), *((other, False) for other in core.others)]:
            if ring is None:
                continue
            corners = [(float(x), float(y)) for x, y in self.at(ring)]
            shape = Image.new("L", self.image.size, 0 if whole else 255)
            ImageDraw.Draw(shape).polygon(corners, fill=255 if whole else 0)
            inside = ImageChops.darker(inside, shape)
            ImageDraw.Draw(edges).line([*corners, corners[0]], fill=255, width=FINE * 6, joint="curve")
        mask = ImageChops.lighter(inside.point(lambda value: value and TINT), ImageChops.darker(edges, inside))
        self.image.paste(Image.new("RGB", self.image.size, color), mask=mask)

    def cameras(self, centers: NDArray[np.float64], ahead: NDArray[np.float64], color: Color) -> None:
        """Dots with a stroke in the direction of view, the shorter the steeper."""
        self._strokes(centers, ahead, color)
        for x, y in self._shown(centers):
            box = (x - self.dot, y - self.dot, x + self.dot, y + self.dot)
            self.draw.ellipse(box, fill=color, outline=(255, 255, 255), width=FINE)

    def holdout(self, centers: NDArray[np.float64], ahead: NDArray[np.float64]) -> None:
        self._strokes(centers, ahead, INK)
        for x, y in self._shown(centers):
            box = (x - self.dot, y - self.dot, x + self.dot, y + self.dot)
            self.draw.ellipse(box, fill=(255, 255, 255), outline=INK, width=FINE)

    def _strokes(self, centers: NDArray[np.float64], ahead: NDArray[np.float64], color: Color) -> None:
        for (x, y), (dx, dy) in zip(self._shown(centers), ahead[:, :2] * (4 * self.dot), strict=True):
            self.draw.line((x, y, x + dx, y - dy), fill=color, width=max(round(self.dot / 2.5), FINE))

    def crosses(self, centers: NDArray[np.float64]) -> None:
        for x, y in self._shown(centers):
            self._cross(x, y, 2 * self.dot)

    def label(self, patch: Patch, centers: NDArray[np.float64], color: Color) -> None:
        """Number and camera count near the patch's cameras `centers` (M, 3), where it hides few of all."""
        font, text = _font(20), f"{patch.id}\n{_plural(len(centers), 'camera')}"
        box = np.array(self.draw.multiline_textbbox((0, 0), text, font=font, anchor="mm", align="center"))
        pad = FINE * 7
        at = self._free_place(patch.core, np.median(centers[:, :2], axis=0), (box[2:] - box[:2]) / 2 + pad)
        around = (at[0] + box[0] - pad, at[1] + box[1] - pad, at[0] + box[2] + pad, at[1] + box[3] + pad)
        self.draw.rounded_rectangle(around, radius=pad, fill=(255, 255, 255, 225), outline=color, width=FINE * 2)
        self.draw.multiline_text(at, text, fill=INK, font=font, anchor="mm", align="center")

    def frame(self, title: tuple[str, str], legend: list[tuple[str, str]], offset: NDArray[np.float64]) -> None:
        """Title, border, legend and scale bar, which names the edges with `offset` (2,) added."""
        self._mask_outside()
        self.draw.rectangle(self.ground, outline=INK, width=FINE)
        self.draw.text((self.left, FINE * 14), title[0], fill=INK, font=_font(30))
        self.draw.text((self.left, FINE * 54), title[1], fill=(90, 94, 102), font=_font(18))
        x, y = float(self.left), self.ground[3] + FINE * 34
        for kind, text in legend:
            x = self._legend_entry(kind, text, x, y)
        self._scale_bar(self.ground[3] + FINE * 76, offset)

    def finished(self) -> Image.Image:
        return self.image.reduce(FINE)

    def _legend_entry(self, kind: str, text: str, x: float, y: float) -> float:
        color, r = _color(0), FINE * 7
        middle = x + FINE * 12
        if kind == "camera":
            self.draw.ellipse((middle - r, y - r, middle + r, y + r), fill=color)
        elif kind == "holdout":
            self.draw.ellipse((middle - r, y - r, middle + r, y + r), fill=(255, 255, 255), outline=INK, width=FINE)
        elif kind == "cross":
            self._cross(middle, y, r)
        elif kind == "core":
            self.draw.rectangle((x, y - r, x + 3 * r, y + r), fill=(*color, TINT), outline=color, width=FINE * 3)
        else:
            self._dashed(_rim([(x, y - r, x + 3 * r, y + r)]), (*color, 170))
        start = x + FINE * 30
        self.draw.text((start, y), text, fill=INK, font=_font(17), anchor="lm")
        return start + self.draw.textlength(text, font=_font(17)) + FINE * 30

    def _scale_bar(self, y: float, offset: NDArray[np.float64]) -> None:
        """A round length of about a sixth of the width."""
        wanted = float(self.high[0] - self.low[0]) / 6
        power = 10 ** math.floor(math.log10(wanted))
        length = max(n * power for n in (1, 2, 5) if n * power <= wanted)
        x0, x1 = self.left, self.left + length * self.scale
        self.draw.line((x0, y, x1, y), fill=INK, width=FINE * 3)
        for x in (x0, x1):
            self.draw.line((x, y - FINE * 6, x, y + FINE * 6), fill=INK, width=FINE * 2)
        digits = max(2 - math.floor(math.log10(float((self.high - self.low).max()))), 0)
        left, lower = (f"{edge:.{digits}f}" for edge in self.low + offset)
        label = f"{length:g} scene unit{'s' * (length != 1)}; left edge {left}, lower edge {lower}"
        self.draw.text((x1 + FINE * 14, y), label, fill=INK, font=_font(17), anchor="lm")

    def _clipped(self, box: Box) -> tuple[float, float, float, float]:
        lower, upper = np.maximum(box.lower[:2], self.low), np.minimum(box.upper[:2], self.high)
        (x0, y1), (x1, y0) = self.at(np.stack([lower, np.maximum(upper, lower)]))
        return float(x0), float(y0), float(x1), float(y1)

    def _free_place(self, core: Box, near: NDArray[np.float64], half: NDArray[np.float64]) -> tuple[float, float]:
        """Pixels of the middle of a label of half size (2,) pixels: in the core, off cameras, and near a place.

        One corner outside, all cameras hidden, and the core's diagonal away weigh the same.
        """
        low, high = np.maximum(core.lower[:2], self.low), np.minimum(core.upper[:2], self.high)
        steps = (np.arange(GRID) + 0.5) / GRID
        grid = np.stack(np.meshgrid(*(low[axis] + steps * (high - low)[axis] for axis in (0, 1))), -1)
        places = np.concatenate([np.clip(near, low, high)[None], grid.reshape(-1, 2)])
        half = half / self.scale
        corners = places[:, None] + half * np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]])
        flat = np.column_stack([corners.reshape(-1, 2), np.zeros(4 * len(places))])
        outside = ~core.contains(flat) | ((flat[:, :2] < self.low) | (flat[:, :2] > self.high)).any(axis=1)
        reach = half + self.dot / self.scale
        dots = self.centers[((self.centers > low - reach) & (self.centers < high + reach)).all(axis=1)]
        hidden = (np.abs(dots[None] - places[:, None]) < reach).all(axis=2).sum(axis=1)
        away = np.linalg.norm(places - near, axis=1) / np.linalg.norm(high - low)
        cost = outside.reshape(-1, 4).sum(axis=1) + hidden / max(len(dots), 1) + away
        x, y = self.at(places[[int(np.argmin(cost))]])[0]
        return float(x), float(y)

    def _shown(self, centers: NDArray[np.float64]) -> NDArray[np.float64]:
        """Those within the picture, the rest moved to its border."""
        return self.at(np.clip(centers[:, :2], self.low, self.high))

    def _cross(self, x: float, y: float, r: float) -> None:
        for sign in (-1, 1):
            self.draw.line((x - r, y - sign * r, x + r, y + sign * r), fill=RED, width=FINE * 3)

    def _dashed(self, lines: list[Line], color: tuple[int, int, int, int]) -> None:
        dash = FINE * 9
        for x0, y0, x1, y1 in lines:
            length = max(x1 - x0, y1 - y0)
            for start in np.arange(0, length, 2 * dash):
                a, b = start / length, min(start + dash, length) / length
                ends = (x0 + a * (x1 - x0), y0 + a * (y1 - y0), x0 + b * (x1 - x0), y0 + b * (y1 - y0))
                self.draw.line(ends, fill=color, width=FINE * 2)

    def _mask_outside(self) -> None:
        """Dots at the border reach over it; the paper covers them."""
        width, height = self.image.size
        x0, y0, x1, y1 = self.ground
        for box in ((0, 0, width, y0), (0, y1, width, height), (0, y0, x0, y1), (x1, y0, width, y1)):
            self.draw.rectangle(box, fill=PAPER)


def _rim(boxes: list[Line]) -> list[Line]:
    """The edges of what boxes (left, top, right, bottom) cover together, as lines to the right or down."""
    lines = []
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        others = boxes[:i] + boxes[i + 1 :]
        for y in (y0, y1):
            covered = [(left, right) for left, top, right, bottom in others if top <= y <= bottom]
            lines += [(a, y, b, y) for a, b in _left_over(x0, x1, covered)]
        for x in (x0, x1):
            covered = [(top, bottom) for left, top, right, bottom in others if left <= x <= right]
            lines += [(x, a, x, b) for a, b in _left_over(y0, y1, covered)]
    return lines


def _left_over(start: float, end: float, covered: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """What intervals leave of the one from `start` to `end`."""
    pieces, at = [], start
    for low, high in sorted(covered):
        if at < low < end:
            pieces.append((at, low))
        at = max(at, high)
    return [*pieces, (at, end)] if at < end else pieces


def _area(box: Line) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * FINE)
