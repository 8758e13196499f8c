"""Where the borders of a large merged splat are trained, and how far that has come: it outlives the process."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from splatpipe.files import read_json, write_json
from splatpipe.merge.borders import BorderRecords
from splatpipe.merge.rows import Rows
from splatpipe.splatting.ply import PlyHeader

AT_ONCE = 1 << 16  # records that are moved in one piece


@dataclass(frozen=True)
class Progress:
    """What is done of the job `key`: turns, their steps and seconds, and what training views said before any."""

    key: str
    turns: int = 0
    of: int = 0
    steps: int = 0
    seconds: float = 0.0
    before: tuple[float, ...] | None = None  # mean PSNR of each neighbourhood, dB
    failed: int = 0  # turns
    failure: str | None = None  # of the last of these


@dataclass(frozen=True)
class Workplace:
    """A folder on the disk of the splat. The records of borders are whole before there is a `Progress`.

    What a turn changed is first written beside them; only then are they replaced, and only then is the turn noted. So
    a process may be killed at any moment: `open` replaces again, or drops what is not whole.
    """

    folder: Path

    @property
    def borders(self) -> Path:
        return self.folder / "borders.bin"

    def checkpoints(self, turn: int) -> Path:
        """Of the turn that was stopped."""
        return self.folder / "checkpoints" / f"{turn:05d}"

    def progress(self) -> Progress | None:
        """How far the work has come; None where there is none, or it cannot be read."""
        try:
            found = Progress(**read_json(self.folder / "progress.json"))
        except (OSError, ValueError, TypeError):
            return None
        return replace(found, before=None if found.before is None else tuple(found.before))

    def open(
        self, header: PlyHeader, borders: BorderRecords, key: str, turns: int, check: Callable[[], None]
    ) -> Progress:
        """Go on with what was begun under the same key, else begin with the rows of the file of `header`."""
        found = self.progress()
        size = 4 * borders.width * len(borders.index)
        if found and found.key == key and self.borders.is_file() and self.borders.stat().st_size == size:
            return self._replayed(found, borders)
        self.clear()
        borders.write(header, check)
        return self._note(Progress(key, of=turns))

    def note_before(self, progress: Progress, before: tuple[float, ...]) -> Progress:
        return self._note(replace(progress, before=before))

    def note_turn(
        self, progress: Progress, borders: BorderRecords, places: NDArray[np.int64], records: Rows, done: Progress
    ) -> Progress:
        """Replace the records at ascending `places`, after which `done` holds."""
        self._changes.mkdir(exist_ok=True)
        for name, values in (("places.bin", places.astype("<i8")), ("records.bin", records.astype("<f4", copy=False))):
            with (self._changes / name).open("wb") as handle:
                handle.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
                handle.flush()
                os.fsync(handle.fileno())
        write_json(self._changes / "done.json", asdict(done))
        return self._replayed(progress, borders)

    def note_failure(self, progress: Progress, sentence: str) -> Progress:
        """A turn that changed nothing."""
        return self._note(replace(progress, turns=progress.turns + 1, failed=progress.failed + 1, failure=sentence))

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _changes(self) -> Path:
        """What the last turn changed; whole where it holds `done.json`."""
        return self.folder / "changes"

    def _replayed(self, progress: Progress, borders: BorderRecords) -> Progress:
        try:
            done = Progress(**read_json(self._changes / "done.json"))
        except (OSError, ValueError, TypeError):
            done = progress
        if done.key == progress.key and done.turns == progress.turns + 1:
            places = np.fromfile(self._changes / "places.bin", "<i8").astype(np.int64)
            with borders.open(writable=True) as file, (self._changes / "records.bin").open("rb") as handle:
                for start in range(0, len(places), AT_ONCE):
                    part = places[start : start + AT_ONCE]
                    table = np.fromfile(handle, "<f4", len(part) * borders.width)
                    file.put(part, table.reshape(len(part), borders.width))
            return self._note(replace(done, before=progress.before))
        shutil.rmtree(self._changes, ignore_errors=True)
        return progress

    def _note(self, progress: Progress) -> Progress:
        """Keep it; what it speaks of must be on disk."""
        write_json(self.folder / "progress.json", asdict(progress))
        for over in (self._changes, self.folder / "checkpoints"):
            shutil.rmtree(over, ignore_errors=True)
        return progress
