"""A run's results in a remote store: put there as they come, each read back and compared."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from splatpipe.errors import EnvironmentProblem, SplatpipeError
from splatpipe.files import read_json, write_json
from splatpipe.layout import RunLayout
from splatpipe.storage.store import Store

EVERY_S = 20.0
NOTES = "uploaded.json"  # in the run folder: what the store holds, with check sums
LEDGER_EVERY_S = 120.0  # between two copies of the ledger while a run goes on
OF_A_RUN = ("map.png", "merged/**/*", "report/**/*")
OF_AN_ATTEMPT = ("request.json", "events.jsonl", "log.txt", "splat.ply", "attempt.json")  # the record last


class Publisher:
    """Copies what is finished in a run folder to `store`. One thread at a time may call `sync`."""

    def __init__(self, layout: RunLayout, store: Store, say: Callable[[str], None]) -> None:
        self.layout, self.store, self._say = layout, store, say
        self._lock = threading.Lock()
        self._ledger_at = 0.0  # monotonic time from which on the ledger may be uploaded again
        self._notes = self._read_notes()

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """While the block runs, upload what gets finished; at its end, however it ends, all there is.

        A store that fails meanwhile is tried again; what it lacks at the end is raised as `EnvironmentProblem`.
        """
        done = threading.Event()
        thread = threading.Thread(target=self._follow, args=(done,), name="upload", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self.sync(final=True)

    def _follow(self, done: threading.Event) -> None:
        warned = False
        while not done.wait(EVERY_S):
            try:
                self.sync()
                warned = False
            except (SplatpipeError, OSError) as error:
                if not warned:
                    self._say(f"warning: {error} (going on; it is tried again)")
                warned = True

    def sync(self, final: bool = False) -> None:
        """Upload what is finished and not there yet, now and then the ledger; `final`: what is merged as well."""
        with self._lock:
            for path in self._finished(final):
                self._put(path, path.relative_to(self.layout.root).as_posix())
            if self.layout.ledger.is_file() and (final or time.monotonic() >= self._ledger_at):
                self._put_ledger()
                self._ledger_at = time.monotonic() + LEDGER_EVERY_S

    def _finished(self, final: bool) -> Iterator[Path]:
        """Whole files, those first on which others depend: another machine goes on with what has a run.yml."""
        yield from (path for path in (self.layout.run_yml,) if path.is_file())
        for folder in sorted(self.layout.attempts.glob("*/*")):
            ended = final or (folder / "attempt.json").is_file()
            names = OF_AN_ATTEMPT if ended else OF_AN_ATTEMPT[:1]
            yield from (folder / name for name in names if (folder / name).is_file())
            yield from sorted((folder / "checkpoints").glob("step_*"))[-1:]
        yield from sorted(self.layout.probes.glob("*/*/attempt.json"))
        if not final:
            return
        for pattern in OF_A_RUN:
            found = sorted(self.layout.root.glob(pattern))
            yield from (path for path in found if path.is_file() and not path.name.startswith("."))

    def _put(self, path: Path, key: str) -> None:
        """Upload unless the store has it; a checkpoint may have been replaced by a newer one meanwhile."""
        try:
            stat = path.stat()
            seen = [stat.st_size, stat.st_mtime_ns]
            if self._notes.get(key, {}).get("seen") == seen:
                return
            sha256 = self.store.put(path, key)
        except FileNotFoundError:
            return
        except EnvironmentProblem:
            if not path.exists():
                return
            raise
        self._note(key, {"seen": seen, "sha256": sha256})

    def _put_ledger(self) -> None:
        """A copy of one moment: the file itself may still be in use by somebody who reads it."""
        copy = self.layout.root / ".ledger.upload"
        try:
            with (
                contextlib.closing(sqlite3.connect(self.layout.ledger)) as source,
                contextlib.closing(sqlite3.connect(copy)) as target,
            ):
                source.backup(target)
            self._note(self.layout.ledger.name, {"sha256": self.store.put(copy, self.layout.ledger.name)})
        except sqlite3.Error as error:
            raise EnvironmentProblem(f"{self.layout.ledger}: cannot be copied for upload ({error})") from error
        finally:
            copy.unlink(missing_ok=True)

    def _note(self, key: str, what: dict[str, Any]) -> None:
        self._notes[key] = {**what, "at": self.store.address.slug}
        write_json(self.layout.root / NOTES, self._notes)

    def _read_notes(self) -> dict[str, Any]:
        """What an earlier run has uploaded to this very store."""
        try:
            notes = read_json(self.layout.root / NOTES)
            return {key: note for key, note in notes.items() if note["at"] == self.store.address.slug}
        except (OSError, ValueError, AttributeError, KeyError, TypeError):
            return {}
