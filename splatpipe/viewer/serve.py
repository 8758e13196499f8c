"""`splatpipe view`: a run in the browser, with viser, also while it trains."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from splatpipe.errors import EnvironmentProblem, SplatpipeError
from splatpipe.layout import RunLayout
from splatpipe.ledger import Ledger
from splatpipe.report import words
from splatpipe.report.scenery import Cameras, read_scenery
from splatpipe.report.thinning import thinned
from splatpipe.viewer.stage import Stage
from splatpipe.viewer.views import Views

MOST_POINTS = 200_000
LOOK_EVERY_S = 5.0  # at the ledger, for patches that have been trained meanwhile
FEW = 40  # patches
BACKGROUND = (23, 32, 44)
NONE, MERGED = "none", "merged"


class Viewer:
    """One run on a viser server. `most_gaussians` bounds what a browser is given; raises `EnvironmentProblem`
    without viser, `RunFolderError` for a run without patches."""

    def __init__(self, layout: RunLayout, host: str, port: int, most_gaussians: int) -> None:
        try:
            import viser
        except ImportError:
            raise EnvironmentProblem("the viewer needs viser; install it with: pip install 'splatpipe[view]'") from None
        patches = read_scenery(layout, MOST_POINTS)
        self.layout, self._most = layout, most_gaussians
        self._lock = threading.Lock()
        self._shown: tuple[str, float] | None = None  # the splat on show, and when its file was written
        self._views = Views()
        self.server = viser.ViserServer(host, port, label=f"splatpipe: {layout.root.name}", verbose=False)
        self.server.scene.set_up_direction("+z")
        self.server.scene.set_background_image(np.full((1, 1, 3), BACKGROUND, np.uint8))
        self.server.initial_camera.position = (0.0, -9.0, 8.0)
        self.server.initial_camera.look_at = (0.0, 0.0, 0.0)
        self.stage = Stage(self.server.scene, patches, self.show_camera)
        self._add_panel()
        self.look()

    @property
    def port(self) -> int:
        return int(self.server.get_port())

    def look(self) -> None:
        """Take in what the run has done since the last look."""
        status, splats = self._status()
        self._splats = splats
        options = (NONE, *splats)
        if tuple(self._choice.options) != options:
            before = self._choice.value
            self._choice.options = options
            newest = MERGED if MERGED in splats else before
            self._choice.value = newest if before in (NONE, MERGED) and newest in options else before
        self._outcomes.content = status
        self._show_chosen()

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set, or Ctrl-C, which is how a user ends it."""
        try:
            with contextlib.suppress(KeyboardInterrupt):
                while not stop.wait(LOOK_EVERY_S):
                    self.look()
        finally:
            self.server.stop()

    def _status(self) -> tuple[str, dict[str, Path]]:
        """The outcomes as a table, and the splats that there are."""
        with Ledger(self.layout.ledger, read_only=True) as ledger:
            rows = ledger.status()["patches"]
        table = ["| patch | outcome | PSNR |", "|---|---|---|"]
        splats = {MERGED: self.layout.merged_splat} if self.layout.merged_splat.is_file() else {}
        for row in rows:
            table.append(f"| {row['id']} | {words.outcome(row['outcome'])} | {words.fixed(row['psnr'])} |")
            whole = [Path(one["splat"]) for one in row["attempts"] if one["class"] is None and one["splat"]]
            if whole and whole[-1].is_file():
                splats[row["id"]] = whole[-1]
        return "\n".join(table), splats

    def _add_panel(self) -> None:
        gui, stage = self.server.gui, self.stage
        self._choice: Any = gui.add_dropdown("Splat", (NONE,), initial_value=NONE)
        self._choice.on_update(lambda _: self._show_chosen())
        few = len(stage.names) < FEW  # of many, names and boxes hide everything else
        for label, handles, initial in (
            ("Points", stage.points, False),
            ("Cores", stage.cores, few),
            ("Names", stage.names, few),
            ("Buffers", stage.buffers, False),
            ("Cameras", stage.cameras, True),
        ):
            self._add_switch(label, handles, initial)
        self._folder = gui.add_folder("Photograph and render")
        with self._folder:
            some = f" One of {stage.every} is drawn." if stage.every > 1 else ""
            self._caption = gui.add_markdown(f"Click a camera.{some}")
            self._pictures: list[Any] = []
        with gui.add_folder("Patches"):
            self._outcomes = gui.add_markdown("")

    def _add_switch(self, label: str, handles: list[Any], initial: bool) -> None:
        box = self.server.gui.add_checkbox(label, initial)

        def switch(_: Any = None) -> None:
            for handle in handles:
                handle.visible = box.value

        box.on_update(switch)
        switch()

    def _show_chosen(self) -> None:
        """Load the chosen splat, unless it is on show already."""
        with self._lock:
            path = self._splats.get(self._choice.value)
            wanted = None if path is None or not path.is_file() else (self._choice.value, path.stat().st_mtime)
            if wanted == self._shown:
                return
            try:
                self.stage.show_splat(thinned(path, self._most) if path and wanted else None)
            except SplatpipeError:  # being replaced just now; the next look finds it whole
                return
            self._shown = wanted

    def show_camera(self, cameras: Cameras, i: int) -> None:
        """Show the photograph and, where a splat is chosen, its render from there."""
        with self._lock:
            splat = self._splats.get(self._choice.value)
            self._caption.content = _code(cameras.names[i])
            try:
                photograph, render = self._views.pair(cameras, i, splat)
            except (SplatpipeError, OSError) as error:
                self._caption.content = f"{_code(cameras.names[i])} cannot be shown: {_code(str(error))}"
                return
            for picture in self._pictures:
                picture.remove()
            with self._folder:
                self._pictures = [self.server.gui.add_image(photograph, label="photograph", format="jpeg")]
                if render is not None:
                    self._pictures.append(self.server.gui.add_image(render, label="render", format="jpeg"))


def serve(
    layout: RunLayout,
    host: str,
    port: int,
    most_gaussians: int,
    stop: threading.Event,
    say: Callable[[str], None],
) -> None:
    """Show a run until `stop` is set."""
    viewer = Viewer(layout, host, port, most_gaussians)
    say(f"viewer: http://{'localhost' if host in ('127.0.0.1', '0.0.0.0') else host}:{viewer.port} (Ctrl-C ends it)")
    viewer.run(stop)


def _code(text: str) -> str:
    """Foreign text as code in Markdown, where nothing in it means anything."""
    return "`" + text.replace("`", "'").replace("\n", " ") + "`"
