"""A real Chromium for tests of pages: found on the machine, driven by Playwright, with what went wrong on record."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync",
         "--disable-component-update", "--enable-unsafe-swiftshader"]  # fmt: skip
KEPT = Path(__file__).resolve().parent.parent / "artefacts"  # git ignores it
PATIENCE_MS = 120_000  # software rendering on a loaded machine of two cores


def find_chromium() -> str:
    """Its path: CHROMIUM, or what the PATH has. Skips the test where there is none."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        pytest.skip("no browser: neither CHROMIUM names one, nor is there " + ", ".join(NAMES) + " in the PATH")
    return found


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser."""
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS, timeout=PATIENCE_MS)
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """A page, and what a user would not want to see in its console or on the network."""

    def __init__(self, browser: Any, width: int, height: int, foreign_addresses_but: str = "file:") -> None:
        self.page = browser.new_page(viewport={"width": width, "height": height})
        self.page.set_default_timeout(PATIENCE_MS)
        self.errors: list[str] = []
        self.foreign: list[str] = []
        own = (foreign_addresses_but, "data:", "blob:")
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda r: None if r.url.startswith(own) else self.foreign.append(r.url))

    def picture(self, name: str | None = None, **options: Any) -> NDArray[np.uint8]:
        """(H, W, 3) what is shown; kept under artefacts/ when it has a name."""
        data = self.page.screenshot(timeout=PATIENCE_MS, **options)
        if name:
            KEPT.mkdir(exist_ok=True)
            (KEPT / f"{name}.png").write_bytes(data)
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def center_of(picture: NDArray[np.uint8], color: tuple[int, int, int]) -> NDArray[np.float64] | None:
    """(x, y) of the middle of the pixels of this colour, 0 or 1 in each channel; None where there are few."""
    channels = picture.astype(int)
    like = np.ones(picture.shape[:2], bool)
    strongest = channels.max(axis=2)
    for i, wanted in enumerate(color):
        like &= (channels[:, :, i] > 0.8 * strongest) if wanted else (channels[:, :, i] < 0.45 * strongest)
    y, x = np.nonzero(like & (strongest > 110))
    return np.array([x.mean(), y.mean()]) if len(x) >= 200 else None
